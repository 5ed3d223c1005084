"""Checkpoints: verified, damaged ones skipped, any number of devices."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import helpers
import jax
import numpy as np
import pytest
from steps import run, task

from jaxkd import storage
from jaxkd.runs.checkpoint import Checkpoints, describe_newest, read_newest
from jaxkd.training import TrainState

IDENTITY = {"seed": 0, "sizes": (1, 2)}


@pytest.fixture(scope="module")
def states() -> list[TrainState]:
    dataset = helpers.tiny_dataset()
    made = task(dataset, "labels")
    return [run(made, dataset, devices, 2)[0] for devices in (1, 8)]


def assert_equal(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_state_comes_back_to_the_bit_whatever_the_devices(tmp_path: Path, states: list[TrainState]) -> None:
    for number, state in enumerate(states):
        checkpoints = Checkpoints(tmp_path / str(number), IDENTITY)
        assert checkpoints.restore_latest(state) is None
        assert checkpoints.save(state) == 2
        restored = checkpoints.restore_latest(states[1 - number])
        assert restored is not None
        assert_equal(restored, state)


def flip(path: Path, rng: random.Random) -> None:
    contents = bytearray(path.read_bytes())
    contents[rng.randrange(len(contents))] ^= 1 << rng.randrange(8)
    path.write_bytes(contents)


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def delete(path: Path, _: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damage_to_any_file_is_named_and_the_checkpoint_before_it_used(
    tmp_path: Path,
    states: list[TrainState],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path, random.Random], None],
) -> None:
    checkpoints = Checkpoints(tmp_path / "good", IDENTITY)
    for step in (2, 5):
        checkpoints.save(dataclasses.replace(states[0], step=np.int32(step)))
    files = [path for path in (tmp_path / "good" / "5").rglob("*") if path.is_file()]
    assert len(files) > 5
    rng = random.Random(0)
    for number, file in enumerate(files):
        folder = shutil.copytree(tmp_path / "good", tmp_path / str(number))
        name = file.relative_to(tmp_path / "good")
        damage(folder / name, rng)
        caplog.clear()
        restored = Checkpoints(folder, IDENTITY).restore_latest(states[0])
        assert restored is not None
        assert_equal(restored, dataclasses.replace(states[0], step=np.int32(2)))
        assert f"skipping checkpoint {folder}/5" in caplog.text
        assert str(name) in caplog.text
        aside = list(folder.glob("damaged-5-*"))
        assert len(aside) == 1
        assert sum(path.is_file() for path in aside[0].rglob("*")) == len(files) - (damage is delete)


def test_nothing_is_removed_before_its_successor_is_verified(
    tmp_path: Path, states: list[TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=1)
    checkpoints.save(states[0])
    later = dataclasses.replace(states[0], step=np.int32(5))
    digest = storage.tree_digest
    with monkeypatch.context() as patch:  # a disk that gives back something else
        patch.setattr(storage, "tree_digest", lambda tree: f"{digest(tree)} {id(tree)}")
        with pytest.raises(OSError, match=r"checkpoint .*/5 could not be saved: .* is damaged"):
            checkpoints.save(later)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert describe_newest(checkpoints.latest_step()) == "the last good checkpoint is step 2"
    checkpoints.save(later)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_a_disk_that_is_full_costs_nothing_that_was_saved(tmp_path: Path, states: list[TrainState]) -> None:
    """No file may grow beyond 2 kB, which says "too large" where a full disk says "no space left"."""
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(states[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"checkpoint {tmp_path}/5 .*cannot be written \(File too large"):
            checkpoints.save(dataclasses.replace(states[0], step=np.int32(5)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    restored = checkpoints.restore_latest(states[0])
    assert restored is not None
    assert_equal(restored, states[0])


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Permissions do not bind root: be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folders_that_may_not_be_read_or_written(states: list[TrainState]) -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which is root's alone
        folder = Path(name) / "checkpoints"
        checkpoints = Checkpoints(folder, IDENTITY)
        for step in (2, 5):
            checkpoints.save(dataclasses.replace(states[0], step=np.int32(step)))
        Path(name).chmod(0o755)
        folder.chmod(0o555)
        with (
            ordinary_user(),
            pytest.raises(OSError, match=r"checkpoint .*/9 could not be saved: .*Permission denied"),
        ):
            checkpoints.save(dataclasses.replace(states[0], step=np.int32(9)))
        folder.chmod(0o755)
        (folder / "5").chmod(0)
        with (
            ordinary_user(),
            pytest.raises(OSError, match=r"5/about\.json cannot be read now \(Permission denied"),
        ):
            read_newest(folder)  # not: damaged, and the one before it used
        folder.chmod(0)
        with ordinary_user(), pytest.raises(PermissionError):  # not: "nothing was ever saved"
            checkpoints.restore_latest(states[0])
        folder.chmod(0o755)
        (folder / "5").chmod(0o755)
        assert int(checkpoints.restore_latest(states[0]).step) == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("why", "error", "message"),
    [
        ("a disk that fails", OSError(5, "Input/output error"), "Input/output error"),
        ("no descriptors", OSError(24, "Too many open files"), "Too many open files"),
        ("no memory", MemoryError(), "not enough memory"),
        ("TensorStore's", ValueError("NOT_FOUND: ... [os_error_code='24']"), "Too many open files"),
        ("any other", RuntimeError("strange\nnews"), "RuntimeError: strange"),
    ],
)
def test_what_cannot_be_restored_now_is_not_damaged(
    tmp_path: Path,
    states: list[TrainState],
    monkeypatch: pytest.MonkeyPatch,
    why: str,
    error: Exception,
    message: str,
) -> None:
    """Before, the good checkpoint was set aside, and the run went on from an older one or from step 0."""
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(states[0])

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_restore", fails)
        with pytest.raises(OSError, match=rf"2/state cannot be restored now \({message}\); nothing was chan"):
            checkpoints.restore_latest(states[0])
    if isinstance(error, OSError):
        with monkeypatch.context() as patch:
            patch.setattr(storage, "_sha256", fails)
            with pytest.raises(OSError, match=rf"2/state/.* cannot be read now \({message}\)"):
                checkpoints.restore_latest(states[0])
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    restored = checkpoints.restore_latest(states[0])
    assert restored is not None
    assert_equal(restored, states[0])


def test_a_checkpoint_that_is_removed_while_it_is_read_is_no_damage(
    tmp_path: Path, states: list[TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on removes its older checkpoints while another one forks from it."""
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=1)
    checkpoints.save(states[0])
    check = storage.check_files

    def meanwhile(folder: Path, digests: dict[str, str]) -> None:
        if folder.name == "2":
            checkpoints.save(dataclasses.replace(states[0], step=np.int32(5)))
        check(folder, digests)

    monkeypatch.setattr("jaxkd.runs.checkpoint.check_files", meanwhile)
    found, damaged = read_newest(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (5, [])


def test_saving_goes_on_after_a_damaged_checkpoint(tmp_path: Path, states: list[TrainState]) -> None:
    first = Checkpoints(tmp_path, IDENTITY)
    first.save(states[0])
    (tmp_path / "9").mkdir()  # what a crash may leave: newer than everything that follows
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    assert checkpoints.restore_latest(states[0]) is not None
    assert len(list(tmp_path.glob("damaged-9-*"))) == 1
    for step in (4, 9):
        checkpoints.save(dataclasses.replace(states[0], step=np.int32(step)))
        restored = Checkpoints(tmp_path, IDENTITY).restore_latest(states[0])
        assert restored is not None
        assert int(restored.step) == step


def test_an_empty_folder_does_not_count(tmp_path: Path, states: list[TrainState]) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(states[0])
    (tmp_path / "10").mkdir()
    restored = Checkpoints(tmp_path, IDENTITY).restore_latest(states[0])
    assert restored is not None
    assert int(restored.step) == 2


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(
    tmp_path: Path, states: list[TrainState]
) -> None:
    Checkpoints(tmp_path, IDENTITY).save(states[0])
    for path in (tmp_path / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"all checkpoints in .* are damaged \(steps \[2\]\); move that folder"
    ):
        Checkpoints(tmp_path, IDENTITY).restore_latest(states[0])


def test_another_run_is_refused(tmp_path: Path, states: list[TrainState]) -> None:
    Checkpoints(tmp_path, IDENTITY).save(states[0])
    with pytest.raises(ValueError, match=r"is of another run; different: seed \(there 0, here 3\)"):
        Checkpoints(tmp_path, {**IDENTITY, "seed": 3}).restore_latest(states[0])


def test_a_checkpoint_of_other_networks_is_refused_by_name(tmp_path: Path, states: list[TrainState]) -> None:
    Checkpoints(tmp_path, IDENTITY).save(states[0])
    other = dataclasses.replace(states[0], network={"batch_stats": {"mean": np.zeros(3, np.float32)}})
    with pytest.raises(
        ValueError,
        match=r"is of another student, .*network/batch_stats/bn1/mean \(there float32\[4\], here None",
    ):
        Checkpoints(tmp_path, IDENTITY).restore_latest(other)


def test_what_a_killed_save_leaves_is_cleared_away(tmp_path: Path, states: list[TrainState]) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(states[0])
    shutil.copytree(tmp_path / "2", tmp_path / ".5.new-abc")
    shutil.rmtree(tmp_path / ".5.new-abc" / "state")
    assert checkpoints.restore_latest(states[0]) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
