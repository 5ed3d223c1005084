"""The reference is complete, its pages' programs run, and the commands that pages type exist."""

from __future__ import annotations

import inspect
import re
import runpy
import shlex
from pathlib import Path

import pytest

pytest.importorskip("flax")

import jaxkd
from jaxkd import losses, methods, temperature
from jaxkd.cli.commands import COMMANDS
from jaxkd.cli.parse import parse

DOCS = Path(__file__).parents[1] / "docs"
RULES = [
    name
    for name, thing in vars(temperature).items()
    if inspect.isfunction(thing) and not name.startswith("_") and thing.__module__ == temperature.__name__
]


def test_every_loss_and_temperature_has_its_formula_and_its_place() -> None:
    formulas = runpy.run_path(str(DOCS / "formulas.py"))["FORMULAS"]
    wanted = {f"losses.{name}" for name in losses.__all__}
    wanted |= {f"temperature.{name}" for name in RULES if name not in ("resolve",)}
    assert wanted - formulas.keys() == set()
    page = (DOCS / "api" / "losses.md").read_text()
    assert [name for name in losses.__all__ if f"jaxkd.losses.{name}\n" not in page] == []


@pytest.mark.parametrize("page", ["coming_from.md", "data.md", "teachers.md"])
def test_commands_of_the_pages_are_commands(page: str) -> None:
    blocks = re.findall(r"^```bash\n(.*?)```", (DOCS / page).read_text(), re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("jaxkd ")]
    assert commands
    for words in commands:
        name, _ = parse({name: kind for name, (kind, _) in COMMANDS.items()}, words, "")
        assert name == words[0]


def test_options_that_others_are_mapped_to_exist() -> None:
    page = (DOCS / "coming_from.md").read_text()
    single = {name for known in methods.names() for name in methods.accepted(known)}
    joined = set(methods.accepted("crd+kd")) | set(methods.accepted("kd+at"))
    mapped = re.findall(r"`(?:--method)?\.([a-z][a-z-]+)", page)
    assert len(mapped) > 20
    assert [name for name in mapped if name.replace("-", "_") not in single | joined] == []
    flags = {
        f"--{field}".replace("_", "-")
        for kind, _ in COMMANDS.values()
        for field in vars(kind(**_least(kind)))
    }
    ours = {"--schedule", "--learning-rate", "--seed", "--seeds", "--wandb", "--fork", "--distributed"}
    assert ours <= flags


def _least(kind: type) -> dict[str, object]:
    """The options that a command requires."""
    given = {"teacher": "x", "file": Path("x.safetensors"), "runs": (Path("x"),)}
    return {name: value for name, value in given.items() if name in kind.__dataclass_fields__}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("page", "printed"), [("data.md", "3 (8, 8, 3) 6"), ("coming_from.md", "")])
def test_programs_of_the_pages_run(
    page: str,
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"^```python\n(.*?)```", (DOCS / page).read_text(), re.S | re.M)
    assert programs
    for program in programs:
        scope: dict = {}
        exec(compile(program, page, "exec"), scope)
    assert printed in capsys.readouterr().out


def test_the_citation_names_this_version() -> None:
    citation = (DOCS.parent / "CITATION.cff").read_text()
    assert f"\nversion: {jaxkd.__version__}\n" in citation
