"""Checkpoints: verified, damaged ones skipped, any number of devices."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import helpers
import jax
import numpy as np
import pytest
from steps import run, task

from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.state import TrainState

IDENTITY = {"seed": 0, "sizes": (1, 2)}


@pytest.fixture(scope="module")
def states() -> list[TrainState]:
    dataset = helpers.tiny_dataset()
    made = task(dataset, method=None)
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


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, states: list[TrainState], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(states[0])
    later = dataclasses.replace(states[0], step=np.int32(5))
    checkpoints.save(later)
    largest = max((tmp_path / "5" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    contents = bytearray(largest.read_bytes())
    contents[len(contents) // 2] ^= 16
    largest.write_bytes(contents)
    with caplog.at_level(logging.WARNING):
        restored = Checkpoints(tmp_path, IDENTITY).restore_latest(later)
    assert restored is not None
    assert_equal(restored, states[0])
    assert f"skipping checkpoint {tmp_path}/5" in caplog.text


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
