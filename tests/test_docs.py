"""The programs of "bring it into your own loop" run as they stand, and learn."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "own_loop.md"
PROGRAMS = dict(re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", PAGE.read_text(), re.S | re.M))


def test_the_page_has_the_three_programs():
    assert list(PROGRAMS) == ["Plain JAX", "Flax Linen", "Flax NNX"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_runs_and_learns(name, capsys):
    if "flax" in PROGRAMS[name]:
        pytest.importorskip("flax")
    scope = {"__name__": "__main__"}
    exec(compile(PROGRAMS[name], f"{PAGE.name}: {name}", "exec"), scope)
    assert scope["history"][-1] < 0.7 * scope["history"][0]
    assert capsys.readouterr().out.startswith("loss ")
