"""Grids: the order of runs, and records of finished runs that stand for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import helpers
import jax
import pytest

from jaxkd import methods
from jaxkd.files import records
from jaxkd.runs import grid
from jaxkd.runs.record import CONFIG
from jaxkd.runs.summary import read, summarise


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("grid")
    dataset = helpers.tiny_dataset()
    helpers.write_npz(folder / "tiny.npz", dataset)
    teacher = helpers.untrained_teacher(folder / "teacher", dataset)
    return {
        "pairs": [(str(teacher), "resnet8")],
        "methods": {"kd": {"method": "kd"}},
        "data": str(folder / "tiny.npz"),
        "epochs": 1,
        "batch_size": 16,
        "devices": 1,
        "seeds": 2,
    }


@pytest.fixture(scope="module")
def made(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished grid, with its records in `records`."""
    folder = tmp_path_factory.mktemp("made")
    grid(folder / "all", records=folder / "records", say=lambda _: None, **options)
    return folder


def test_all_methods_of_a_seed_come_first(made: Path) -> None:
    finished = sorted((made / "all").glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.parent.name for path in finished] == [
        f"{name}-seed{seed}" for seed in (0, 1) for name in ("alone", "kd")
    ]


def test_a_grid_of_one_seed_is_the_first_of_one_of_several(made: Path, options: dict[str, Any]) -> None:
    said: list[str] = []
    grid(made / "all", records=made / "records", say=said.append, **{**options, "seeds": 1})
    assert said[:2] == [f"{made / 'records' / name} is done already" for name in ("alone-seed0", "kd-seed0")]


def test_records_stand_for_runs_on_another_machine(
    made: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    kept = shutil.copytree(made / "records", tmp_path / "records")
    names = {path.name.removesuffix(".sha256") for path in (kept / "kd-seed1").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "result.json"}
    assert str(made) not in (kept / "kd-seed1" / "config.json").read_text()
    shutil.rmtree(kept / "alone-seed0")
    (kept / "kd-seed1" / "result.json").unlink()  # as if a copy had been cut off
    said: list[str] = []
    table = grid(tmp_path / "all", records=kept, say=said.append, **options)
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"kd-seed1", "alone-seed0"}
    assert (kept / "report" / "table.tex").is_file()
    assert sum("is done already" in line for line in said) == 2
    for name in ("kd-seed1", "alone-seed0"):
        before, after = (json.loads((r / name / "result.json").read_text()) for r in (made / "records", kept))
        assert {k: v for k, v in before.items() if k not in ("seconds", "images_per_second")} == {
            k: v for k, v in after.items() if k not in ("seconds", "images_per_second")
        }
    assert table == (grid(tmp_path / "all", records=kept, say=said.append, **options))
    assert summarise(read([kept])).methods == ("alone", "kd")


def test_a_run_of_another_grid_is_taken_where_its_options_are_the_same(
    made: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    said: list[str] = []
    methods = {"another name": {"method": "kd"}}
    places = {"records": tmp_path / "records", "reuse": [made / "records"]}
    grid(tmp_path / "all", say=said.append, **{**options, "methods": methods}, **places)
    assert not (tmp_path / "all").exists()
    assert all("is done already" in line for line in said)
    names = {path.name for path in (tmp_path / "records").iterdir()}
    assert names == {"report", *(f"{n}-seed{s}" for n in ("alone", "another name") for s in (0, 1))}
    assert "| another name " in (tmp_path / "records" / "report" / "report.md").read_text()


def _doubled(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: 2 * leaf, tree)


def test_a_record_of_another_run_is_refused_before_anything_is_trained(
    made: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    kept = shutil.copytree(made / "records", tmp_path / "records")
    with pytest.raises(ValueError, match=r"records another run; different: epochs \(there 1, here 2\)"):
        grid(tmp_path / "all", records=kept, **{**options, "epochs": 2})
    other = helpers.untrained_teacher(tmp_path / "other", helpers.tiny_dataset(), change=_doubled)
    with pytest.raises(ValueError, match="records another run; different: teacher_digest"):
        grid(tmp_path / "all", records=kept, **{**options, "pairs": [(str(other), "resnet8")]})
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("name", ["alone", "kd"])
def test_two_runs_with_one_folder_are_refused_before_anything_is_trained(
    options: dict[str, Any], tmp_path: Path, name: str
) -> None:
    """A method has the name of the student alone; two teachers' folders have one name."""
    teacher, student = options["pairs"][0]
    changes = {"methods": {name: {"method": "kd"}}}
    if name == "kd":
        other = shutil.copytree(teacher, tmp_path / "other" / Path(teacher).name)
        changes["pairs"] = [(teacher, student), (str(other), student)]
    with pytest.raises(ValueError, match=f"two runs of the grid would have the folder .*{name}.*; rename"):
        grid(tmp_path / "all", **{**options, **changes})
    assert not (tmp_path / "all").exists()


def test_a_record_of_a_teacher_that_sees_another_size_is_found(
    options: dict[str, Any], tmp_path: Path
) -> None:
    said: list[str] = []
    again = {**options, "seeds": 1, "alone": False, "teacher_size": 16}
    for _ in range(2):
        grid(tmp_path / "all", records=tmp_path / "records", say=said.append, **again)
    assert f"{tmp_path / 'records' / 'kd-seed0'} is done already" in said


def test_a_record_without_an_option_is_of_its_default(
    made: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """An option that is newer than the record."""
    folder = shutil.copytree(made / "records", tmp_path / "records")
    for place in folder.glob("kd-seed*"):
        contents = records.read(place / "config.json", CONFIG)
        del contents["identity"]["method.standardize"]
        records.write(place / "config.json", CONFIG, contents)
    grid(tmp_path / "all", records=folder, say=lambda _: None, **options)
    changed = {"kd": {"method": "kd", "method_options": {"standardize": True}}}
    with pytest.raises(ValueError, match=r"records another run; different: .*standardize"):
        grid(tmp_path / "all", records=folder, **{**options, "methods": changed})


def test_a_row_without_a_method_has_that_of_its_name(
    made: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    said: list[str] = []
    rows = {**options, "methods": {"kd": {}}}
    grid(tmp_path / "all", records=made / "records", say=said.append, **rows)
    assert f"{made / 'records' / 'kd-seed0'} is done already" in said
    with pytest.raises(ValueError, match='unknown method "mine"'):
        grid(tmp_path / "all", **{**options, "methods": {"mine": {}}})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": {"kd": {"optimizer": "adma"}}}, ValueError, 'unknown optimizer "adma"'),
        ({"methods": {"kd": {"accumulate": 3}}}, ValueError, "16"),
        (
            {"methods": {"a": {"method": methods.create("kd"), "method_options": {"weight": 2.0}}}},
            ValueError,
            "method_options of row a would have no effect",
        ),
        ({"methods": ["kd"]}, TypeError, "methods must map names to options"),
        ({"methods": {"kd": "kd"}}, TypeError, "methods must map names to options"),
    ],
)
def test_rows_that_cannot_run_are_refused_before_anything_is_trained(
    options: dict[str, Any], tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        grid(tmp_path / "all", **{**options, **changes})
    assert not (tmp_path / "all").exists()


def test_a_baseline_that_is_not_in_the_grid_is_refused_before_anything_is_trained(
    options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="baseline dkd is no row of this grid; choose one of alone, kd"):
        grid(tmp_path / "all", **{**options, "baseline": "dkd"})
    assert not (tmp_path / "all").exists()
