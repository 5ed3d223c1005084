"""The pure step: its mathematics, and that devices do not matter."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from steps import BATCH, run, task, teacher_variables

from jaxkd import data, models
from jaxkd.data.order import batches
from jaxkd.methods import Method
from jaxkd.training.optimizer import learning_rate_schedule, sgd
from jaxkd.training.parallel import pmapped_train_step, replicate, share
from jaxkd.training.run import initial_state
from jaxkd.training.step import AXIS, Batch, Network, train_step


def test_one_and_eight_devices_give_the_same_losses_over_twenty_steps() -> None:
    # 40 images in batches of 16: the last batch of each epoch leaves four devices without an example.
    # A small rate: at 0.05 on so little data rounding grows a hundredfold every ten steps, on any machine.
    dataset = helpers.tiny_dataset()
    made = task(dataset, optimizer=sgd(optax.constant_schedule(0.003), momentum=0.9, weight_decay=5e-4))
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
    made = task(dataset, method=None)
    train = dataset.splits["train"]
    state, resident = replicate((initial_state(made, dataset), (train.images, train.labels)), devices)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    ids = share(np.arange(BATCH, dtype=np.int32)[None], count)
    after = pmapped_train_step(made, devices)(state, None, resident, Batch(ids))
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
    made = task(dataset, method=None)
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
    state = jax.jit(mapped)(initial_state(made, dataset), None, batch)
    expected, _ = run(made, dataset, 4, 1)
    for a, b in zip(jax.tree.leaves(expected.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_one_update_is_the_textbook_one() -> None:
    """The first update, written out: plain images, plain cross-entropy, SGD with decay."""
    dataset = helpers.tiny_dataset()
    made = task(dataset, method=None, view=data.View(0, False))
    state = jax.device_get(initial_state(made, dataset))
    after, losses = run(made, dataset, 1, 1)
    train = dataset.splits["train"]
    ids = data.epoch_order(len(train), seed=0, epoch=1)[:BATCH]
    images = (train.images[ids] / 255 - np.array(dataset.mean)) / np.array(dataset.std)
    network = models.create("resnet8", dataset.num_classes)

    def loss(params: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": state.batch_stats}
        out, _ = network.apply(variables, jnp.float32(images), train=True, mutable=["batch_stats"])
        picked = jax.nn.log_softmax(out.logits)[jnp.arange(BATCH), train.labels[ids]]
        return -picked.mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params["student"])
    assert losses[0] == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.05 * (g + 5e-4 * p), state.params["student"], gradient)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), after.params["student"], expected)


class Watching(Method):
    """Learns a scale, and reports nothing while it is initialised."""

    @nn.compact
    def __call__(self, student: Any, teacher: Any, labels: jax.Array, progress: Any) -> Any:
        scale = self.param("scale", nn.initializers.ones, ())
        warm_up = max(1, progress.num_epochs // 10)  # a number of Python's
        if self.is_initializing():
            return jnp.zeros(()), {}
        loss = scale * jnp.sum((student.logits - teacher.logits) ** 2, -1) / warm_up
        return loss, {"watched": loss}


def test_a_method_may_learn_and_look_at_its_progress() -> None:
    dataset = helpers.tiny_dataset()
    made = task(dataset, method="kd")
    made = dataclasses.replace(made, method=Watching(weight=1.0, ce_weight=1.0))
    state, _ = run(made, dataset, num_devices=1, num_steps=2)
    assert float(state.tally["watched"]) > 0
    assert float(state.params["method"]["scale"]) != 1


def test_the_teacher_is_frozen_and_in_evaluation_mode() -> None:
    """Its output is that of its running statistics, and it does not depend on the rest of the batch."""
    dataset = helpers.tiny_dataset()
    made = task(dataset, method="kd", view=data.View(0, False))
    _, losses = run(made, dataset, 1, 1)
    train = dataset.splits["train"]
    ids = data.epoch_order(len(train), seed=0, epoch=1)[:BATCH]
    state = initial_state(made, dataset, teacher_variables(dataset))
    teacher = made.teacher
    assert teacher is not None
    images = jnp.asarray(train.images[ids])
    t = jax.jit(teacher.apply)(teacher_variables(dataset), images).logits
    network = Network(models.create("resnet8", dataset.num_classes), dataset.mean, dataset.std)
    variables = {"params": state.params["student"], "batch_stats": state.batch_stats}
    apply = functools.partial(network.apply, train=True, mutable=["batch_stats"])
    s = jax.jit(apply)(variables, images)[0].logits
    p, q = jax.nn.softmax(t / 4), jax.nn.softmax(s / 4)
    kd = 16 * (p * jnp.log(p / q)).sum(-1).mean()
    ce = -jax.nn.log_softmax(s)[jnp.arange(BATCH), train.labels[ids]].mean()
    assert losses[0] == pytest.approx(float(0.1 * ce + 0.9 * kd), rel=1e-4)


def test_the_schedule_stretches_with_the_epochs() -> None:
    schedule = learning_rate_schedule(0.1, num_epochs=8, steps_per_epoch=10)
    rates = [float(schedule(step)) for step in (0, 49, 50, 59, 60, 69, 70, 79)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-5)


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a batch of 12 cannot be shared equally by 8 devices.*--batch-size"
    ):
        share(np.arange(12), 8)
