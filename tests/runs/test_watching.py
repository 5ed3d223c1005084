"""What a run says before it starts, the profiler's trace, and Weights & Biases."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import helpers
import pytest

import jaxkd
from jaxkd.config import DistillConfig, TrainConfig
from jaxkd.runs.watching import Profiler


class FakeWandb(types.ModuleType):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.opened: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []

    def init(self, **options: Any) -> FakeWandb:
        self.opened = options
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))


def test_a_watched_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    dataset = helpers.tiny_dataset()
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    config = DistillConfig(
        teacher=str(teacher), student="resnet8", run=tmp_path / "run", epochs=2, batch_size=16, devices=2,
        log_every=1, profile=2, wandb="distilling",
    )  # fmt: skip
    said: list[str] = []
    jaxkd.distill(config, dataset, say=said.append)

    assert "resnet8 (77,299 parameters" in said[0]
    assert "from teacher, resnet8 (77,299 parameters, 0.8 million multiply-adds an image)" in said[0]
    assert "batch 16 = 2 x 8 on 2 x cpu of 1 process; 6 updates" in said[1]
    assert (
        "sgd, learning rate 0.05, not scaled with the batch; float32; batch norm over the global batch"
        in said[1]
    )
    assert said[2].startswith("on each device: parameters 0.3 MB, optimizer 0.3 MB, teacher 0.3 MB")
    assert any(line.startswith(f"trace in {tmp_path / 'run' / 'profile'}") for line in said)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))

    assert wandb.opened["project"] == "distilling"
    assert wandb.opened["name"] == "run"
    assert re.fullmatch("[0-9a-f]{16}", wandb.opened["id"])
    assert wandb.opened["config"]["student"] == "resnet8"
    steps = [step for step, values in wandb.logged if "train/kd" in values]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [step for step, values in wandb.logged if "test/accuracy" in values] == [3, 6]


def test_wandb_is_asked_for_by_name_and_said_if_absent(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    config = TrainConfig(model="resnet8", run=tmp_path, epochs=1, devices=1, wandb="distilling")
    with pytest.raises(ImportError, match=r"needs wandb; type: pip install 'jaxkd-distillation\[wandb\]'"):
        jaxkd.train(config, helpers.tiny_dataset(), say=lambda _: None)


@pytest.mark.parametrize("field", ["run", "data_dir"])
def test_stores_other_than_cloud_storage_are_refused(field: str) -> None:
    options: dict[str, Any] = {field: Path("s3://bucket/place"), "data": "cifar100"}
    flag = "--" + field.replace("_", "-")
    with pytest.raises(
        ValueError, match=rf"{flag}: s3://bucket/place is in a store that jaxkd does not know"
    ):
        TrainConfig(**options)
    with pytest.raises(ValueError, match="--teacher: s3://bucket/teacher is in a store that"):
        DistillConfig(teacher="s3://bucket/teacher")


def test_a_trace_of_no_step_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    for wanted in (None, 3):
        profiler = Profiler(tmp_path, wanted, said.append)
        for _ in range(2):
            profiler.close()
    assert len(said) == 1
    assert said[0].startswith("--profile: no trace, since no step came")
