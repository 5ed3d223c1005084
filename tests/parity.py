"""How far the networks are from the torch models whose outputs were recorded (fixtures/README.md)."""

from __future__ import annotations

import functools
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
from reference import relative

from jaxkd import models
from jaxkd.models.torch_names import to_torch

_FIXTURES = Path(__file__).parent / "fixtures"


@functools.cache
def recorded() -> dict[str, dict[str, np.ndarray]]:
    """What was recorded, by network and field; all networks got the images `[""]["x"]`."""
    networks: dict[str, dict[str, np.ndarray]] = {}
    for file in ("models.npz", "models_rebuilt.npz"):
        with np.load(_FIXTURES / file) as arrays:
            for key, array in arrays.items():
                name, _, field = key.rpartition("/")
                networks.setdefault(name, {})[field] = array
    return networks


def deviations(name: str) -> dict[str, float]:
    """Largest deviations of a network with the recorded weights, relative to the largest value recorded.

    Returns:
      In evaluation mode those of "logits", "pooled", and "features" (their means and deviations over the
      batch); in training mode those of "training logits" and "statistics" (first and last batch norm, one
      update).
    """
    expected = recorded()[name]
    variables = helpers.deterministic_variables(name)
    torch_names = [str(n) for n in expected["param_names"] if not n.endswith("num_batches_tracked")]
    assert set(to_torch(variables)) == set(torch_names)
    network = models.create(name)
    images = jnp.asarray(recorded()[""]["x"].transpose(0, 2, 3, 1), jnp.float32)
    evaluated = jax.jit(network.apply)(variables, images)
    trained, updates = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))(
        variables, images
    )

    stages = [f"stage{index}" for index in range(1, len(expected["eval_feat_mean"]) - 1)]
    plain = [evaluated.features[feature] for feature in ("stem", *stages, "pooled")]
    before = [evaluated.features[stage + "_preact"] for stage in stages]
    features = {
        "eval_feat_mean": [feature.mean() for feature in plain],
        "eval_feat_std": [feature.std() for feature in plain],
        "eval_preact_mean": [feature.mean() for feature in (plain[0], *before, plain[-1])],
    }
    running = [n for n in torch_names if n.endswith("running_mean")]
    updated = to_torch(updates)
    statistics = {}
    for which, mean in (("first", running[0]), ("last", running[-1])):
        statistics[f"train_rm_{which}"] = updated[mean]
        statistics[f"train_rv_{which}"] = updated[mean.replace("running_mean", "running_var")]
    return {
        "logits": relative(evaluated.logits, expected["eval_logits"]),
        "pooled": relative(evaluated.features["pooled"], expected["eval_pooled"]),
        # Each feature has a size of its own.
        "features": max(
            relative(value, expectation)
            for field, values in features.items()
            for value, expectation in zip(values, expected[field], strict=True)
        ),
        "training logits": relative(trained.logits, expected["train_logits"]),
        "statistics": max(relative(value, expected[field]) for field, value in statistics.items()),
    }
