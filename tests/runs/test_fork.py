"""Runs that start from another run's checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import helpers
import pytest
from helpers import silent

import jaxkd
from jaxkd import data, teachers
from jaxkd.config import DistillConfig, TrainConfig
from jaxkd.runs.checkpoint import read_newest


def config(folder: Path, **changes: Any) -> TrainConfig:
    options = {"model": "resnet8", "run": folder, "epochs": 2, "batch_size": 16, "devices": 1, **changes}
    return TrainConfig(**options)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, dataset: data.Dataset) -> Path:
    """A run of six steps."""
    folder = tmp_path_factory.mktemp("other") / "run"
    jaxkd.train(config(folder), dataset, say=silent)
    return folder


def test_a_fork_goes_on_from_the_step_and_says_from_where(
    tmp_path: Path, dataset: data.Dataset, other: Path
) -> None:
    said: list[str] = []
    changed = {"epochs": 4, "learning_rate": 1e-3, "seed": 5}
    origin = shutil.copytree(other, tmp_path / "origin")
    forked = config(tmp_path / "fork", fork=origin, **changed, checkpoint_seconds=0, log_every=1)
    result = jaxkd.train(forked, dataset, say=said.append)
    assert f"starting from step 6 of {origin}" in said
    assert "resuming at step 6 of 12" in said
    assert result["epochs"] == 4
    start, _ = read_newest(other / "checkpoints")
    assert start is not None
    stored = json.loads((tmp_path / "fork" / "config.json").read_text())
    assert stored["identity"]["forked_from"] == {"step": 6, "digest": start.about.digest}
    assert stored["config"]["fork"] == str(origin)

    # Killed after its first checkpoint, and the run that it came from is gone: the same bits all the same.
    again = config(tmp_path / "again", fork=origin, **changed)
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "fork" / "config.json", tmp_path / "again" / "config.json")
    kept = max((tmp_path / "fork" / "checkpoints").glob("1[01]"))
    shutil.copytree(kept, tmp_path / "again" / "checkpoints" / kept.name)
    shutil.rmtree(origin)
    jaxkd.train(again, dataset, say=silent)
    assert teachers.load(tmp_path / "again").digest == teachers.load(tmp_path / "fork").digest


def test_a_labels_only_run_may_be_forked_into_a_distillation(
    tmp_path: Path, dataset: data.Dataset, other: Path
) -> None:
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    forked = DistillConfig(
        teacher=str(teacher), run=tmp_path / "fork", epochs=3, batch_size=16, devices=1, fork=other
    )
    said: list[str] = []
    jaxkd.distill(forked, dataset, say=said.append)
    assert "resuming at step 6 of 9" in said


def test_a_run_that_is_there_is_no_fork(tmp_path: Path, dataset: data.Dataset, other: Path) -> None:
    there = shutil.copytree(other, tmp_path / "there")
    with pytest.raises(ValueError, match="holds a run that is not a fork; choose another folder"):
        jaxkd.train(config(there, fork=other, epochs=9), dataset, say=silent)


def test_what_cannot_be_forked_is_refused(tmp_path: Path, dataset: data.Dataset, other: Path) -> None:
    new = tmp_path / "fork"
    for changed, arrays, message in (
        ({"epochs": 2}, dataset, r"--fork would start at step 6, and the run ends at step 6: raise --epochs"),
        ({"epochs": 9, "batch_size": 8}, dataset, r"these differ: batch_size \(there 16, here 8\)"),
        ({"epochs": 9}, helpers.tiny_dataset(seed=1), r"these differ: data_digest"),
        (
            {"epochs": 9, "model": "resnet14"},
            dataset,
            r"is of another student, optimizer.*different: .*layer1_1",
        ),
        ({"epochs": 9, "fork": tmp_path / "no"}, dataset, r"needs a run with a checkpoint, and it has none"),
        ({"epochs": 9, "fork": new}, dataset, r"is the run's own folder"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxkd.train(config(new, **{"fork": other, **changed}), arrays, say=silent)
        assert not new.exists()
