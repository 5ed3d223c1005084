"""Accumulated gradients, batch norm by device, and activations of 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import BATCH, network, run, small_resnet, start, task
from steps import plain as unaugmented

import jaxkd
from jaxkd import data
from jaxkd.data.order import batches
from jaxkd.devices import share

STEPS = 3  # 40 images in batches of 16: the third batch holds 8 examples


def plain(dataset: data.Dataset, **changes: Any) -> Any:
    """A task on labels alone, without augmentation."""
    return task(dataset, "labels", **unaugmented(**changes))


def reference(dataset: data.Dataset, parts_of: Any) -> tuple[Any, Any]:
    """Three updates, written out: parameters and running statistics.

    `parts_of` cuts the places of a batch into groups in parallel, each a list of groups one after the other.
    """
    state, _ = start(plain(dataset), dataset)
    model = small_resnet(dataset)
    train = dataset.splits["train"]
    order = batches(data.epoch_order(len(train), seed=0, epoch=1), BATCH)

    @jax.jit
    def part_gradient(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            out, updates = model.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
            )
            own = jnp.take_along_axis(jax.nn.log_softmax(out.logits), labels[:, None], axis=1)
            return -own.sum(), updates["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    params, stats = state.params["student"], state.network["batch_stats"]
    trace = jax.tree.map(np.zeros_like, params)
    for ids in order[:STEPS]:
        count = int((ids >= 0).sum())
        total = jax.tree.map(np.zeros_like, params)
        averaged = jax.tree.map(np.zeros_like, stats)
        for parts in parts_of(ids):
            own_stats, seen = stats, 0
            for part in parts:
                if not (real := part[part >= 0]).size:
                    continue
                images = (train.images[real] / 255 - np.array(dataset.mean)) / np.array(dataset.std)
                gradient, own_stats = part_gradient(
                    params, own_stats, jnp.float32(images), jnp.asarray(train.labels[real])
                )
                total = jax.tree.map(np.add, total, gradient)
                seen += real.size
            averaged = jax.tree.map(
                lambda a, s, n=seen, c=count: a + s * np.float32(n / c), averaged, own_stats
            )
        stats = averaged
        trace = jax.tree.map(lambda t, g, p, n=count: 0.9 * t + g / n + 5e-4 * p, trace, total, params)
        params = jax.tree.map(lambda p, t: np.float32(p - 0.05 * t), params, trace)
    return params, stats


def assert_close(actual: Any, expected: Any, **tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_an_accumulated_update_weights_every_example_alike() -> None:
    dataset = helpers.tiny_dataset()
    state, _ = run(plain(dataset, accumulate=4), dataset, 1, STEPS)
    params, stats = reference(dataset, lambda ids: [[ids[i::4] for i in range(4)]])
    assert_close(state.params["student"], params, atol=2e-5)
    assert_close(state.network["batch_stats"], stats, rtol=1e-4, atol=1e-5)
    assert float(state.tally.losses["loss"].count) == 40


def test_parts_in_a_loop_are_the_parts_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = helpers.tiny_dataset()
    unrolled, _ = run(plain(dataset, accumulate=2), dataset, 2, STEPS)
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", lambda *args, unroll, **options: scan(*args, **options))
    looped, _ = run(plain(dataset, accumulate=2), dataset, 2, STEPS)
    assert_close(looped, unrolled, rtol=1e-4, atol=1e-5)


def test_batch_norm_by_device_sees_the_device_alone() -> None:
    """In the third batch one of the two devices holds no example; the statistics stay finite and equal."""
    dataset = helpers.tiny_dataset()
    made = plain(dataset, student=network(dataset).on_axis(None), average=True)
    state, _ = run(made, dataset, 2, STEPS)
    params, stats = reference(dataset, lambda ids: [[ids[:8]], [ids[8:]]])
    assert_close(state.params["student"], params, atol=2e-5)
    assert_close(state.network["batch_stats"], stats, rtol=1e-4, atol=1e-5)
    together, _ = run(plain(dataset), dataset, 2, STEPS)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, together.params)
    assert max(jax.tree.leaves(apart)) > 1e-3


def test_only_activations_have_sixteen_bits() -> None:
    dataset = helpers.tiny_dataset()
    made = plain(dataset, student=network(dataset, dtype=jnp.bfloat16))
    state, losses = run(made, dataset, 1, 9)
    _, exact = run(plain(dataset), dataset, 1, 9)
    for leaf in jax.tree.leaves((state.params, state.network, state.opt_state)):
        assert leaf.dtype in (np.float32, np.int32)
    outputs, _ = made.student.apply(state.student, jnp.asarray(dataset.splits["test"].images[:2]))
    assert outputs.features["stage2"].dtype == jnp.bfloat16
    assert outputs.logits.dtype == jnp.float32
    assert losses != exact
    np.testing.assert_allclose(losses[:3], exact[:3], rtol=0.1)
    assert int(state.tally.nonfinite_step) == -1


def test_a_batch_that_cannot_be_cut_into_parts_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a batch of 16 on 2 devices cannot be cut into 3 equal micro-batches"
    ):
        share(np.arange(16), 2, 3)


def test_a_run_with_all_of_it_is_bound_to_its_devices(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset(num_train=16)
    options: dict[str, Any] = {"model": "resnet8", "run": tmp_path, "epochs": 1, "batch_size": 16}
    options |= {"eval_batch_size": 32, "accumulate": 2, "batch_norm": "device", "say": helpers.silent}
    jaxkd.train(data=dataset, devices=2, precision="bfloat16", **options)
    with pytest.raises(ValueError, match=r"different: batch_norm_devices \(there 2, here 1\)"):
        jaxkd.train(data=dataset, devices=1, precision="bfloat16", **options)
    with pytest.raises(ValueError, match=r"precision \(there bfloat16, here float32\)"):
        jaxkd.train(data=dataset, devices=2, **options)
    with pytest.raises(ValueError, match="--precision must be float32 or bfloat16, got 'float16'"):
        jaxkd.train(data=dataset, devices=2, precision="float16", **options)
