"""A user's script is checked strictly: what is right passes, and every mistake is found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
ROOT = HERE.parents[1]
TOOLS = {
    "mypy": ["mypy", "--strict", "--config-file="],
    "pyright": ["pyright", "--pythonpath", sys.executable],  # its wheel fetches node when it first runs
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_a_users_script(tool, tmp_path):
    pytest.importorskip(tool)
    files = sorted(path.name for path in HERE.glob("*.py"))
    for name in files:
        (tmp_path / name).write_text((HERE / name).read_text())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
    command = [sys.executable, "-m", *TOOLS[tool], *files]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    found = {int(line) for line in re.findall(r"user_wrong\.py:(\d+):.*error", done.stdout)}
    wrong = (HERE / "user_wrong.py").read_text().splitlines()
    expected = {number for number, line in enumerate(wrong, 1) if line.endswith("# wrong")}
    assert found == expected, done.stdout + done.stderr
    assert not re.search(r"(user|user_training)\.py:\d+:.*error", done.stdout), done.stdout
