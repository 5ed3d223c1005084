"""Every loss on eight devices: right, without a gather of logits, and with the work divided."""

import functools

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from loss_table import ADAPTIVE, ROWS, STRUCTURAL

from jaxkd import losses

pytestmark = pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="this jax has no jax.shard_map")

# The ways that between them shard every axis, on both kinds of mesh axes and by hand.
QUICK = (
    "jit, explicit axes: batch and vocabulary",
    "jit, auto axes: batch and vocabulary",
    "shard_map: batch and vocabulary",
    "pmap: batch",
)


def check(mode, names):
    result = meshes.outcome(mode, names)
    wrong = {name: error for name, error in result.deviation.items() if not error < 2e-4}
    assert not wrong
    # Gram matrices of examples or of classes need both sides of every pair.
    if not any(ROWS[name].gram for name in names):
        assert result.moved == []
    assert result.divided > 4


def rows(mode, gram):
    excluded = meshes.WITHOUT_AXIS_NAME if meshes.MODES[mode].axis_name else ()
    return [name for name in STRUCTURAL if ROWS[name].gram == gram and name not in excluded]


@pytest.mark.parametrize("mode", QUICK)
def test_on_eight_devices(mode):
    check(mode, rows(mode, gram=False))


def test_gram_matrices_on_eight_devices():
    check("jit, explicit axes: tokens", ["class_correlation", "batch_correlation"])
    check("shard_map: batch and vocabulary", ["batch_correlation"])


TOKENS, WIDTH, CLASSES = (8, 32), 16, 256


def from_hidden(hidden, heads, labels, weights, *, axis_name=None, over=None):
    """The sum of two losses from one computation of the logits, and its gradients."""

    def total(student, head):
        def loss(shared, student, teacher, labels):
            s, t = student @ shared[0], teacher @ shared[1]
            distillation = losses.dkd(s, t, labels, axis_name=axis_name, **ADAPTIVE)
            return distillation + losses.cross_entropy(s, labels, axis_name=axis_name)

        arrays = student, hidden[1], labels
        values = losses.in_chunks(loss, *arrays, shared=(head, heads[1]), where=weights, chunk_size=64)
        return jnp.sum(values) if over is None else jax.lax.psum(jnp.sum(values), over)

    return jax.value_and_grad(total, argnums=(0, 1))(hidden[0], heads[0])


@functools.cache
def from_hidden_on_one_device():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((2, *TOKENS, WIDTH)).astype(np.float32)
    heads = rng.standard_normal((2, WIDTH, CLASSES)).astype(np.float32)
    weights = (rng.random(TOKENS) < 0.8).astype(np.float32)
    arguments = tuple(hidden), tuple(heads), rng.integers(0, CLASSES, TOKENS), weights
    program = jax.jit(from_hidden).lower(*arguments).compile(meshes.QUICK)
    return arguments, program(*arguments), program.cost_analysis()["flops"]


@pytest.mark.parametrize(
    "mode",
    [
        "explicit axes: batch and vocabulary",
        "auto axes: tokens",
        "shard_map: batch and vocabulary",
        pytest.param("explicit axes: tokens", marks=pytest.mark.slow),
        pytest.param("auto axes: batch and vocabulary", marks=pytest.mark.slow),
    ],
)
def test_from_hidden_on_eight_devices(mode):
    arguments, expected, flops = from_hidden_on_one_device()
    shape, axes = ((4, 2), ("data", "vocabulary")) if "vocabulary" in mode else ((8,), ("data",))
    of_tokens, of_heads = P("data") if "batch" in mode else P(None, "data"), P(None, *axes[1:])
    specs = (of_tokens,) * 2, (of_heads,) * 2, of_tokens, of_tokens
    if mode.startswith("shard_map"):
        mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2)
        run = functools.partial(from_hidden, axis_name="vocabulary", over="data")
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(P(), (of_tokens, of_heads)))
    else:
        kind = AxisType.Explicit if mode.startswith("explicit") else AxisType.Auto
        mesh, run = jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes)), from_hidden
        arguments = jax.tree.map(
            lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)), arguments, specs
        )
    program = jax.jit(run).lower(*arguments).compile(meshes.QUICK)
    for a, b in zip(jax.tree.leaves(program(*arguments)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    # Neither the hidden states nor the logits of a chunk move.
    assert [size for _, size in meshes.gathered(program) if size >= 64 * WIDTH] == []
    if not mode.startswith("shard_map"):  # there, a chunk is 64 tokens of each device, and counted once
        assert flops / program.cost_analysis()["flops"] > 6


@pytest.mark.slow
@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("mode", meshes.MODES)
def test_in_every_mode(mode, gram):
    check(mode, rows(mode, gram))
