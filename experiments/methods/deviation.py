"""How far every method is from its authors' code, in float64: a table of what the tests find.

    python experiments/methods/deviation.py

Runs the tests that compare losses, gradients, adapters, running statistics and whole training steps with the
numbers of `tests/fixtures`, the slow ones too.  Ten minutes on two cores; writes `results/deviation.md`.
"""

from __future__ import annotations

import collections
import sys
from pathlib import Path

import jax
import pytest

from jaxkd import _markdown, methods

HERE = Path(__file__).parent
TESTS = HERE.parents[1] / "tests"
FILES = ("losses/test_fixtures.py", "methods")
COLUMNS = ("value", "gradient", "adapters", "statistics")
STEPS = ("steps, student", "steps, adapters", "steps, statistics", "steps, losses")


class Kept:
    """The deviations that tests hold against a limit, by method and column."""

    def __init__(self) -> None:
        self.largest: dict[str, dict[str, float]] = collections.defaultdict(dict)
        self.comparisons: collections.Counter[str] = collections.Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "off" in getattr(item, "fixturenames", ())]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "deviation":
                method, column, deviation = value
                row = self.largest[method]
                row[column] = max(row.get(column, 0.0), deviation)
                self.comparisons[method] += 1


def main() -> None:
    kept = Kept()
    options = ["-o", "addopts=", "--import-mode=importlib", "-q"]
    failed = pytest.main([*options, *(str(TESTS / file) for file in FILES)], plugins=[kept])
    rows = []
    for name in (*methods.names(), *sorted(kept.largest.keys() - set(methods.names()))):
        found = [kept.largest[name].get(column) for column in (*COLUMNS, *STEPS)]
        numbers = ["-" if value is None else f"{value:.0e}" for value in found]
        rows.append([name, str(kept.comparisons[name]), *numbers])
    out = HERE / "results" / "deviation.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, float64.  Largest deviation, divided by the "
        "largest entry of an array,\nor by the sum of absolute values in tables of sums.  Steps: three of "
        "SGD, by the training step; a run's own sums of\nlosses are float32.\n\n"
        + _markdown.table(["method", "comparisons", *COLUMNS, *STEPS], rows, left=1)
    )
    print(out.read_text())
    sys.exit(failed)


if __name__ == "__main__":
    main()
