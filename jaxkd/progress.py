"""Progress messages: how far a run is, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Say = Callable[[str], None]


class Lasting(str):
    """A line that stays where others are overwritten: a run's result."""

    __slots__ = ()


def print_line(text: str) -> None:
    """The default progress callback: prints; in a notebook, updates one line in place."""
    shell = _notebook()
    if shell is None:
        print(text, flush=True)
    else:
        _in_place(text, shell.execution_count)


def _notebook() -> Any:
    """IPython's shell, if it is a notebook's."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if hasattr(shell, "kernel") else None


class _InPlace:
    """The output of a notebook cell: the lasting lines, and the newest other one."""

    def __init__(self) -> None:
        self._cell: int | None = None
        self._lasting: list[str] = []
        self._shown: Any = None

    def __call__(self, text: str, cell: int) -> None:
        from IPython.display import display

        if cell != self._cell:
            self._cell, self._lasting, self._shown = cell, [], None
        output = {"text/plain": "\n".join([*self._lasting, text])}
        if isinstance(text, Lasting):
            self._lasting.append(text)
        if self._shown is None:
            self._shown = display(output, raw=True, display_id=True)
        else:
            self._shown.update(output, raw=True)


_in_place = _InPlace()


class ProgressLines:
    """Reports a run's progress: often at first, then at intervals that grow with the elapsed time."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.begin(0, 1)

    def begin(self, first_step: int, total_steps: int) -> None:
        """Starts the clock."""
        self._first, self._total = first_step, total_steps
        self._start = time.monotonic()
        self._said = {"train": self._start, "test": self._start}

    def leave_out(self, seconds: float, steps: int) -> None:
        """Leaves a call that compiled out of the time and of the steps: what is left takes none such."""
        self._start += seconds
        self._first += steps

    def _is_due(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._said[kind] < max(2.0, (now - self._start) / 40):
            return False
        self._said[kind] = now
        return True

    def trained(self, where: str, step: int, metrics: Mapping[str, Any], rate: float) -> None:
        """A line on training, if one is due; a metric's `str` is shown."""
        if not self._is_due("train"):
            return
        spent, done = time.monotonic() - self._start, step - self._first
        words = [
            where,
            f"step {step}/{self._total}",
            *(f"{name} {metric}" for name, metric in metrics.items()),
        ]
        if done > 0 and rate:
            left = spent / done * (self._total - step)
            words += [f"{rate:.0f} images/s", f"{duration(left)} left"]
        self._say("  ".join(words))

    def evaluated(self, where: str, scores: dict[str, float]) -> None:
        """A line on evaluation, if one is due."""
        if self._is_due("test"):
            self._say(f"{where}  test acc {scores['accuracy']:.2f} %  test ce {scores['ce']:.4f}")


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours too.

    >>> duration(75), duration(3675)
    ('1:15', '1:01:15')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
