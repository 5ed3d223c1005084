"""Describes what a run is about to do, before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxkd import models
from jaxkd.data import Dataset, Split
from jaxkd.runs.config import RunConfig
from jaxkd.training import Recipe, Task, TrainState


def announce(
    task: Task,
    dataset: Dataset,
    state: TrainState,
    teacher_variables: Any,
    *,
    recipe: Recipe | None,
    config: RunConfig,
    devices: Sequence[jax.Device],
) -> list[str]:
    """Lines on how a batch is split, on the learning rate, and on the memory of each device.

    Args:
      task: the run's constants.
      dataset: with the split "train".
      state: the initial state.
      teacher_variables: the teacher's variables; None without a teacher.
      recipe: the optimiser's recipe; None for a user's own optimiser.
      config: the run's options.
      devices: the devices of all processes.
    """
    share = config.batch_size // len(devices)
    processes = len({device.process_index for device in devices})
    batch = f"batch {config.batch_size} = {len(devices)} x {share}"
    if task.accumulate > 1:
        batch += f", each in {task.accumulate} micro-batches of {share // task.accumulate}"
    over = "the global batch" if config.batch_norm == "global" else "each device's examples"
    if task.accumulate > 1:
        over += ", one micro-batch at a time"
    learns = "own optimizer"
    if recipe is not None:
        learns = f"{recipe.optimizer}, learning rate {recipe.learning_rate:g}, not scaled with the batch"
    train = dataset.splits["train"]
    data = train.images.nbytes if isinstance(train, Split) and not config.stream else 0
    memory = {
        "parameters": _bytes((state.params, state.network, state.method, state.average)),
        "optimizer": _bytes(state.opt_state),
        "teacher": _bytes(teacher_variables),
        "training images": data,
    }
    parts = ", ".join(f"{what} {megabytes(size)}" for what, size in memory.items() if size)
    return [
        f"{batch} on {len(devices)} x {devices[0].device_kind} of {_many(processes, 'process')}; "
        f"{task.total_steps:,} updates; {learns}; {config.precision}; batch norm over {over}",
        f"on each device: {parts}{'' if data else '; images are streamed'} (activations not counted)",
    ]


def cost(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> str:
    """A network's size and multiply-adds, in words; only its name if it is not in `models.names()`.

    >>> cost("resnet8", 100, (32, 32, 3))
    'resnet8 (83,892 parameters, 12.5 million multiply-adds an image)'
    """
    if name not in models.names():
        return name
    about = models.describe(name, num_classes, image_shape)
    return f"{name} ({about.parameters:,} parameters, {about.macs / 1e6:.1f} million multiply-adds an image)"


def megabytes(size: int) -> str:
    """A number of bytes, as text.

    >>> megabytes(1_250_000), megabytes(400)
    ('1.2 MB', '0.0 MB')
    """
    return f"{size / 1e6:,.1f} MB"


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 'es'}"
