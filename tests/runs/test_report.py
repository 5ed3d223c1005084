"""Tables and figures from run records, finished or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxkd.runs.report import report


def write_run(
    folder: Path,
    accuracies: list[float],
    result: dict[str, Any] | None,
    tail: str = "",
    identity: dict[str, Any] | None = None,
) -> Path:
    folder.mkdir()
    config = {"student": "resnet8", "method": "atkd"}
    (folder / "config.json").write_text(json.dumps({"config": config, "identity": identity or {}}))
    lines = [
        {"kind": kind, "step": 10 * epoch, "epoch": epoch, "accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies, 1)
        for kind in ("train", "test")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


RESULT = {
    "test_examples": 400,
    "last_accuracy": 80.0,
    "images_per_second": 123.4,
    "metrics": {
        "temperature": {
            "mean": 6.5,
            "p5": 5.0,
            "p50": 6.0,
            "p95": 8.25,
            "counts": [3.0, 0.0, 5.0],
            "edges": [5, 6, 7, 8],
        },
        "correlation": {"mean": 0.91234},
    },
}


def test_the_table_says_what_the_records_say(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "done", [50.0, 71.25, 70.5], RESULT),
        write_run(tmp_path / "going", [40.0], None, tail='{"kind": "te'),
        write_run(tmp_path / "begun", [], None),
    ]
    rows = [line.split("|")[1:-1] for line in report(runs, tmp_path / "out").splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[2] == ["done", "resnet8", "atkd", "3", "70.50", "71.25", "6.50 (5.00-8.25)", "0.912", "123"]
    assert cells[3] == ["going (running)", "resnet8", "atkd", "1", "40.00", "40.00", "-", "-", "-"]
    assert cells[4] == ["begun (running)", "resnet8", "atkd", "0", "-", "-", "-", "-", "-"]
    assert (
        "With 400 test images, one standard error of these accuracies is 2.00 points"
        in (tmp_path / "out" / "report.md").read_text()
    )
    assert len({len(line) for line in report(runs, tmp_path / "out").splitlines()}) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.md",
        "accuracy.png",
        "temperature.png",
    }


def test_runs_that_differ_in_the_seed_alone_are_summarised(tmp_path: Path) -> None:
    runs = []
    for seed, accuracy in ((0, 70.0), (1, 73.0), (2, 71.0)):
        result = RESULT | {"last_accuracy": accuracy, "best_accuracy": accuracy + 1}
        runs.append(
            write_run(tmp_path / f"a-seed{seed}", [accuracy], result, identity={"lr": 1, "seed": seed})
        )
    runs.insert(1, write_run(tmp_path / "b", [60.0], RESULT, identity={"lr": 2, "seed": 0}))
    runs.append(write_run(tmp_path / "a-seed3", [], None, identity={"lr": 1, "seed": 3}))
    rows = [line.split("|")[1:-1] for line in report(runs, tmp_path / "out").splitlines()[2:]]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in cells] == [
        "a-seed0", "a-seed1", "a-seed2", "a-seed3 (running)", "**a, mean of 3 seeds**", "b",
    ]  # fmt: skip
    assert cells[4][4:] == ["71.33 ± 1.53", "72.33 ± 1.53", "6.500 ± 0.000", "0.912 ± 0.000", "-"]


def test_a_pretrained_teacher_has_a_row(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    description = {
        "format": 1, "model": "resnet56", "num_classes": 100, "image_shape": [32, 32, 3], "mean": [0.5] * 3,
        "std": [0.25] * 3, "data": "cifar100", "test_accuracy": 72.63, "digest": "of no variables",
    }  # fmt: skip
    (tmp_path / "big" / "teacher.json").write_text(json.dumps(description))
    text = report([tmp_path / "big", write_run(tmp_path / "run", [50.0], RESULT)], tmp_path / "out")
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert cells == ["big", "resnet56", "pretrained", "-", "72.63", "-", "-", "-", "-"]


def test_folders_that_are_not_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not the folder of a run, nor of a teacher"):
        report([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="no run is named"):
        report([], tmp_path / "out")
