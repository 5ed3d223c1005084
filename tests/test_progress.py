"""Where progress goes: a line at a time, or in a notebook one line that is updated in place."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from jaxkd.progress import Lasting, ProgressLines, print_line


class Cell:
    """A stand-in for IPython: what each output of the cells shows at the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outputs: list[str] = []
        self.shell = types.SimpleNamespace(kernel=object(), execution_count=1)
        ipython, shown = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        ipython.get_ipython = lambda: self.shell  # type: ignore[attr-defined]
        shown.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", shown)

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        place = len(self.outputs)
        self.outputs.append(data["text/plain"])

        def update(data: dict[str, str], *, raw: bool) -> None:
            self.outputs[place] = data["text/plain"]

        return types.SimpleNamespace(update=update)


def test_a_notebook_shows_one_line_and_what_lasts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Cell(monkeypatch)
    for text in ("compiling", "epoch 1", Lasting("one: done"), "compiling", "epoch 1"):
        print_line(text)
    assert cell.outputs == ["one: done\nepoch 1"]
    print_line(Lasting("two: done"))
    assert cell.outputs == ["one: done\ntwo: done"]
    cell.shell.execution_count = 2
    print_line("compiling")
    assert cell.outputs == ["one: done\ntwo: done", "compiling"]
    assert capsys.readouterr().out == ""


def test_elsewhere_lines_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Cell(monkeypatch)
    del cell.shell.kernel  # IPython in a terminal
    print_line("epoch 1")
    print_line(Lasting("done"))
    assert capsys.readouterr().out == "epoch 1\ndone\n"


def test_the_time_left_is_that_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty seconds of compilation, then ten steps a second."""
    now, said = 1000.0, []
    monkeypatch.setattr("time.monotonic", lambda: now)
    lines = ProgressLines(said.append)
    lines.begin(first_step=50, total_steps=1050)
    now += 40
    lines.leave_out(40, steps=25)
    now += 10
    lines.trained("epoch 1/9", 175, {"loss": 2.5}, 640.0)
    assert said == ["epoch 1/9  step 175/1050  loss 2.5  640 images/s  1:28 left"]
    now += 1
    lines.trained("epoch 1/9", 185, {"loss": 2.4}, 640.0)
    assert len(said) == 1  # not due yet
    lines.begin(first_step=0, total_steps=100)
    lines.leave_out(0.5, steps=1)
    now += 3
    lines.trained("epoch 1/100", 1, {"loss": 2.5}, 0.0)  # the call that compiled was all so far
    assert said.pop() == "epoch 1/100  step 1/100  loss 2.5"
    now += 1
    lines.evaluated("epoch 1/9", {"accuracy": 12.5, "ce": 2.0})
    assert said[1:] == ["epoch 1/9  test acc 12.50 %  test ce 2.0000"]
