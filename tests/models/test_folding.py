"""Folded networks compute what the networks compute."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models import Outputs
from jaxkd.models.layers import BatchNorm


def settle(tree: Any, seed: int = 0) -> Any:
    """Statistics and scales as after training: away from zero and one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.3 * rng.random(leaf.shape, np.float32), tree)


@pytest.mark.parametrize(
    ("name", "folded_norms"),
    [
        ("resnet8", 9),
        ("wrn_16_1", 6),
        ("vgg8", 5),
        pytest.param("ShuffleV1", 49, marks=pytest.mark.slow),  # its grouped convolutions: below
    ],
)
def test_a_folded_network_has_the_same_logits_and_features(name: str, folded_norms: int) -> None:
    network = models.create(name, num_classes=5)
    variables = settle(models.initialize(network, seed=0, image_shape=(16, 16, 3)))
    folded, folded_variables = models.fold(network, variables, (16, 16, 3))
    assert len(folded.norms) == folded_norms
    left = len(jax.tree.leaves(variables["batch_stats"])) // 2 - folded_norms
    assert len(jax.tree.leaves(folded_variables["batch_stats"])) == 2 * left
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    plain, fast = jax.jit(network.apply)(variables, images), jax.jit(folded.apply)(folded_variables, images)
    assert plain.features.keys() == fast.features.keys()
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(fast), strict=True):
        np.testing.assert_allclose(b / np.abs(a).max(), a / np.abs(a).max(), atol=1e-5)


class Awkward(nn.Module):
    """What must not be folded (a convolution that is read twice, one that is shared), and what may."""

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        raw = nn.Conv(4, (3, 3), name="read_twice")(images)
        x = nn.relu(BatchNorm(use_running_average=True, name="of_read_twice")(raw)) + raw
        shared = nn.Conv(4, (3, 3), use_bias=False, name="shared")
        x = BatchNorm(use_running_average=True, name="of_shared_1")(shared(x))
        x = BatchNorm(use_running_average=True, name="of_shared_2")(shared(nn.relu(x)))
        x = nn.Conv(4, (3, 3), feature_group_count=2, name="with_bias")(x)
        x = nn.BatchNorm(use_running_average=True, use_scale=False, epsilon=1e-3, name="flax")(x)
        return Outputs(x.mean((1, 2)), {})


def test_only_what_a_batch_norm_alone_reads_is_folded() -> None:
    network = Awkward()
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = settle(network.init(jax.random.key(1), images))
    folded, folded_variables = models.fold(network, variables, (8, 8, 3))
    assert folded.norms == {("flax",)}
    assert folded.convolutions == {("with_bias",)}
    np.testing.assert_allclose(
        folded.apply(folded_variables, images).logits, network.apply(variables, images).logits, rtol=1e-5
    )
