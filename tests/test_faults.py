"""The script of experiments/faults: its table by default, its rounds with -m slow; test_cli.py kills too."""

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


def test_the_table_tells_what_was_lost(faults: ModuleType) -> None:
    kill, damage = faults.FAULTS[0].what, faults.FAULTS[-1].what
    strikes = [{"where": "in a save", "exit_code": -9}, {"where": "after the end", "exit_code": 0}]
    played = [
        {"fault": kill, "strikes": strikes, "lost": []},
        {"fault": damage, "said": "named", "lost": []},
    ]
    table = faults.table(played)
    assert f"| {kill} | 1 | 1 x in a save (exit code -9) | nothing |" in table
    assert f"| {damage} | 1 | 1 x named | nothing |" in table
    assert "1 kills and 1 other faults in 2 rounds. Nothing lost" in table
    harmed = faults.table([played[0], {**played[1], "lost": ["seed"]}])
    assert "| seed |" in harmed
    assert "Something was lost in 1 rounds" in harmed


@pytest.mark.slow
def test_all_faults(tmp_path: Path, faults: ModuleType) -> None:
    lab = faults.Lab(tmp_path)
    for fault in faults.FAULTS:
        assert faults.play(lab, fault, 0, seed=2)["lost"] == [], fault.what
