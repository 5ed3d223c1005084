"""Every claim's script runs as it stands, on the digits, and leaves its table and figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import helpers
import pytest

CLAIMS = Path(__file__).parents[1] / "experiments" / "claims"
# What each leaves under its --out.
LEFT = {
    "better_students": ["report/report.md", "report/table.tex", "report/differences.pdf"],
    "converges": ["report/report.md", "report/apart.pdf"],
    "cost": ["report.md", "cost.json"],
    "higher_temperatures": ["report.md", "table.csv", "higher_temperatures.pdf"],
    "nobody_tunes": ["report/report.md", "report/nobody_tunes.pdf"],
    "plugs_in": ["dkd/report/report.md", "dkd/report/differences.pdf"],
}
# The others compile training steps: half a minute to a minute of a CPU each.
QUICK = {"higher_temperatures"}


def test_all_claims_are_listed() -> None:
    assert sorted(LEFT) == sorted(path.stem for path in CLAIMS.glob("*.py"))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LEFT]
)
def test_a_claim_runs_small(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(CLAIMS / f"{name}.py"), "--small", "--out", str(tmp_path / "out")]
    quickly = helpers.environment()
    if name != "cost":  # what trains pays for code that is not optimised at all
        quickly["XLA_FLAGS"] = quickly["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    done = subprocess.run(command, env=quickly, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    for file in LEFT[name]:
        assert (tmp_path / "out" / file).stat().st_size > 100
    tables = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert any("digits" in line for line in tables) or name == "cost"
