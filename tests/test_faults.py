"""A slice of experiments/faults: one round by default, all of them with -m slow; test_cli.py kills more."""

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


def test_a_round_and_its_table(tmp_path: Path, faults: ModuleType) -> None:
    what = "one bit of the newest checkpoint flipped"
    (fault,) = (fault for fault in faults.FAULTS if fault.what == what)
    lab = faults.Lab(tmp_path)
    played = faults.play(lab, fault, 0, seed=1)
    assert played["lost"] == []
    assert f"| {what} | 1 | 1 x named, set aside, the one before used | nothing |" in faults.table([played])
    assert "Nothing lost" in faults.table([played])
    harmed = faults.table([{**played, "lost": ["seed"]}])
    assert "| seed |" in harmed
    assert "Something was lost in 1 rounds" in harmed


@pytest.mark.slow
def test_all_faults(tmp_path: Path, faults: ModuleType) -> None:
    lab = faults.Lab(tmp_path)
    for fault in faults.FAULTS:
        assert faults.play(lab, fault, 0, seed=2)["lost"] == [], fault.what
