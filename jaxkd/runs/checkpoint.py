"""Checkpoints of a run: verified when written and when read; a damaged one is named and set aside.

A checkpoint is a folder, named after its step: `state` holds the arrays, `about.json` the files' digests. It
appears under that name when it is complete and has been read back, and only then an older one is removed.
Saving is synchronous: the states are small, and a save that fails stops the run at once instead of vanishing
in a thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.serialization
import jax
import numpy as np

from jaxkd.differences import describe_differences, differing_keys
from jaxkd.storage import (
    UNFINISHED,
    DamagedError,
    check_files,
    file_digests,
    first_line,
    load_tree,
    read_json,
    remove_unfinished,
    replacing,
    save_tree,
    write_json,
)

logger = logging.getLogger("jaxkd")

_STATE, _ABOUT = "state", "about.json"


class Stepped(Protocol):
    """A tree of arrays, a `flax.struct.dataclass`, that knows how many updates were made."""

    @property
    def step(self) -> jax.Array:
        """The number of updates."""
        ...


State = TypeVar("State", bound=Stepped)


class Contents(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: of the state.
      state: nested dictionaries of NumPy arrays; `fit` makes a state of them.
      identity: what decides on the result of the run that saved it.
      digest: of all files of it.
    """

    step: int
    state: dict[str, Any]
    identity: dict[str, Any]
    digest: str


class Checkpoints:
    """The checkpoints of one run; a step's state is all that is needed to go on from it.

    Arrays are saved as NumPy, so a checkpoint from eight devices restores on one and back.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], keep: int = 2) -> None:
        """The checkpoints in `folder`; `identity` is stored with each and compared on restore."""
        self._folder = folder
        self._identity = json.loads(json.dumps(dict(identity)))
        self._keep = keep

    def save(self, state: State) -> int:
        """Saves a state, unless its step is saved already, and returns its step.

        Raises:
          OSError: it could not be written; what was saved before is still there.
        """
        host = jax.device_get(state)
        step = int(host.step)
        if step not in saved_steps(self._folder):
            try:
                self._write(self._folder / str(step), flax.serialization.to_state_dict(host))
            except (OSError, DamagedError) as error:
                raise OSError(f"checkpoint {self._folder}/{step} could not be saved: {error}") from error
            for old in saved_steps(self._folder)[: -self._keep]:
                # Unnamed first: a kill in between leaves no half of a checkpoint that looks like one.
                shutil.rmtree((self._folder / str(old)).rename(self._folder / f".{old}{UNFINISHED}gone"))
        return step

    def _write(self, folder: Path, state: dict[str, Any]) -> None:
        with replacing(folder, lambda _: False) as new:
            save_tree(new / _STATE, state)
            about = {"files": file_digests(new), "identity": self._identity}
            write_json(new / _ABOUT, {**about, "digest": _digest(about)})

    def restore_latest(self, like: State) -> State | None:
        """The newest good state, as NumPy arrays; None if nothing was ever saved.

        Damaged checkpoints that are newer are set aside as `damaged-STEP`, where they stand in nobody's way;
        what a killed process left unfinished is removed.

        Raises:
          ValueError: a checkpoint is of another run, or there are some and all of them are damaged.
        """
        remove_unfinished(self._folder)
        found, damaged = read_newest(self._folder)
        if found is None:
            if damaged:
                raise ValueError(
                    f"all checkpoints in {self._folder} are damaged (steps {damaged}); "
                    "move that folder away to begin from step 0"
                )
            return None
        if different := differing_keys(found.identity, self._identity):
            raise ValueError(
                f"checkpoint {self._folder}/{found.step} is of another run; "
                f"{describe_differences(different)}. Choose another folder with --run"
            )
        state = fit(found, like, f"{self._folder}/{found.step}")
        for step in damaged:
            (self._folder / str(step)).rename(self._folder / f"damaged-{step}-{time.time_ns()}")
        return state

    def latest_step(self) -> int | None:
        """The newest step that is saved; None if there is none."""
        return max(saved_steps(self._folder), default=None)


def describe_newest(step: int | None) -> str:
    """Words for what is saved if `step` is the newest.

    >>> describe_newest(None), describe_newest(20)
    ('there is no checkpoint yet', 'the last good checkpoint is step 20')
    """
    return "there is no checkpoint yet" if step is None else f"the last good checkpoint is step {step}"


def saved_steps(folder: Path) -> list[int]:
    """The steps that are named in a folder of checkpoints, in order, good or not."""
    if not folder.is_dir():
        return []
    # Not glob: it takes a folder that may not be read for an empty one.
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def read_newest(folder: Path) -> tuple[Contents | None, list[int]]:
    """The newest checkpoint that is not damaged, if there is one, and the steps of damaged ones before it."""
    damaged: list[int] = []
    for step in reversed(saved_steps(folder)):
        try:
            return _read(folder / str(step)), damaged
        except (OSError, DamagedError) as error:
            logger.warning("skipping checkpoint %s/%d: %s", folder, step, first_line(error))
            damaged.append(step)
    return None, damaged


def _read(folder: Path) -> Contents:
    about = read_json(folder / _ABOUT)
    if not isinstance(about, dict) or about.pop("digest", None) != (digest := _digest(about)):
        raise DamagedError(f"{folder / _ABOUT} is damaged: its contents do not have its digest")
    check_files(folder, about["files"])
    state = load_tree(folder / _STATE, None)
    if (step := int(state["step"])) != int(folder.name):
        raise DamagedError(f"{folder} is misnamed: it holds step {step}")
    return Contents(step, state, about["identity"], digest)


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def fit(contents: Contents, like: State, name: str) -> State:
    """The state of a checkpoint, of the structure of `like`.

    Raises:
      ValueError: its arrays are others; some that differ are named.
    """
    wanted, stored = (_shapes(tree) for tree in (flax.serialization.to_state_dict(like), contents.state))
    if different := differing_keys(stored, wanted):
        some = dict(list(different.items())[:3])
        raise ValueError(
            f"checkpoint {name} does not fit these networks, this method, or this version of jaxkd; "
            f"{describe_differences(some)}. Choose another folder with --run"
        )
    state: State = flax.serialization.from_state_dict(like, contents.state)
    return state


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in leaves
    }
