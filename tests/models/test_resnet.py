"""The networks against the authors' torch models, and the conventions of their layers."""

from __future__ import annotations

import functools
from typing import Any

import flax.traverse_util
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models.layers import BatchNorm
from jaxkd.models.torch_names import to_flax

PARAMETERS = {
    "resnet8": 83_892, "resnet14": 181_108, "resnet20": 278_324, "resnet32": 472_756, "resnet44": 667_188,
    "resnet56": 861_620, "resnet110": 1_736_564, "resnet8x4": 1_233_540, "resnet32x4": 7_433_860,
}  # fmt: skip
STATISTICS = {"resnet8": 672, "resnet56": 4_256, "resnet110": 8_288, "resnet8x4": 2_752, "resnet32x4": 9_920}


def shapes(name: str) -> dict[str, Any]:
    network = models.create(name)
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def fixture_variables(name: str, fixtures: dict[str, np.ndarray]) -> dict[str, Any]:
    """Builds the weights by the fixtures' rule from torch's names alone, and imports them."""
    like = shapes(name)
    by_module = {}
    for path, leaf in flax.traverse_util.flatten_dict(like).items():
        leaf_name = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
        by_module["_".join(path[1:-1]), leaf_name.get(path[-1], path[-1])] = torch_shape(path, leaf.shape)
    weights = {}
    for torch_name in map(str, fixtures[f"{name}/param_names"]):
        module, _, last = torch_name.rpartition(".")
        if last != "num_batches_tracked":
            shape = by_module[module.replace(".", "_"), last]
            weights[torch_name] = helpers.deterministic_weight(torch_name, shape)
    return to_flax(weights, like)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_those_of_the_torch_models(name: str) -> None:
    assert set(PARAMETERS) <= set(models.names())
    variables = shapes(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]
    if name in STATISTICS:
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])) == STATISTICS[name]


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet8x4"])
def test_outputs_equal_the_authors(name: str, model_fixtures: dict[str, np.ndarray]) -> None:
    expected = {
        key.partition("/")[2]: value for key, value in model_fixtures.items() if key.startswith(f"{name}/")
    }
    variables = fixture_variables(name, model_fixtures)
    network = models.create(name)
    images = jnp.asarray(model_fixtures["x"].transpose(0, 2, 3, 1), jnp.float32)

    outputs = jax.jit(network.apply)(variables, images)
    largest = np.abs(expected["eval_logits"]).max()
    np.testing.assert_allclose(outputs.logits / largest, expected["eval_logits"] / largest, atol=2e-6)
    pooled = np.abs(expected["eval_pooled"]).max()
    np.testing.assert_allclose(
        outputs.features["pooled"] / pooled, expected["eval_pooled"] / pooled, atol=2e-6
    )
    stages = ["stage1", "stage2", "stage3"]
    for suffix, field in (("", "eval_feat_mean"), ("_preact", "eval_preact_mean")):
        names = ["stem", *(stage + suffix for stage in stages), "pooled"]
        means = [outputs.features[feature].mean() for feature in names]
        np.testing.assert_allclose(means, expected[field], rtol=1e-5)
    names = ["stem", *stages, "pooled"]
    deviations = [outputs.features[feature].std() for feature in names]
    np.testing.assert_allclose(deviations, expected["eval_feat_std"], rtol=1e-5)

    train = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))
    outputs, updates = train(variables, images)
    largest = np.abs(expected["train_logits"]).max()
    np.testing.assert_allclose(outputs.logits / largest, expected["train_logits"] / largest, atol=3e-6)
    first = updates["batch_stats"]["bn1"]
    np.testing.assert_allclose(first["mean"], expected["train_rm_first"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first["var"], expected["train_rv_first"], rtol=1e-5)


def test_initialisation_is_the_one_of_init_and_has_the_right_spread() -> None:
    network = models.create("resnet8", num_classes=10)
    drawn = models.initialize(network, seed=3, image_shape=(8, 8, 1))
    plain = network.init(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))
    jax.tree.map(np.testing.assert_array_equal, drawn, dict(plain))
    kernel = drawn["params"]["layer3_0"]["conv2"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    bound = 1 / np.sqrt(64)
    head = np.abs(drawn["params"]["fc"]["kernel"])
    assert 0.95 * bound < head.max() <= bound
    other = models.initialize(network, seed=4, image_shape=(8, 8, 1))
    assert not np.array_equal(kernel, other["params"]["layer3_0"]["conv2"]["kernel"])


def test_batch_norm_ignores_masked_examples_and_spans_devices() -> None:
    x = jax.random.normal(jax.random.key(0), (16, 4, 4, 3)) * 3 + 1
    where = jnp.arange(16) % 5 != 0
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    kept, statistics = layer.apply(variables, x[where], mutable=["batch_stats"])
    masked, masked_statistics = layer.apply(variables, x, where, mutable=["batch_stats"])
    np.testing.assert_allclose(masked[where], kept, atol=2e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), masked_statistics, statistics)

    def shard(x: jax.Array, where: jax.Array) -> Any:
        spanning = BatchNorm(use_running_average=False, axis_name="devices")
        return spanning.apply(variables, x, where, mutable=["batch_stats"])

    # Shards with 1 or 2 of 2 examples: averages of averages would be wrong.
    parts, part_statistics = jax.pmap(shard, "devices")(x.reshape(8, 2, 4, 4, 3), where.reshape(8, 2))
    np.testing.assert_allclose(parts.reshape(x.shape)[where], kept, atol=2e-6)
    jax.tree.map(
        lambda part, whole: np.testing.assert_allclose(part[3], whole, rtol=1e-5), part_statistics, statistics
    )


def test_bfloat16_keeps_float32_parameters_statistics_and_logits() -> None:
    network = models.create("resnet8", 10, dtype=jnp.bfloat16)
    variables = models.initialize(network, seed=0, image_shape=(8, 8, 1))
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    outputs, updates = network.apply(variables, images, train=True, mutable=["batch_stats"])
    assert outputs.features["stage3"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updates, outputs.logits))} == {
        jnp.dtype("float32")
    }
    exact = models.create("resnet8", 10).apply(variables, images, train=True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(outputs.logits, exact.logits, atol=0.1)


def test_unknown_names_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r'unknown model "resnet-56"; did you mean "resnet56"\?.*resnet110'):
        models.create("resnet-56")
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        models.create("resnet8", 1)
