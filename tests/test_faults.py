"""A slice of experiments/faults: the same rounds, a few of them by default and all of them with -m slow."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    path = Path(__file__).parents[1] / "experiments" / "faults" / "run.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_killed_in_a_row_and_damaged(tmp_path: Path, faults: ModuleType) -> None:
    lab = faults.Lab(tmp_path)
    wanted = "SIGKILL at any moment", "one bit of the newest checkpoint flipped"
    rounds = [faults.play(lab, fault, 0, seed=1) for fault in faults.FAULTS if fault.what in wanted]
    assert [played["lost"] for played in rounds] == [[], []]
    table = faults.table(rounds)
    assert f"| {wanted[0]} |" in table
    assert table.count("| nothing |") == 2


@pytest.mark.slow
def test_all_faults(tmp_path: Path, faults: ModuleType) -> None:
    lab = faults.Lab(tmp_path)
    for fault in faults.FAULTS:
        assert faults.play(lab, fault, 0, seed=2)["lost"] == [], fault.what
