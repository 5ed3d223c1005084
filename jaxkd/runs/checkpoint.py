"""Checkpoints of a run: verified when written and when read; a damaged one is named and set aside.

A checkpoint is a folder, named after its step: `state` holds the arrays, `about.json` the files' digests and
the contents of the run's config.json.  It appears under that name only when it is complete and has been read
back, and only then is an older one removed.  Saving is synchronous: the states are small, and a failed save
stops the run at once instead of being lost in a thread.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.serialization
import jax
import numpy as np

from jaxkd.differences import describe_differences, differing_keys
from jaxkd.files import records
from jaxkd.files.places import is_remote
from jaxkd.files.records import OBJECT, TEXTS_BY_NAME
from jaxkd.files.whole import names_in
from jaxkd.storage import (
    DamagedError,
    at_hand,
    check_files,
    file_digests,
    first_line,
    load_tree,
    remove,
    remove_unfinished,
    replacing,
    save_tree,
)

logger = logging.getLogger("jaxkd")

T = TypeVar("T")

_STATE, _ABOUT = "state", "about.json"
_SCHEMA = records.Schema(
    "about.json of a checkpoint",
    {"files": TEXTS_BY_NAME, "identity": OBJECT, "config": OBJECT.optional()},
    checksum="digest",
)


class About(NamedTuple):
    """A checkpoint's metadata.

    Attributes:
      files: the digests of its files.
      identity: everything that determines the result of the run that saved it.
      config: the run's config.json.
      digest: the digest of all of this, and so of the checkpoint.
    """

    files: dict[str, str]
    identity: dict[str, Any]
    config: dict[str, Any]
    digest: str


class Stepped(Protocol):
    """A tree of arrays, a `flax.struct.dataclass`, with its number of updates."""

    @property
    def step(self) -> jax.Array:
        """The number of updates."""
        ...


State = TypeVar("State", bound=Stepped)


class Contents(NamedTuple):
    """A checkpoint's contents.

    Attributes:
      step: the state's step.
      state: nested dictionaries of NumPy arrays; `fit` turns them into a state.
      about: the metadata.
    """

    step: int
    state: dict[str, Any]
    about: About


class Checkpoints:
    """The checkpoints of one run; a step's state is all that is needed to resume from it.

    Arrays are saved as NumPy, so a checkpoint from eight devices restores on one and back.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        keep: int = 2,
        *,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """The checkpoints of a run.

        Args:
          folder: their folder.
          identity: everything that determines the run's result; stored with each and compared on restore.
          keep: the number of checkpoints to keep.
          config: the run's config.json, stored with each.
        """
        self._folder = folder
        self._identity = json.loads(json.dumps(dict(identity)))
        self._config = dict(config or {})
        self._keep = keep

    def save(self, state: State) -> int:
        """Saves a state, unless its step is already saved, and returns its step.

        Raises:
          OSError: it could not be written; earlier checkpoints are intact.
        """
        host = jax.device_get(state)
        step = int(host.step)
        if step not in saved_steps(self._folder):
            try:
                self._write(self._folder / str(step), flax.serialization.to_state_dict(host))
            except (OSError, DamagedError) as error:
                raise OSError(f"checkpoint {self._folder}/{step} could not be saved: {error}") from error
            for old in saved_steps(self._folder)[: -self._keep]:
                remove(self._folder / str(old))
        return step

    def _write(self, folder: Path, state: dict[str, Any]) -> None:
        with replacing(folder, lambda _: False) as new:
            save_tree(new / _STATE, state)
            about = {"files": file_digests(new), "identity": self._identity, "config": self._config}
            records.write(new / _ABOUT, _SCHEMA, about)

    def restore_latest(self, like: State) -> State | None:
        """The newest good state, as NumPy arrays; None if nothing was ever saved.

        Newer damaged checkpoints are set aside as `damaged-STEP`; the unfinished remains of a killed process
        are removed.

        Raises:
          ValueError: a checkpoint is of another run, or all existing checkpoints are damaged.
          OSError: one cannot be read now, which is not damage; nothing is set aside.
        """
        remove_unfinished(self._folder)
        found, damaged = read_newest(self._folder)
        if found is None:
            if damaged:
                raise ValueError(
                    f"all checkpoints in {self._folder} are damaged (steps {damaged}); "
                    "move that folder away to start from step 0"
                )
            return None
        if different := differing_keys(found.about.identity, self._identity):
            raise ValueError(
                f"checkpoint {self._folder}/{found.step} is of another run; "
                f"{describe_differences(different)}. Choose another folder with --run"
            )
        state = fit(found, like, f"{self._folder}/{found.step}")
        for step in damaged:
            (self._folder / str(step)).rename(self._folder / f"damaged-{step}-{time.time_ns()}")
        return state

    def latest_step(self) -> int | None:
        """The newest saved step; None if there is none."""
        return max(saved_steps(self._folder), default=None)


def describe_newest(step: int | None) -> str:
    """Describes the newest checkpoint, at `step`.

    >>> describe_newest(None), describe_newest(20)
    ('there is no checkpoint yet', 'the last good checkpoint is step 20')
    """
    return "there is no checkpoint yet" if step is None else f"the last good checkpoint is step {step}"


def saved_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in a folder, in order, damaged or not."""
    if not folder.is_dir():
        return []
    # Not glob: it treats an unreadable folder as empty.
    names = names_in(folder) if is_remote(folder) else [path.name for path in folder.iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def read_newest(folder: Path) -> tuple[Contents | None, list[int]]:
    """The newest undamaged checkpoint, if there is one, and the steps of newer damaged ones.

    Raises:
      OSError: one cannot be read now: no memory, no descriptors, no permission, a failing disk.
    """
    return _newest(folder, _read)


def recorded_config(folder: Path) -> tuple[dict[str, Any], int] | None:
    """The run's config.json as stored in the newest checkpoint that has it, and the checkpoint's step.

    Raises:
      OSError: a checkpoint cannot be read now.
    """

    def read(one: Path) -> tuple[dict[str, Any], int]:
        if not (config := _read_about(one).config):
            raise DamagedError(f"{one / _ABOUT} does not contain the run's config.json")
        return config, int(one.name)

    return _newest(folder, read)[0]


def _newest(folder: Path, read: Callable[[Path], T]) -> tuple[T | None, list[int]]:
    damaged: list[int] = []
    for step in reversed(saved_steps(folder)):
        one = folder / str(step)
        try:
            return read(one), damaged
        except DamagedError as error:
            if not one.is_dir():  # the active run has removed it in the meantime
                return _newest(folder, read)
            logger.warning("skipping checkpoint %s: %s", one, first_line(error))
            damaged.append(step)
    return None, damaged


def _read(folder: Path) -> Contents:
    about = _read_about(folder)
    with at_hand(folder, about.files) as there:
        check_files(there, about.files)
        state = load_tree(there / _STATE, None, checked=True, name=folder / _STATE)
    if not isinstance(state, dict) or (step := int(state["step"])) != int(folder.name):
        raise DamagedError(f"{folder} is misnamed: it does not contain that step")
    return Contents(step, state, about)


def _read_about(folder: Path) -> About:
    file = folder / _ABOUT
    try:
        fields = records.read(file, _SCHEMA)
    except FileNotFoundError:
        raise DamagedError(f"{file} is missing") from None
    except OSError as error:
        raise OSError(f"{file} cannot be read now ({error.strerror}); nothing was changed") from error
    return About(fields["files"], fields["identity"], fields.get("config", {}), records.checksum(fields))


def fit(contents: Contents, like: State, name: str) -> State:
    """The state of a checkpoint, with the structure of `like`.

    Raises:
      ValueError: its arrays differ; some of them are named.
    """
    wanted, stored = (_shapes(tree) for tree in (flax.serialization.to_state_dict(like), contents.state))
    if different := differing_keys(stored, wanted):
        some = dict(list(different.items())[:3])
        raise ValueError(
            f"checkpoint {name} is of another student, optimizer, --ema or method, or of another version of "
            f"jaxkd; {describe_differences(some)}. Repeat them, or begin in another folder with --run"
        )
    state: State = flax.serialization.from_state_dict(like, contents.state)
    return state


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in leaves
    }
