"""Batch norm, initial values and number types: what the networks have from the shared layers."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models.convolution import grouped_convolution
from jaxkd.models.initializers import fan_in_uniform, fan_out_normal, normal, uniform
from jaxkd.models.layers import BatchNorm, relu

IMAGE = (8, 8, 1)


def test_initialize_draws_what_init_draws() -> None:
    network = models.create("resnet8", num_classes=10)
    drawn = models.initialize(network, seed=3, image_shape=IMAGE)
    plain = network.init(jax.random.key(3), jnp.zeros((1, *IMAGE)))
    jax.tree.map(np.testing.assert_array_equal, drawn, dict(plain))
    other = models.initialize(network, seed=4, image_shape=IMAGE)
    kernel = drawn["params"]["layer3_0"]["conv2"]["kernel"]
    assert not np.array_equal(kernel, other["params"]["layer3_0"]["conv2"]["kernel"])


def test_draws_are_the_same_eagerly_and_compiled() -> None:
    key = jax.random.key(5)
    for initializer in (fan_out_normal, fan_in_uniform, normal(0.01), uniform(0.5)):
        drawn = initializer(key, (3, 3, 4, 8), jnp.float32)
        compiled = jax.jit(initializer, static_argnums=(1, 2))(key, (3, 3, 4, 8), jnp.float32)
        np.testing.assert_array_equal(drawn, compiled)


def test_initial_values_have_the_spread_of_the_sources() -> None:
    def params(name: str) -> Any:
        made = functools.partial(models.initialize, models.create(name), seed=0, image_shape=(8, 8, 3))
        return jax.device_get(jax.jit(made)())["params"]

    def assert_normal(values: jax.Array, std: float) -> None:
        assert np.std(values) == pytest.approx(std, rel=0.03)
        assert np.abs(values).max() > 2.5 * std

    def assert_uniform(values: jax.Array, fan_in: int) -> None:
        assert 0.9 / np.sqrt(fan_in) < np.abs(values).max() <= np.float32(1 / np.sqrt(fan_in))
        assert np.std(values) == pytest.approx(1 / np.sqrt(3 * fan_in), rel=0.1)

    resnet = params("resnet8")
    assert_normal(resnet["layer3_0"]["conv2"]["kernel"], np.sqrt(2 / (9 * 64)))
    assert_uniform(resnet["fc"]["kernel"], 64)
    assert_uniform(resnet["fc"]["bias"], 64)
    wrn = params("wrn_16_1")
    assert_normal(wrn["block2"]["layer_0"]["conv2"]["kernel"], np.sqrt(2 / (9 * 32)))
    assert_uniform(wrn["fc"]["kernel"], 64)
    assert not wrn["fc"]["bias"].any()
    vgg = params("vgg8")
    assert_normal(vgg["block1_0"]["kernel"], np.sqrt(2 / (9 * 128)))
    assert_normal(vgg["classifier"]["kernel"], 0.01)
    assert not vgg["block1_0"]["bias"].any()
    assert not vgg["classifier"]["bias"].any()
    mobile = params("MobileNetV2")
    # Depthwise, too, the sources count all output channels.
    assert_normal(mobile["blocks_6_0"]["conv_3"]["kernel"], np.sqrt(2 / (9 * 480)))
    assert_normal(mobile["classifier_0"]["kernel"], 0.01)
    shuffle = params("ShuffleV1")
    assert_uniform(shuffle["layer2_1"]["conv1"]["kernel"], 160)  # a third of 480 channels
    assert_uniform(shuffle["layer2_1"]["conv2"]["kernel"], 9)
    assert_uniform(shuffle["linear"]["kernel"], 960)


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


def test_the_running_variance_is_the_unbiased_one() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 1, 1, 4))
    layer = BatchNorm(use_running_average=False)
    _, updates = layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(
        updates["batch_stats"]["var"], 0.9 + 0.1 * np.var(x, axis=(0, 1, 2), ddof=1), rtol=1e-6
    )


def test_bfloat16_changes_little_and_keeps_float32_where_it_matters() -> None:
    def train(network: nn.Module) -> Any:
        return jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))

    network = models.create("resnet8", 10, dtype=jnp.bfloat16)
    variables = models.initialize(network, seed=0, image_shape=IMAGE)
    images = jax.random.normal(jax.random.key(1), (4, *IMAGE))
    outputs, updates = train(network)(variables, images)
    assert outputs.features["stage3"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updates, outputs.logits))} == {
        jnp.dtype("float32")
    }
    exact, _ = train(models.create("resnet8", 10))(variables, images)
    np.testing.assert_allclose(outputs.logits, exact.logits, atol=0.1)


def test_relu_is_the_usual_one_with_nan_and_gradients() -> None:
    x = jnp.array([-jnp.inf, -1.5, -0.0, 0.0, 2.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(relu(x), nn.relu(x))
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(x[:-1]), jax.vmap(jax.grad(nn.relu))(x[:-1]))
    assert relu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_batch_norm_is_that_of_flax_where_the_mean_is_far_from_zero() -> None:
    x = 30 + jax.random.normal(jax.random.key(0), (64, 4, 4, 8))
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def gradients(module: nn.Module) -> tuple[jax.Array, Any]:
        variables = module.init(jax.random.key(0), x)

        def loss(x: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
            y, _ = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(weights * y), y

        (_, y), found = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, variables["params"])
        return y, found

    ours, ours_gradients = gradients(BatchNorm(use_running_average=False))
    flax, flax_gradients = gradients(
        nn.BatchNorm(use_running_average=False, use_fast_variance=False, epsilon=1e-5)
    )
    np.testing.assert_allclose(ours, flax, atol=5e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), ours_gradients, flax_gradients
    )


def test_grouped_convolution_is_one_convolution_elsewhere() -> None:
    def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
        y = grouped_convolution(images, kernel, (1, 1), [(1, 1), (1, 1)], feature_group_count=6)
        return jnp.sum(y**2)

    arguments = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 1, 6))
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(*arguments)
    # Forward, and the gradients of both.
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.convolution") == 3
    assert traced.lower(lowering_platforms=("cpu",)).as_text().count("stablehlo.convolution") == 0
    with pytest.raises(ValueError, match=r"not dilated here, got \(2, 2\)"):
        grouped_convolution(*arguments, (1, 1), [(1, 1), (1, 1)], rhs_dilation=(2, 2))


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "window", "strides", "dtype"),
    [
        (6, 6, 6, (3, 3), (1, 1), jnp.float32),  # depthwise
        (6, 6, 6, (3, 3), (2, 2), jnp.float32),
        (6, 6, 6, (3, 3), (2, 2), jnp.bfloat16),
        (3, 6, 9, (1, 1), (1, 1), jnp.float32),  # pointwise in groups
        (2, 4, 6, (3, 1), (2, 1), jnp.float32),
        (3, 3, 6, (3, 3), (1, 1), jnp.float32),  # two outputs for each input
    ],
)
def test_grouped_convolution_is_the_usual_one(
    groups: int, inputs: int, outputs: int, window: tuple[int, int], strides: tuple[int, int], dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((2, 7, 8, inputs)), dtype)
    kernel = jnp.asarray(rng.standard_normal((*window, inputs // groups, outputs)), dtype)
    padding = [(size // 2, size // 2) for size in window]
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}

    def loss(convolve: Any, images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = convolve(images, kernel, strides, padding, **options)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    (_, ours), ours_gradients = jax.jit(
        jax.value_and_grad(functools.partial(loss, grouped_convolution), (0, 1), has_aux=True)
    )(images, kernel)
    (_, usual), usual_gradients = jax.jit(
        jax.value_and_grad(functools.partial(loss, jax.lax.conv_general_dilated), (0, 1), has_aux=True)
    )(images, kernel)
    assert ours.dtype == dtype
    assert ours.shape == usual.shape
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    for a, b in zip((ours, *ours_gradients), (usual, *usual_gradients), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    one = jax.jit(lambda image: grouped_convolution(image[None], kernel, strides, padding, **options))
    mapped = jax.jit(jax.vmap(one))(images)
    np.testing.assert_allclose(mapped[0], one(images[0]), rtol=tolerance, atol=tolerance)
