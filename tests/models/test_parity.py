"""The networks against the authors' torch models, which were run once in float64 (fixtures/README.md)."""

from __future__ import annotations

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models.torch_names import to_torch

# Name to tolerance in training mode.  The last maps of MobileNetV2 have 2x2 pixels, 16 values a channel with
# four images, and batch norm magnifies the rounding of many layers.
RECORDED = {
    "resnet8": 2e-6, "resnet14": 2e-6, "resnet8x4": 2e-6, "wrn_16_1": 2e-6, "wrn_16_2": 2e-6, "vgg8": 4e-6,
    "ShuffleV1": 2e-5, "MobileNetV2": 5e-5,
}  # fmt: skip


def assert_close(actual: np.typing.ArrayLike, expected: np.ndarray, tolerance: float) -> None:
    """Relative to the largest value: the recorded networks' logits are large."""
    largest = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual) / largest, expected / largest, atol=tolerance)


@pytest.mark.parametrize("name", RECORDED)
def test_outputs_equal_the_authors(name: str, model_fixtures: dict[str, np.ndarray]) -> None:
    expected = {
        key.partition("/")[2]: value for key, value in model_fixtures.items() if key.startswith(f"{name}/")
    }
    variables = helpers.deterministic_variables(name)
    torch_names = [str(n) for n in expected["param_names"] if not n.endswith("num_batches_tracked")]
    assert set(to_torch(variables)) == set(torch_names)
    network = models.create(name)
    images = jnp.asarray(model_fixtures["x"].transpose(0, 2, 3, 1), jnp.float32)

    outputs = jax.jit(network.apply)(variables, images)
    assert_close(outputs.logits, expected["eval_logits"], 2e-6)
    assert_close(outputs.features["pooled"], expected["eval_pooled"], 2e-6)
    stages = [f"stage{index}" for index in range(1, len(expected["eval_feat_mean"]) - 1)]
    plain = ["stem", *stages, "pooled"]
    before = ["stem", *(f"{stage}_preact" for stage in stages), "pooled"]
    for features, statistic, field in (
        (plain, jnp.mean, "eval_feat_mean"),
        (plain, jnp.std, "eval_feat_std"),
        (before, jnp.mean, "eval_preact_mean"),
    ):
        values = [statistic(outputs.features[feature]) for feature in features]
        np.testing.assert_allclose(values, expected[field], rtol=1e-5)

    train = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))
    outputs, updates = train(variables, images)
    assert_close(outputs.logits, expected["train_logits"], RECORDED[name])
    statistics = to_torch(updates)
    means = [n for n in torch_names if n.endswith("running_mean")]
    for which, mean in (("first", means[0]), ("last", means[-1])):
        variance = mean.replace("running_mean", "running_var")
        assert_close(statistics[mean], expected[f"train_rm_{which}"], RECORDED[name])
        assert_close(statistics[variance], expected[f"train_rv_{which}"], RECORDED[name])
