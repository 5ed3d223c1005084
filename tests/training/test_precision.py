"""Accumulated gradients, batch norm by device, and activations of 16 bits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.training.dynamic_scale import DynamicScale
from steps import BATCH, run, task

import jaxkd
from jaxkd import data, models
from jaxkd.config import TrainConfig
from jaxkd.data.order import batches
from jaxkd.training.loss_scale import LossScale
from jaxkd.training.parallel import pmapped_train_step, replicate, share
from jaxkd.training.run import initial_state
from jaxkd.training.step import AXIS, Batch, Network

STEPS = 3  # 40 images in batches of 16: the third batch holds 8 examples


def plain(
    dataset: data.Dataset, *, dtype: Any = jnp.float32, axis_name: str | None = AXIS, **changes: Any
) -> Any:
    """A task on labels alone, without views."""
    student = models.create("resnet8", dataset.num_classes, dtype, axis_name=axis_name)
    student = Network(student, dataset.mean, dataset.std)
    return task(dataset, method=None, view=data.View(0, False), student=student, **changes)


def reference(dataset: data.Dataset, parts_of: Any) -> tuple[Any, Any]:
    """Three updates, written out: parameters and running statistics.

    `parts_of` cuts the places of a batch into groups in parallel, each a list of groups one after the other.
    """
    made = plain(dataset)
    state = jax.device_get(initial_state(made, dataset))
    network = models.create("resnet8", dataset.num_classes)
    train = dataset.splits["train"]
    order = batches(data.epoch_order(len(train), seed=0, epoch=1), BATCH)

    @jax.jit
    def part_gradient(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            out, updates = network.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
            )
            own = jnp.take_along_axis(jax.nn.log_softmax(out.logits), labels[:, None], axis=1)
            return -own.sum(), updates["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    params, stats = state.params["student"], state.batch_stats
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
    assert_close(state.batch_stats, stats, rtol=1e-4, atol=1e-5)
    assert float(state.tally["examples"]) == 40


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
    made = plain(dataset, axis_name=None, batch_norm="device")
    state, _ = run(made, dataset, 2, STEPS)
    params, stats = reference(dataset, lambda ids: [[ids[:8]], [ids[8:]]])
    assert_close(state.params["student"], params, atol=2e-5)
    assert_close(state.batch_stats, stats, rtol=1e-4, atol=1e-5)
    together, _ = run(plain(dataset), dataset, 2, STEPS)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, together.params)
    assert max(jax.tree.leaves(apart)) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_only_activations_have_sixteen_bits(dtype: Any) -> None:
    dataset = helpers.tiny_dataset()
    made = plain(dataset, dtype=dtype)
    state, losses = run(made, dataset, 1, 9)
    _, exact = run(plain(dataset), dataset, 1, 9)
    for leaf in jax.tree.leaves((state.params, state.batch_stats, state.opt_state)):
        assert leaf.dtype in (np.float32, np.int32)
    outputs = made.student.apply(
        {"params": state.params["student"], "batch_stats": state.batch_stats},
        dataset.splits["test"].images[:2],
    )
    assert outputs.features["stage2"].dtype == dtype
    assert outputs.logits.dtype == jnp.float32
    assert losses != exact
    np.testing.assert_allclose(losses[:3], exact[:3], rtol=0.1)
    assert (state.loss_scale is not None) == (dtype == jnp.float16)
    assert int(state.tally["nonfinite_step"]) == -1


@pytest.mark.parametrize(("scale", "nonfinite_step"), [(2.0**120, -1), (1.0, 0)])
def test_an_overflow_leaves_out_the_update_while_the_scale_can_fall(
    scale: float, nonfinite_step: int
) -> None:
    """A gradient overflows because of the scale, or in spite of it."""
    dataset = helpers.tiny_dataset()
    made = plain(dataset, dtype=jnp.float16)
    state = jax.device_get(initial_state(made, dataset))
    state = dataclasses.replace(
        state, loss_scale=dataclasses.replace(state.loss_scale, scale=np.float32(scale))
    )
    if scale == 1.0:
        head = state.params["student"]["fc"]
        head["kernel"] = head["kernel"] * np.float32(
            1e8
        )  # the loss stays finite, its gradient in float16 not
    devices = jax.local_devices()[:1]
    train = dataset.splits["train"]
    ids = batches(data.epoch_order(len(train), seed=0, epoch=1), BATCH)[:1]
    resident = replicate((train.images, train.labels), devices)
    step = pmapped_train_step(made, devices)
    after = jax.device_get(step(replicate(state, devices), None, resident, Batch(share(ids, 1))))
    assert int(after.tally["nonfinite_step"]) == nonfinite_step
    assert np.isfinite(after.tally["loss"])
    if nonfinite_step < 0:
        assert_close(after.params, state.params, rtol=0)
        assert float(after.loss_scale.scale) == scale / 2
        assert int(after.loss_scale.skipped_steps) == 1
        counts = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.dtype == np.int32]
        assert counts == [1]  # the learning rate goes by the step


def test_the_scale_follows_the_rule_of_flax() -> None:
    own, flax = LossScale.initial(), DynamicScale(minimum_scale=1.0)
    own = dataclasses.replace(own, finite_steps=jnp.int32(1995))
    flax = flax.replace(fin_steps=1995)
    for step in range(40):
        finite = step not in (9, 20, 21)
        own = own.adjust(jnp.array(finite))
        flax = flax.value_and_grad(lambda x, f=finite: x * (1.0 if f else jnp.inf))(1.0).dynamic_scale
        assert float(own.scale) == float(flax.scale)
        assert int(own.finite_steps) == int(flax.fin_steps)
    assert int(own.skipped_steps) == 3
    for _ in range(40):
        own = own.adjust(jnp.array(False))
    assert float(own.scale) == 1.0
    assert bool(own.is_exhausted(jnp.array(False)))
    assert not bool(own.is_exhausted(jnp.array(True)))


def test_a_batch_that_cannot_be_cut_into_parts_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a batch of 16 on 2 devices cannot be accumulated from 3 equal parts"
    ):
        share(np.arange(16), 2, 3)


def test_a_run_with_all_of_it_records_the_scale_and_is_bound_to_its_devices(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset(num_train=16)
    config = TrainConfig(
        model="resnet8", run=tmp_path, epochs=1, batch_size=16, devices=2, eval_batch_size=32,
        precision="float16", accumulate=2, batch_norm="device",
    )  # fmt: skip
    jaxkd.train(config, dataset, say=lambda _: None)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss_scale"] in (65536.0, 32768.0)
    state = ocp.StandardCheckpointer().restore(tmp_path / "checkpoints" / "1" / "state")
    assert float(state["loss_scale"]["scale"]) == first["loss_scale"]
    with pytest.raises(ValueError, match=r"different: batch_norm_devices \(there 2, here 1\)"):
        jaxkd.train(dataclasses.replace(config, devices=1), dataset, say=lambda _: None)
    with pytest.raises(ValueError, match=r"precision \(there float16, here float32\)"):
        jaxkd.train(dataclasses.replace(config, precision="float32"), dataset, say=lambda _: None)
