"""NaN and infinity: the report, the evidence to reproduce the step, and the search for the source.

The step itself detects them on the device and stores its number in the state's tally; this module does the
rest.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data import Split, StreamedSplit, epoch_order
from jaxkd.data.batch import Batch, fetch
from jaxkd.data.order import batches
from jaxkd.metrics import Mean
from jaxkd.models.network import AXIS
from jaxkd.training import Frozen, Tally, Task, TrainState, train_step


class NonFiniteError(FloatingPointError):
    """A loss, an update, or the teacher's output was NaN or infinite."""


class Trouble(NamedTuple):
    """The first step of an epoch with a value that was not finite.

    Attributes:
      step: its number, from 0.
      term: a description of what was not finite.
      remedy: a description of what may help.
    """

    step: int
    term: str
    remedy: str


def find(tally: Tally) -> Trouble | None:
    """The first trouble that a tally records; None if all values were finite."""
    step = int(tally.nonfinite_step)
    if step < 0:
        return None
    if tally.nonfinite_teacher:
        return Trouble(
            step,
            f"the teacher's logits are NaN or infinite for {int(tally.nonfinite_teacher)} examples",
            "check the teacher's weights and its normalisation with `jaxkd evaluate`; if the "
            "teacher excludes classes with -inf, wrap it with teachers.from_function and replace them by a "
            "finite number such as -1e4",
        )
    means = {name: metric for name, metric in tally.losses.items() if isinstance(metric, Mean)}
    names = [name for name, mean in means.items() if not np.isfinite(mean.total)]
    names = [name for name in names if name != "loss"] or names
    term = f"the loss is NaN or infinite (term: {', '.join(names)})"
    if not names:
        term = "the update of the parameters or statistics is NaN or infinite, though the loss is not"
    return Trouble(step, term, "lower --learning-rate")


def batch_ids(step: int, *, num_examples: int, batch_size: int, seed: int) -> list[int]:
    """The ids of the examples that a step of a run sees, in order.

    >>> batch_ids(3, num_examples=5, batch_size=2, seed=0) == epoch_order(5, seed=0, epoch=2)[:2].tolist()
    True
    """
    epoch, place = divmod(step, -(-num_examples // batch_size))
    order = epoch_order(num_examples, seed=seed, epoch=epoch + 1)
    return [int(i) for i in batches(order, batch_size)[place] if i >= 0]


def evidence(
    trouble: Trouble,
    task: Task,
    tally: Tally,
    split: Split | StreamedSplit,
    batch_size: int,
) -> dict[str, Any]:
    """The evidence to reproduce the step, ready for JSON.

    Args:
      trouble: the trouble found.
      task: the run's constants.
      tally: the sums of the epoch so far.
      split: the training split.
      batch_size: over all devices.
    """
    means = {name: metric for name, metric in tally.losses.items() if isinstance(metric, Mean)}
    ids = batch_ids(trouble.step, num_examples=len(split), batch_size=batch_size, seed=task.seed)
    return {
        "step": trouble.step,
        "epoch": trouble.step // task.steps_per_epoch + 1,
        "seed": task.seed,
        "trouble": trouble.term,
        "ids": ids,
        "labels": split.labels_of(ids),
        "sums_of_the_epoch": {name: as_json(float(metric.total)) for name, metric in means.items()},
    }


def where_it_arises(task: Task, state: TrainState, frozen: Frozen, resident: Any, batch: Batch) -> list[str]:
    """Repeats one step, one operation at a time and without jit, and names the first that is not finite.

    Args:
      task: the run's constants.
      state: the state before the step.
      frozen: the arrays that do not change.
      resident: the argument of `fetch`.
      batch: the shards of all devices, `[D, B / D, ...]`; they are computed together on one device.

    Returns:
      A line for NaN and a line for infinity, each with the operation and its place in the code.  Code that
      uses infinity on purpose is named too.
    """
    state, frozen, resident, batch = jax.tree.map(
        jnp.asarray, jax.device_get((state, frozen, resident, batch))
    )

    def step(share: Batch) -> TrainState:
        return train_step(task, state, frozen, fetch(resident, share))

    mapped = jax.vmap(step, axis_name=AXIS, out_axes=None)
    checks: dict[str, Callable[[bool], Any]] = {"NaN": jax.debug_nans, "infinity": jax.debug_infs}
    found = []
    for what, check in checks.items():
        try:
            with jax.disable_jit(), check(True):
                mapped(batch)
        except FloatingPointError as error:
            found.append(f"{what} first: {error}\n{_place(error)}")
        else:
            found.append(f"{what}: none, one operation at a time")
    return found


def _place(error: BaseException) -> str:
    """The last lines of code, outside jax, that led to an error."""
    inside_jax = str(Path(jax.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside_jax)]
    return "\n".join(f"    {frame.filename}:{frame.lineno} {frame.line}" for frame in frames[-4:])


def as_json(value: float) -> float | str:
    """A number as JSON, which has neither NaN nor infinity.

    >>> as_json(0.5), as_json(float("nan"))
    (0.5, 'nan')
    """
    return float(value) if np.isfinite(value) else str(float(value))
