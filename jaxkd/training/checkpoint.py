"""Checkpoints of a run: saved by Orbax, verified on restore; a damaged one is named and skipped."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxkd.storage import of_this_process_alone, tree_digest
from jaxkd.training.state import TrainState

logger = logging.getLogger("jaxkd")


class Checkpoints:
    """The checkpoints of one run; a step's state is all that is needed to go on from it.

    Arrays are saved as NumPy, so a checkpoint from eight devices restores on one and back.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], keep: int = 2) -> None:
        """Opens `folder`; `identity` is stored with each checkpoint and compared on restore."""
        self._identity = dict(identity)
        self._folder = folder
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        alone = of_this_process_alone()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            enable_async_checkpointing=False,
            multiprocessing_options=alone,
            create=False,
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        handlers: dict[str, Any] = {
            "state": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            "about": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        }
        return ocp.CheckpointManager(self._folder.absolute(), options=options, item_handlers=handlers)

    def save(self, state: TrainState) -> int:
        """Saves a state, unless its step is saved already, and returns its step."""
        host = jax.device_get(state)
        step = int(host.step)
        if step not in self._manager.all_steps():
            about = {"digest": tree_digest(host), "identity": self._identity}
            items = ocp.args.Composite(state=ocp.args.StandardSave(host), about=ocp.args.JsonSave(about))
            if not self._manager.save(step, args=items, force=True):
                raise OSError(f"checkpoint {self._folder}/{step} could not be saved")
        return step

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """The newest good state, as NumPy arrays; None if nothing was ever saved.

        Damaged checkpoints that are newer are set aside as `damaged-STEP`, where they stand in nobody's way.

        Raises:
          ValueError: a checkpoint is of another run, or there are some and all of them are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[int] = []
        for step in steps:
            try:
                state = self._restore(step, like)
            except _AnotherRunError as error:
                raise ValueError(str(error)) from None
            except Exception as error:
                logger.warning("skipping checkpoint %s/%d: %s", self._folder, step, _first_line(error))
                damaged.append(step)
            else:
                self._set_aside(damaged)
                return state
        if steps:
            raise ValueError(
                f"all checkpoints in {self._folder} are damaged (steps {steps}); "
                "move that folder away to begin from step 0"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            (self._folder / str(step)).rename(self._folder / f"damaged-{step}-{time.time_ns()}")
        if steps:
            self._manager.close()
            self._manager = self._open()

    def _restore(self, step: int, like: TrainState) -> TrainState:
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
        stored = about["identity"]
        if different := differing_keys(stored, self._identity):
            raise _AnotherRunError(
                f"checkpoint {self._folder}/{step} is of another run; {describe_differences(different)}. "
                "Choose another folder with --run"
            )
        target = jax.tree.map(np.asarray, like)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        state = jax.device_get(self._manager.restore(step, args=arguments).state)
        if tree_digest(state) != about["digest"]:
            raise ValueError("its contents do not match its digest")
        return state

    def latest_step(self) -> int | None:
        """The newest step that is saved; None if there is none."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


class _AnotherRunError(Exception):
    pass


def differing_keys(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two runs differ in: key to (stored, wanted).

    `stored` was read from JSON, so `wanted` is compared as JSON would give it back.

    >>> differing_keys({"seed": 0, "std": [0.2]}, {"seed": 1, "std": (0.2,)})
    {'seed': (0, 1)}
    """
    wanted = json.loads(json.dumps(dict(wanted)))
    keys = sorted({*stored, *wanted})
    return {k: (stored.get(k), wanted.get(k)) for k in keys if stored.get(k) != wanted.get(k)}


def describe_differences(different: Mapping[str, tuple[Any, Any]]) -> str:
    """Words for what `differing_keys` found.

    >>> describe_differences({"seed": (0, 1)})
    'different: seed (there 0, here 1)'
    """
    return "different: " + ", ".join(f"{key} (there {a}, here {b})" for key, (a, b) in different.items())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
