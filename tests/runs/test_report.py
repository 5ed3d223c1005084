"""Tables and figures from run records, finished or not."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from jaxkd import methods
from jaxkd.runs import figures, tables
from jaxkd.runs.report import report, runs_table
from jaxkd.runs.summary import read, summarise
from jaxkd.storage import DamagedError


def write_run(
    folder: Path,
    accuracies: list[float],
    result: dict[str, Any] | None,
    tail: str = "",
    identity: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    folder.mkdir()
    config = config or {"student": "resnet8", "method": "atkd", "teacher": "big"}
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


def table(text: str, number: int = -1) -> list[list[str]]:
    """The cells below the head of one of the tables of a text."""
    lines = text.strip().split("\n\n")[number].splitlines()
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_the_table_says_what_the_records_say(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "done", [50.0, 71.25, 70.5], RESULT),
        write_run(tmp_path / "going", [40.0], None, tail='{"kind": "te'),
        write_run(tmp_path / "begun", [], None),
    ]
    cells = table(report(runs, tmp_path / "out"))
    assert cells[0] == ["done", "resnet8", "atkd", "3", "70.50", "71.25", "6.50 (5.00-8.25)", "0.912", "123"]
    assert cells[1] == ["going (running)", "resnet8", "atkd", "1", "40.00", "40.00", "-", "-", "-"]
    assert cells[2] == ["begun (running)", "resnet8", "atkd", "0", "-", "-", "-", "-", "-"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "one standard error of an accuracy, from the sampling of the test images, is 2.00 points" in text
    # `jaxkd report runs/*` passes over the report of before.
    assert [record.name for record in read([*runs, tmp_path / "out"])] == ["done", "going", "begun"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.md", "table.tex", "table.csv",
        "accuracy.png", "accuracy.pdf", "temperature.png", "temperature.pdf",
    }  # fmt: skip


def write_grid(
    folder: Path, accuracies: dict[str, list[float]], pair: tuple[str, str] = ("big", "resnet8")
) -> None:
    """Finished runs of 10,000 test images: the accuracies of seeds 0, 1 and so on by method."""
    folder.mkdir(exist_ok=True)
    for method, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            teacher = {} if method == "labels" else {"teacher": pair[0]}
            result = {"last_accuracy": accuracy, "best_accuracy": accuracy, "test_examples": 10_000}
            write_run(
                folder / f"{'-'.join(pair)}-{method}-seed{seed}",
                [accuracy],
                {**result, **({"teacher": pair[0], "teacher_accuracy": 90.0} if teacher else {})},
                identity={
                    "method": method,
                    "seed": seed,
                    **teacher,
                    "student": pair[1],
                    "data": "d",
                    "epochs": 1,
                },
                config={"student": pair[1], "method": method.partition("+")[0], **teacher},
            )


def test_methods_are_compared_over_the_same_seeds(tmp_path: Path) -> None:
    write_grid(
        tmp_path / "runs",
        {
            "labels": [40.0, 41.0, 42.0],
            "kd": [50.0, 51.0, 52.0],
            "atkd": [54.0, 56.0, 58.0],  # +4, +5, +6: mean 5, deviation 1, and t is 4.303 for three seeds
            "dkd": [50.4, 51.5, 52.6],  # +0.5 and 0.1: the interval is +-0.248
            "mse": [53.0, 48.0, 52.0],
            "ttm": [60.0],
        },
    )
    text = report([tmp_path / "runs"], tmp_path / "out")
    rows = {row[0]: row[1:] for row in table(text, 0)}
    assert rows["teacher"] == ["90.00", ""]
    assert list(rows)[:2] == ["teacher", "alone"]
    assert rows["kd"] == ["51.00 ± 1.00", ""]
    half = 4.302653 / math.sqrt(3)
    assert rows["atkd"] == ["56.00 ± 2.00", f"+5.00 (+{5 - half:.2f} to +{5 + half:.2f})"]
    assert rows["ttm"] == ["60.00 (n=1)", "+10.00"]
    notes = (tmp_path / "out" / "report.md").read_text()
    for words in (
        "lower: alone;",
        "higher: atkd;",
        "higher, by less than the 1.4 points that the sampling of the test images explains: dkd;",
        "not significant (the interval contains 0): mse;",
        "one seed, no interval: ttm.",
    ):
        assert words in notes
    against_alone = summarise(read([tmp_path / "runs"]), "alone")
    rows = {row[0]: row[1:] for row in table(tables.markdown(against_alone))}
    assert rows["kd"][1] == "+10.00 (+10.00 to +10.00)"
    with pytest.raises(ValueError, match="no run uses the baseline dtkd; available: alone, atkd"):
        report([tmp_path / "runs"], tmp_path / "out", "dtkd")


def test_rows_that_differ_in_more_than_the_method_are_told(tmp_path: Path) -> None:
    for method, batch in (("kd", 64), ("atkd, adaptive", 128)):
        identity = {
            "method": method,
            "method.weight": 9.0,
            "seed": 0,
            "student": "resnet8",
            "data": "d",
            "epochs": 1,
        }
        config = {"student": "resnet8", "method": method, "teacher": "big"}
        result = {"last_accuracy": 50.0, "test_examples": 400}
        write_run(
            tmp_path / method, [50.0], result, identity={**identity, "batch_size": batch}, config=config
        )
    report([tmp_path / "kd", tmp_path / "atkd, adaptive"], tmp_path / "out")
    notes = (tmp_path / "out" / "report.md").read_text()
    assert "the rows differ in more than the method: batch_size (64; 128)." in notes.replace("\\", "")
    assert 'one seed, no interval: "atkd, adaptive".' in notes


def test_a_curve_ends_where_a_seed_ends(tmp_path: Path) -> None:
    """A mean over fewer seeds would be a jump."""
    for seed, accuracies in enumerate(([10.0, 20.0, 30.0], [30.0])):
        identity = {"method": "kd", "seed": seed, "student": "resnet8", "data": "d", "epochs": 3}
        write_run(tmp_path / f"kd-seed{seed}", accuracies, None, identity=identity)
    (cell,) = summarise(read([tmp_path])).cells.values()
    assert figures._by_epoch(cell) == {1: [10.0, 30.0]}
    assert figures._of_training(cell, "accuracy") == {1: 20.0}
    assert figures._less(cell, cell) == {1: [0.0, 0.0]}


def test_pairs_are_columns_and_a_method_twice_has_its_runs_names(tmp_path: Path) -> None:
    write_grid(
        tmp_path / "runs", {"labels": [1.0, 2.0], "kd": [3.0, 4.0], "kd+z": [5.0, 6.0]}, ("big", "small")
    )
    write_grid(tmp_path / "runs", {"kd": [7.0, 8.0]}, ("huge", "small"))
    summary = summarise(read([tmp_path / "runs"]))
    assert [(pair.teacher, pair.student) for pair in summary.pairs] == [("big", "small"), ("huge", "small")]
    assert summary.methods == ("alone", "kd+z", "kd")  # by folder, the students alone first
    # The student alone is the same in both columns.
    means = {
        (method, pair.teacher): cell.spread.mean
        for (method, pair), cell in summary.cells.items()
        if cell.spread
    }
    assert means == {
        ("alone", "big"): 1.5, ("alone", "huge"): 1.5, ("kd", "big"): 3.5, ("kd+z", "big"): 5.5,
        ("kd", "huge"): 7.5,
    }  # fmt: skip


def test_no_row_takes_the_place_of_another(tmp_path: Path) -> None:
    def write(name: str, method: str, accuracy: float, batch: int) -> Path:
        teacher = {} if method == "labels" else {"teacher": "big"}
        identity = {"method": method, "student": "small", "data": "d", "epochs": 1, "batch_size": batch}
        return write_run(
            tmp_path / name,
            [accuracy],
            {"last_accuracy": accuracy, "test_examples": 100, **teacher},
            identity={**identity, **teacher},
            config={"student": "small", "method": method, **teacher},
        )

    runs = [write(f"a{batch}", "kd", batch + 1.0, batch) for batch in (32, 64)]
    (tmp_path / "alone").mkdir()
    runs += [write(f"alone/a{batch}", "labels", batch + 2.0, batch) for batch in (32, 64)]
    summary = summarise(read(runs))
    assert {method: cell.accuracies for (method, _), cell in summary.cells.items()} == {
        "a32": {0: 33.0}, "a64": {0: 65.0}, "alone (a32)": {0: 34.0}, "alone (a64)": {0: 66.0}
    }  # fmt: skip
    assert summary.methods == ("alone (a32)", "alone (a64)", "a32", "a64")

    # A run of one method that is called like another method.
    (tmp_path / "names").mkdir()
    named = [write(f"names/{name}", method, accuracy, 8 * number) for number, (name, method, accuracy) in
             enumerate([("kd", "atkd", 1.0), ("other", "atkd", 2.0), ("first", "kd", 3.0)])]  # fmt: skip
    summary = summarise(read(named))
    assert {method: cell.accuracies[0] for (method, _), cell in summary.cells.items()} == {
        "kd (atkd)": 1.0, "other": 2.0, "kd": 3.0
    }  # fmt: skip
    assert summary.baseline == "kd"
    assert set(summarise(read(named), by_name=True).methods) == {"kd", "other", "first"}  # as a grid has them


def test_a_report_beside_its_runs_hides_none_and_replaces_nobodys(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs", {"kd": [1.0, 2.0]})
    for _ in range(2):
        assert len(table(report(tmp_path / "runs", tmp_path / "runs"))) == 2
    report(str(tmp_path / "runs"), tmp_path / "out")
    with pytest.raises(ValueError, match="an earlier report, and no runs"):
        read([tmp_path / "out"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.md").write_text("hello")
    with pytest.raises(ValueError, match=r"report\.md is not of an earlier report"):
        report(tmp_path / "runs", tmp_path / "mine")
    assert (tmp_path / "mine" / "report.md").read_text() == "hello"
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "table.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"table\.tex is not of an earlier report; name another folder"):
        report(tmp_path / "runs", tmp_path / "paper")
    assert (tmp_path / "paper" / "table.tex").read_text() == "mine"
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "temperature.png").write_text("mine")  # the name of one of the runs' metrics
    with pytest.raises(ValueError, match=r"temperature\.png is not of an earlier report"):
        report(write_run(tmp_path / "with a metric", [50.0], RESULT), tmp_path / "pictures")
    assert (tmp_path / "pictures" / "temperature.png").read_text() == "mine"


def test_a_table_says_how_much_its_histogram_leaves_out(tmp_path: Path) -> None:
    for outside, text in ((0.0, "(5.00-8.25)"), (0.25, "(5.00-8.25; 25% outside the histogram)")):
        metric = {**RESULT["metrics"]["temperature"], "outside": outside}
        result = {**RESULT, "metrics": {"temperature": metric}}
        run = write_run(tmp_path / f"run{outside}", [50.0], result)
        assert any(text in cell for cell in table(report(run, tmp_path / f"report{outside}"))[0])


def test_a_damaged_run_can_be_left_out(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs", {"kd": [1.0, 2.0]})
    run = next((tmp_path / "runs").glob("*/result.json"))
    run.write_text(run.read_text()[:-9])
    with pytest.raises(
        DamagedError, match=rf"result\.json .*; leave {run.parent} out of the report, or restore"
    ):
        report(tmp_path / "runs", tmp_path / "out")


def test_the_images_of_an_accuracy_are_told(tmp_path: Path) -> None:
    config = {"student": "resnet8", "method": "atkd", "teacher": "big", "holdout": 0.1}
    report([write_run(tmp_path / "run", [50.0], RESULT, config=config)], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "top-1 on the training images that were held out," in text
    assert "The best epoch, chosen on the held-out images themselves," in text
    assert "test" not in text.lower()


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    write_grid(tmp_path / "a", {"kd": [1.0, 2.0]})
    write_grid(tmp_path / "b", {"kd": [1.0]})
    text = report([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert table(text, 0)[1] == ["kd", "1.50 ± 0.71"]
    assert (
        "they repeat a configuration and seed: big-resnet8-kd-seed0."
        in (tmp_path / "out/report.md").read_text()
    )


HOSTILE = [
    "a|b$c_d", "_x_", "<b>*y*</b>", "two\nlines", '100% #1 {&} ~^\\ "q"', '=1+1,";\r', "$\\frac$ é",
]  # fmt: skip


def write_hostile(folder: Path, name: str) -> list[Path]:
    """Runs of two seeds, in which a student, a teacher, a method and the data have a name."""
    folder.mkdir()
    return [
        write_run(
            folder / f"{seed}{number}",
            [50.0 + seed, 60.0],
            {**RESULT, "teacher": name, "last_accuracy": 60.0 + seed, "best_accuracy": 61.0},
            identity={"method": method, "seed": seed, "epochs": 2, "data": name},
            config={"student": name, "method": method, "teacher": name},
        )
        for seed in (0, 1)
        for number, method in enumerate((name, "kd"))
    ]


def test_names_of_any_characters_break_no_format(tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        records = read(write_hostile(tmp_path / str(number), name))
        summary = summarise(records)
        of_methods, of_runs = tables.markdown(summary), runs_table(records)
        assert [len(row) for row in table(of_methods)] == [3, 3]
        assert [len(row) for row in table(of_runs)] == [9] * 4
        assert re.sub(r"\\(.)", r"\1", table(of_methods)[0][0]) == " ".join(name.split())
        assert not re.search(r"(?<!\\)[<$*]", of_methods + of_runs)
        body = tables.latex(summary).partition(r"\midrule")[2].partition(r"\bottomrule")[0]
        assert [len(re.split(r"(?<!\\)&", row)) for row in body.strip().splitlines()] == [3, 3]
        assert not re.search(r"(?<!\\)[%#_]", body)
        rows = list(csv.DictReader(io.StringIO(tables.as_csv(summary), newline="")))
        seen = {(row["method"], row["student"], row["data"]) for row in rows}
        assert seen == {(name, name, name), ("kd", name, name)}


def test_figures_take_names_of_any_characters_and_are_the_same_each_time(tmp_path: Path) -> None:
    runs = write_hostile(tmp_path / "runs", "_a|b$\\frac$\n<c>")
    for out in ("one", "two"):
        report(runs, tmp_path / out)
    for name in ("accuracy", "differences", "temperature"):
        assert (tmp_path / "one" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "one" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / "one" / f"{name}.pdf").read_bytes() == (
            tmp_path / "two" / f"{name}.pdf"
        ).read_bytes()


def test_every_method_has_a_look_of_its_own() -> None:
    looks = figures._looks(["alone", *methods.names(), "mine"])
    assert len({(look.colour, look.line) for look in looks.values()}) == len(looks)


def test_a_method_far_from_all_others_does_not_squeeze_them(tmp_path: Path) -> None:
    write_grid(
        tmp_path / "runs",
        {
            "kd": [90.0, 91.0],
            "atkd": [91.0, 92.0],
            "lskd": [90.5, 91.5],
            "dkd": [89.0, 90.0],
            "ttm": [12.0, 13.0],
        },
    )
    summary = summarise(read([tmp_path / "runs"]))
    figure = figures.differences(summary)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xlim()[0] > -10
    assert [text.get_text() for text in axes.texts] == ["← -78.0"]
    curves = figures.accuracy(summary)
    assert curves is not None
    for axes, least, text in zip(curves.axes, (80, -10), ("↓ ttm 12.50", "↓ ttm -78.00"), strict=True):
        low, high = axes.get_ylim()
        assert low > least
        # The name at the edge lies on no curve.
        lowest = min(end for line in axes.lines if (end := float(line.get_ydata()[-1])) > low)
        assert (lowest - low) / (high - low) > 0.15
        assert [one.get_text() for one in axes.texts if one.get_text()] == [text]


def test_a_metric_that_hardly_varies_does_not_squeeze_the_others(tmp_path: Path) -> None:
    for method, edges in (("atkd", [5, 6, 7, 8]), ("ctkd", [3.0, 3.001, 3.002, 3.003])):
        temperature = {**RESULT["metrics"]["temperature"], "edges": edges}
        config = {"student": "resnet8", "method": method, "teacher": "big"}
        result = {**RESULT, "metrics": {"temperature": temperature}}
        write_run(tmp_path / method, [50.0], result, config=config)
    figure = figures.distribution(summarise(read([tmp_path / "atkd", tmp_path / "ctkd"])), "temperature")
    assert figure is not None
    shares, _ = figure.axes
    assert shares.get_ylim()[1] == pytest.approx(1.05 * 100 * 5 / 8)


def test_a_pretrained_teacher_has_a_row(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    description = {
        "format": 1, "model": "resnet56", "num_classes": 100, "image_shape": [32, 32, 3], "mean": [0.5] * 3,
        "std": [0.25] * 3, "data": "cifar100", "test_accuracy": 72.63, "digest": "of no variables",
    }  # fmt: skip
    (tmp_path / "big" / "teacher.json").write_text(json.dumps(description))
    text = report([tmp_path / "big", write_run(tmp_path / "run", [50.0], RESULT)], tmp_path / "out")
    assert table(text)[0] == ["big", "resnet56", "pretrained", "-", "72.63", "-", "-", "-", "-"]


def test_folders_that_are_not_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is the folder of neither a run nor a teacher"):
        report([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="no run is named"):
        report([], tmp_path / "out")
