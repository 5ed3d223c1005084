"""The pure step: its mathematics, and that devices do not matter."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from steps import BATCH, network, plain, run, small_resnet, start, task

from jaxkd import data, methods, models
from jaxkd.data.batch import Batch
from jaxkd.data.order import batches
from jaxkd.devices import replicate, share
from jaxkd.metrics import numbers
from jaxkd.models.network import AXIS
from jaxkd.training import Recipe, train_step
from jaxkd.training.mapped import mapped_train_step
from jaxkd.training.optimizers import by_label, sgd, steps_schedule


def test_one_and_eight_devices_give_the_same_losses_over_twenty_steps() -> None:
    # 40 images in batches of 16: the last batch of each epoch leaves four devices without an example.
    # A small rate: at 0.05 on so little data rounding grows a hundredfold every ten steps, on any machine.
    dataset = helpers.tiny_dataset()
    teacher = models.from_linen(small_resnet(dataset)).normalized((0.4,), (0.3,))
    made = task(dataset, optimizer=sgd(optax.constant_schedule(0.003)), teacher=teacher)
    one, losses_of_one = run(made, dataset, 1, 20)
    eight, losses_of_eight = run(made, dataset, 8, 20)
    np.testing.assert_allclose(losses_of_eight, losses_of_one, rtol=1e-4)
    assert losses_of_one[-1] < 0.7 * losses_of_one[0]
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_the_step_returns_a_state_that_lies_where_the_first_one_lay(count: int) -> None:
    # Else the second call compiles the program once more.
    dataset, devices = helpers.tiny_dataset(), jax.devices()[:count]
    made = task(dataset, "labels")
    train = dataset.splits["train"]
    state, frozen, resident = replicate((*start(made, dataset), (train.images, train.labels)), devices)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    ids = share(np.arange(BATCH, dtype=np.int32)[None], count)
    after = mapped_train_step(made, devices)(state, frozen, resident, Batch(ids))
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == before


def test_several_steps_in_one_call_are_the_same_steps() -> None:
    dataset = helpers.tiny_dataset()
    made = task(dataset)
    single, _ = run(made, dataset, 1, 6)
    scanned, _ = run(made, dataset, 1, 6, per_call=3)
    assert int(scanned.step) == 6
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_same_body_works_under_shard_map() -> None:
    dataset = helpers.tiny_dataset()
    made = task(dataset, "labels")
    train = dataset.splits["train"]
    ids = batches(data.epoch_order(len(train), seed=0, epoch=1), BATCH)[0]
    batch = Batch(ids, train.images[ids], train.labels[ids])
    mesh = Mesh(np.array(jax.local_devices()[:4]), (AXIS,))
    everywhere = PartitionSpec()
    mapped = jax.shard_map(
        functools.partial(train_step, made),
        mesh=mesh,
        in_specs=(everywhere, everywhere, PartitionSpec(AXIS)),
        out_specs=everywhere,
        check_vma=False,  # with it, psum of gradients gives another sum (jax 0.10)
    )
    state = jax.jit(mapped)(*start(made, dataset), batch)
    expected, _ = run(made, dataset, 4, 1)
    for a, b in zip(jax.tree.leaves(expected.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_one_update_is_the_textbook_one() -> None:
    """The first update, written out: plain images, plain cross-entropy, SGD with decay."""
    dataset = helpers.tiny_dataset()
    made = task(dataset, "labels", **plain())
    state, _ = start(made, dataset)
    after, losses = run(made, dataset, 1, 1)
    train = dataset.splits["train"]
    ids = data.epoch_order(len(train), seed=0, epoch=1)[:BATCH]
    images = (train.images[ids] / 255 - np.array(dataset.mean)) / np.array(dataset.std)
    model = small_resnet(dataset)

    def loss(params: Any) -> jax.Array:
        out, _ = model.apply(
            {"params": params, **state.network}, jnp.float32(images), train=True, mutable=["batch_stats"]
        )
        picked = jax.nn.log_softmax(out.logits)[jnp.arange(BATCH), train.labels[ids]]
        return -picked.mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params["student"])
    assert losses[0] == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.05 * (g + 5e-4 * p), state.params["student"], gradient)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), after.params["student"], expected)


class Watching(methods.Method):
    """Learns a scale, and reports nothing while it is initialised."""

    @nn.compact
    def __call__(self, x: methods.Inputs) -> methods.Terms:
        scale = self.param("scale", nn.initializers.ones, ())
        warm_up = max(1, x.num_epochs // 10)  # a number of Python's
        if self.is_initializing():
            return methods.Terms({})
        loss = scale * jnp.sum((x.student_logits - x.teacher_logits) ** 2, -1) / warm_up
        return methods.Terms({"watched": (loss, 1.0)}, {"scale": methods.Mean.of(scale, x.where)})


def test_a_method_may_learn_and_look_at_its_progress() -> None:
    state, _ = run(task(helpers.tiny_dataset(), Watching()), helpers.tiny_dataset(), 1, 2)
    assert numbers(state.tally.losses)["watched"] > 0
    assert numbers(state.tally.metrics)["scale"] != 1
    assert float(state.params["method"]["scale"]) != 1


def test_labels_choose_the_optimiser_of_a_parameter() -> None:
    dataset = helpers.tiny_dataset()
    chosen = {"student": sgd(0.01), "student/fc": optax.adam(1e-3), "method": optax.set_to_zero()}
    made = task(dataset, Watching(), optimizer=by_label(chosen))
    before, _ = start(made, dataset)
    after, _ = run(made, dataset, 1, 1)
    assert float(after.params["method"]["scale"]) == 1
    head = np.abs(after.params["student"]["fc"]["bias"] - before.params["student"]["fc"]["bias"])
    np.testing.assert_allclose(head, 1e-3, rtol=1e-2)  # Adam's first step
    with pytest.raises(ValueError, match=r"parameter method/scale has no optimizer: the labels are student"):
        start(task(dataset, Watching(), optimizer=by_label({"student": sgd(0.01)})), dataset)


def test_a_label_of_no_parameter_is_refused() -> None:
    dataset = helpers.tiny_dataset()
    chosen = {"student": sgd(0.01), "student/haed": optax.sgd(0.0)}
    with pytest.raises(ValueError, match="no parameter begins with student/haed; correct the label"):
        start(task(dataset, "labels", optimizer=by_label(chosen)), dataset)
    # Of "student/fc" nothing is left, but it is the beginning of both.
    parts = ("student", "student/fc", "student/fc/kernel", "student/fc/bias")
    start(task(dataset, "labels", optimizer=by_label(dict.fromkeys(parts, sgd(0.01)))), dataset)


def test_the_average_of_the_parameters_is_what_is_evaluated() -> None:
    dataset = helpers.tiny_dataset()
    made = task(dataset, "labels", ema=0.5)
    states = [start(made, dataset)[0], *(run(made, dataset, 1, count)[0] for count in (1, 2))]
    kernels = [state.params["student"]["fc"]["kernel"] for state in states]
    # The decay is 1/10 in the first step and 2/11 in the second, on the way to 0.5.
    expected = 2 / 11 * (0.1 * kernels[0] + 0.9 * kernels[1]) + 9 / 11 * kernels[2]
    np.testing.assert_allclose(states[2].student["params"]["fc"]["kernel"], expected, rtol=1e-5)
    means = [state.network["batch_stats"]["bn1"]["mean"] for state in states]
    expected = 2 / 11 * (0.1 * means[0] + 0.9 * means[1]) + 9 / 11 * means[2]
    np.testing.assert_allclose(states[2].student["batch_stats"]["bn1"]["mean"], expected, rtol=1e-5)


def test_the_average_covers_a_method_that_predicts() -> None:
    class Scaling(methods.Method):
        reads: ClassVar = ()

        @nn.compact
        def __call__(self, x: methods.Inputs) -> methods.Terms:
            return methods.Terms(
                {"ce": (methods.cross_entropy(self._scaled(x.student_logits), x.labels), 1.0)}
            )

        def predict(self, student: models.Outputs) -> jax.Array:
            return self._scaled(student.logits)

        @nn.compact
        def _scaled(self, logits: jax.Array) -> jax.Array:
            return logits * self.param("scale", nn.initializers.ones, ())

    dataset = helpers.tiny_dataset()
    made = task(dataset, Scaling(), ema=0.5)
    state = run(made, dataset, 1, 1)[0]
    raw, averaged = state.params["method"]["scale"], state.method_variables["params"]["scale"]
    np.testing.assert_allclose(averaged, 0.1 + 0.9 * raw, rtol=1e-6)
    assert averaged != raw


def test_a_step_keeps_the_types_of_the_state(double: None) -> None:
    """With float64 enabled, too; else a stopped run could not be resumed."""
    dataset = helpers.tiny_dataset()
    made = task(dataset, "atkd")
    types = [
        jax.tree.map(lambda leaf: leaf.dtype, state)
        for state in (start(made, dataset)[0], run(made, dataset, 1, 1)[0])
    ]
    assert types[0] == types[1]


def test_a_counter_in_a_network_may_grow() -> None:
    """Its square is beyond int32: only floats are looked at."""
    dataset = helpers.tiny_dataset()
    made = task(dataset, "labels", student=models.from_linen(Counting()).normalized((0.4,), (0.3,)))
    devices = jax.devices()[:1]
    train = dataset.splits["train"]
    state, frozen, resident = replicate((*start(made, dataset), (train.images, train.labels)), devices)
    state = state.replace(network={"seen": {"calls": state.network["seen"]["calls"] + 50_000}})
    ids = share(np.arange(BATCH, dtype=np.int32)[None], 1)
    after = mapped_train_step(made, devices)(state, frozen, resident, Batch(ids))
    assert int(after.network["seen"]["calls"]) == 50_001
    assert int(after.tally.nonfinite_step) == -1


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        calls = self.variable("seen", "calls", jnp.zeros, (), jnp.int32)
        if train:
            calls.value = calls.value + 1
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_runs_of_one_shape_share_their_program() -> None:
    dataset, devices = helpers.tiny_dataset(), jax.devices()[:1]
    one, other = (task(dataset, "kd", seed=seed, optimizer=sgd_of(0.05)) for seed in (0, 1))
    assert one.optimizer is other.optimizer
    functions = [mapped_train_step(made, devices).__closure__ for made in (one, other)]
    shared = [{id(cell.cell_contents) for cell in cells or ()} for cells in functions]
    assert shared[0] & shared[1]


def sgd_of(rate: float) -> optax.GradientTransformation:
    return Recipe("sgd", rate, "steps", 0, 0.9, 5e-4, 30).transformation()


def test_the_teacher_is_frozen_and_in_evaluation_mode() -> None:
    """Its output is that of its running statistics, and it does not depend on the rest of the batch."""
    dataset = helpers.tiny_dataset()
    teacher = models.from_linen(small_resnet(dataset)).normalized((0.4,), (0.3,))
    made = task(dataset, "kd", **plain(teacher=teacher))
    _, losses = run(made, dataset, 1, 1)
    train = dataset.splits["train"]
    ids = data.epoch_order(len(train), seed=0, epoch=1)[:BATCH]
    state, frozen = start(made, dataset)
    assert made.teacher is not None
    images = jnp.asarray(train.images[ids])
    t = jax.jit(lambda variables: made.teacher.apply(variables, images)[0].logits)(frozen.teacher)
    alone = network(dataset).on_axis(None)
    s = jax.jit(lambda variables: alone.apply(variables, images, train=True)[0].logits)(state.student)
    p, q = jax.nn.softmax(t / 4), jax.nn.softmax(s / 4)
    kd = 16 * (p * jnp.log(p / q)).sum(-1).mean()
    ce = -jax.nn.log_softmax(s)[jnp.arange(BATCH), train.labels[ids]].mean()
    assert losses[0] == pytest.approx(float(0.1 * ce + 0.9 * kd), rel=1e-4)


def test_the_schedule_stretches_with_the_epochs() -> None:
    schedule = steps_schedule(0.1, 80)
    rates = [float(schedule(step)) for step in (0, 49, 50, 59, 60, 69, 70, 79)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-5)


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a batch of 12 cannot be shared equally by 8 devices.*--batch-size"
    ):
        share(np.arange(12), 8)
