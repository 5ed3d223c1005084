"""Starts a run from another run's checkpoint, with its own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization

from jaxkd.differences import differing_keys
from jaxkd.runs.checkpoint import Contents, fit, read_newest, saved_steps
from jaxkd.runs.record import recorded
from jaxkd.training import Task, TrainState

# These determine the examples of each step: if they differ, steps of the two runs do not correspond.
_SAME = ("data_digest", "batch_size")


def open_fork(other: Path, folder: Path) -> tuple[dict[str, Any] | None, Contents | None]:
    """Finds the starting point of the run in `folder`.

    Args:
      other: the folder of the run to start from.
      folder: the folder of the new run.

    Returns:
      The origin (`step` and `digest`), for the record; and the other run's newest good checkpoint, which is
      None if the new run has its own checkpoint to resume from: the other run may no longer exist.

    Raises:
      ValueError: the other run has no good checkpoint or is the same run, or the new run exists and is not a
        fork.
    """
    if other.resolve() == folder.resolve():
        raise ValueError(f"--fork {other} is the run's own folder; choose another one with --run")
    if saved_steps(folder / "checkpoints") and (config := recorded(folder).config) is not None:
        origin = config["identity"].get("forked_from")
        if origin is None:
            raise ValueError(f"{folder} holds a run that is not a fork; choose another folder with --run")
        return origin, None
    found, damaged = read_newest(other / "checkpoints")
    if found is None:
        why = f"all of its checkpoints are damaged (steps {damaged})" if damaged else "it has none"
        raise ValueError(f"--fork {other} needs a run with a checkpoint, and {why}")
    return {"step": found.step, "digest": found.about.digest}, found


def graft(found: Contents, start: TrainState, identity: Mapping[str, Any], task: Task) -> TrainState:
    """Turns a checkpoint's state into the initial state of another run; resets the sums of its epoch.

    Args:
      found: the checkpoint.
      start: the new run's state at step 0.
      identity: the new run's identity.
      task: the new run's task.

    Raises:
      ValueError: networks, data or batch size differ, or the new run would already be complete.
    """
    of_both = {key: found.about.identity.get(key) for key in _SAME}, {key: identity[key] for key in _SAME}
    if different := differing_keys(*of_both):
        raise ValueError(
            f"--fork needs the same data and --batch-size, but these differ: "
            f"{', '.join(f'{key} (there {a}, here {b})' for key, (a, b) in different.items())}"
        )
    total_steps = task.total_steps
    if found.step >= total_steps:
        raise ValueError(
            f"--fork would start at step {found.step}, and the run ends at step {total_steps}: raise --epochs"
        )
    state = {**found.state, "tally": flax.serialization.to_state_dict(start.tally)}
    return fit(found._replace(state=state), start, f"of step {found.step}")
