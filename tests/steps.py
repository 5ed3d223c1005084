"""A small task and a few of its steps, for the tests of the step and of checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import helpers
import jax
import numpy as np
import optax

from jaxkd import data, methods, models
from jaxkd.data.batch import Batch
from jaxkd.data.order import batches
from jaxkd.devices import replicate, share
from jaxkd.methods import Method
from jaxkd.models.network import AXIS
from jaxkd.models.resnet import BasicBlock, ResNet
from jaxkd.training import Frozen, Task, initial_state
from jaxkd.training.mapped import mapped_train_step
from jaxkd.training.optimizers import sgd

BATCH = 16


def small_resnet(dataset: data.Dataset, **options: Any) -> ResNet:
    """A ResNet with all that a ResNet has, and the least to compile."""
    return ResNet(BasicBlock, (1, 1), stem=4, widths=(4, 8), num_classes=dataset.num_classes, **options)


def network(dataset: data.Dataset, **options: Any) -> models.Network:
    """A student, with batch statistics over all devices."""
    made = models.from_linen(small_resnet(dataset, **options))
    return made.normalized(dataset.mean, dataset.std).on_axis(AXIS)


def task(dataset: data.Dataset, method: str | Method = "atkd", **changes: Any) -> Task:
    chosen = methods.create(method) if isinstance(method, str) else method
    teacher = models.from_linen(helpers.Tiny(width=9)).normalized((0.4,), (0.3,))
    made = Task(
        student=network(dataset),
        teacher=teacher if chosen.reads else None,
        method=chosen,
        optimizer=sgd(optax.constant_schedule(0.05)),
        augmentations=tuple((view, dataset.augmentation) for view in chosen.views),
        seed=0,
        num_epochs=10,
        steps_per_epoch=-(-len(dataset.splits["train"]) // BATCH),
    )
    return dataclasses.replace(made, **changes)


def plain(**changes: Any) -> dict[str, Any]:
    """Changes to a task: no augmentation."""
    return {"augmentations": (("main", data.Identity()),), **changes}


def start(made: Task, dataset: data.Dataset) -> tuple[Any, Frozen]:
    """The state at step 0, and what does not change."""
    teacher = None if made.teacher is None else made.teacher.init(9, dataset.image_shape)
    state = initial_state(made, dataset.image_shape, teacher=teacher)
    return jax.device_get(state), Frozen(teacher)


def run(
    made: Task,
    dataset: data.Dataset,
    num_devices: int,
    num_steps: int,
    per_call: int = 1,
    cached: Callable[[np.ndarray], np.ndarray] | None = None,
    mapping: Any = "pmap",
) -> tuple[Any, list]:
    """Runs some steps and returns the state and each step's mean loss."""
    devices = jax.local_devices()[:num_devices]
    step = mapped_train_step(made, devices, mapping)
    train = dataset.splits["train"]
    state, frozen, resident = replicate((*start(made, dataset), (train.images, train.labels)), devices)
    ids = np.concatenate(
        [batches(data.epoch_order(len(train), seed=0, epoch=epoch), BATCH) for epoch in range(1, 20)]
    )[:num_steps]
    losses, before = [], (0.0, 0.0)
    for first in range(0, num_steps, per_call):
        shared = share(ids[first : first + per_call], num_devices)
        logits = None if cached is None else cached(shared)
        state = step(state, frozen, resident, Batch(shared, teacher_logits=logits))
        loss = state.tally.losses["loss"]
        sums = float(loss.total), float(loss.count)
        if first % made.steps_per_epoch == 0:
            before = (0.0, 0.0)
        losses.append((sums[0] - before[0]) / (sums[1] - before[1]))
        before = sums
    return jax.device_get(state), losses
