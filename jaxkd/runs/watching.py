"""Monitoring a run with other tools: a profiler trace of some steps, and Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxkd._extras import require


class Profiler:
    """Traces the first steps after compilation with `jax.profiler`; does nothing for zero steps."""

    def __init__(self, folder: Path, num_steps: int | None, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._left = num_steps or 0
        self._running = False
        self._say = say

    def before(self) -> None:
        """Starts the trace; called before each step that is already compiled."""
        if self._left > 0 and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, num_steps: int, result: Any) -> None:
        """Ends the trace after enough steps; waits for `result` so that they are in it."""
        if not self._running:
            return
        self._left -= num_steps
        if self._left <= 0:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends the trace, if there is one; says if there should have been one."""
        if self._left > 0 and not self._running:
            self._say("--profile: no trace, since no step came after those that compiled; raise --epochs")
        self._left = 0
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._say(f"trace in {self._folder}; view it with TensorBoard's profile plugin or XProf")


Log = Callable[[Mapping[str, float], int], None]


def log_to_wandb(project: str, folder: Path, config: Mapping[str, Any], *, local: Path | None = None) -> Log:
    """Opens a run on Weights & Biases, or resumes it.

    Args:
      project: the run's project.
      folder: the run's folder; its name is the run's name there.
      config: the options to show there.
      local: a local folder for its files; by default the run's.

    Returns:
      A function of the named values and the step.

    Raises:
      ImportError: wandb is not installed.
    """
    require("wandb", "wandb")
    import wandb

    # The folder identifies a run: the same folder resumes, another with the same name is another run.
    known_by = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    run = wandb.init(
        project=project,
        id=known_by,
        name=folder.name,
        dir=str(local or folder),
        config=dict(config),
        resume="allow",
        reinit="finish_previous",  # several seeds are several runs of one process
    )
    return lambda values, step: run.log(dict(values), step=step)
