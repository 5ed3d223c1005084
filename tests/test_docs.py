"""The programs of "bring it into your own loop" run as they stand, and learn."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "own_loop.md"
PROGRAMS = dict(re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", PAGE.read_text(), re.S | re.M))
LANGUAGE_MODEL = "Language model"
PROGRAMS[LANGUAGE_MODEL] = re.findall(
    r"^```python\n(.*?)```", (ROOT / "docs" / "language_models.md").read_text(), re.S | re.M
)[0]


def test_the_pages_have_their_programs():
    assert [name.split(":")[0] for name in PROGRAMS] == [
        "Several devices", "Flax NNX", "Flax Linen", "Equinox", "Haiku", "Plain JAX, on one device",
        "Shapes that are checked", LANGUAGE_MODEL,
    ]  # fmt: skip
    assert len([line for line in PROGRAMS[LANGUAGE_MODEL].splitlines() if line.strip()]) <= 60


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_runs_and_learns(name, capsys):
    for package in ("flax", "optax", "equinox", "haiku", "jaxtyping", "beartype"):
        if re.search(rf"^(import|from) {package}", PROGRAMS[name], re.M):
            pytest.importorskip(package)
    scope = {"__name__": "__main__"}
    exec(compile(PROGRAMS[name], f"{PAGE.name}: {name}", "exec"), scope)
    assert scope["history"][-1] < 0.7 * scope["history"][0]
    assert capsys.readouterr().out.startswith("loss ")


def test_the_table_of_methods_is_the_one_that_the_command_prints():
    from jaxkd.methods import listing

    table = listing.table().strip()
    page = (ROOT / "docs" / "which_method.md").read_text()
    assert table in page, f"docs/which_method.md must hold this table:\n{table}"


def test_the_program_of_the_page_on_scale_runs():
    program = re.search(r"^```python\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), re.S | re.M)
    exec(compile(program.group(1), "scale.md", "exec"), {})


def test_the_programs_of_the_readme_run(tmp_path, monkeypatch):
    import helpers

    from jaxkd import data

    loop, notebook = re.findall(r"^```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S | re.M)
    scope: dict = {}
    exec(compile(loop, "README.md", "exec"), scope)
    assert scope["grads"].shape == (4, 3)
    assert float(abs(scope["grads"]).max()) > 0

    dataset = helpers.tiny_dataset()
    helpers.untrained_teacher(tmp_path / "teachers" / "resnet56", dataset)
    helpers.write_npz(tmp_path / "tiny.npz", dataset)
    monkeypatch.chdir(tmp_path)
    # On a small data set and for one epoch; otherwise as it stands.
    notebook = notebook.replace('data="cifar100"', 'data="tiny.npz", epochs=1, devices=1')
    scope = {"images": data.load("tiny.npz").splits["test"].images}
    exec(compile(notebook, "README.md", "exec"), scope)
    assert scope["logits"].shape == (19, 3)
    assert scope["result"]["epochs"] == 1


def test_the_programs_of_the_teachers_page_run(tmp_path, monkeypatch, request):
    pytest.importorskip("flax")
    from jaxkd import data

    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "teachers.md").read_text()
    notebook, checkpoint, function = re.findall(r"^```python\n(.*?)```", page, re.S | re.M)
    digits = data.load("digits").splits["test"]
    scope = {"images": digits.images}
    exec(compile(notebook, "teachers.md", "exec"), scope)
    assert (scope["logits"].argmax(-1) == digits.labels).mean() > 0.95
    scope = {}
    exec(compile(checkpoint, "teachers.md", "exec"), scope)
    assert scope["teacher"].num_classes == 10
    scope = {}
    request.getfixturevalue("few_digits")  # it trains
    exec(compile(function, "teachers.md", "exec"), scope)
    assert scope["result"]["teacher"] == "mine"
