"""A small task and a few of its steps, for the tests of the step and of checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jaxkd import data, methods, models
from jaxkd.data.order import batches
from jaxkd.training.optimizer import sgd
from jaxkd.training.parallel import pmapped_train_step, replicate, share
from jaxkd.training.run import initial_state
from jaxkd.training.step import AXIS, Batch, Network, Task

BATCH = 16


def task(dataset: data.Dataset, method: str | None = "atkd", **changes: Any) -> Task:
    student = models.create("resnet8", dataset.num_classes, axis_name=AXIS)
    teacher = Network(models.create("resnet14", dataset.num_classes), (0.4,), (0.3,))
    made = Task(
        student=Network(student, dataset.mean, dataset.std),
        teacher=teacher if method else None,
        method=methods.create(method) if method else None,
        optimizer=sgd(optax.constant_schedule(0.05), momentum=0.9, weight_decay=5e-4),
        view=dataset.view,
        seed=0,
        num_epochs=10,
        steps_per_epoch=-(-len(dataset.splits["train"]) // BATCH),
    )
    return dataclasses.replace(made, **changes)


def teacher_variables(dataset: data.Dataset) -> dict[str, Any]:
    return models.initialize(
        models.create("resnet14", dataset.num_classes), seed=9, image_shape=dataset.image_shape
    )


def run(
    made: Task,
    dataset: data.Dataset,
    num_devices: int,
    num_steps: int,
    per_call: int = 1,
    cached: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[Any, list]:
    """Runs some steps and returns the state and each step's mean loss."""
    devices = jax.local_devices()[:num_devices]
    step = pmapped_train_step(made, devices)
    train = dataset.splits["train"]
    state, teacher, resident = replicate(
        (
            jax.device_get(initial_state(made, dataset, teacher_variables(dataset))),
            teacher_variables(dataset),
            (train.images, train.labels),
        ),
        devices,
    )
    ids = np.concatenate(
        [batches(data.epoch_order(len(train), seed=0, epoch=epoch), BATCH) for epoch in range(1, 20)]
    )[:num_steps]
    losses, before = [], (0.0, 0.0)
    for start in range(0, num_steps, per_call):
        shared = share(ids[start : start + per_call], num_devices)
        logits = None if cached is None else cached(shared)
        state = step(state, teacher, resident, Batch(shared, teacher_logits=logits))
        sums = float(state.tally["loss"]), float(state.tally["examples"])
        if start % made.steps_per_epoch == 0:
            before = (0.0, 0.0)
        losses.append((sums[0] - before[0]) / (sums[1] - before[1]))
        before = sums
    return jax.device_get(state), losses
