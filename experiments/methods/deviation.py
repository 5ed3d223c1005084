"""How far the methods on features are from their authors' codes, in float64.

    python experiments/methods/deviation.py

Compares losses, gradients of features and students, gradients and values of adapters, and running statistics
with the numbers of `tests/fixtures/features.npz`: with drawn features, with whole networks, and through three
steps of SGD.  About three minutes on two cores; writes `results/deviation.md`.
"""

from __future__ import annotations

import pathlib
import sys

import jax

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import feature_parity as parity  # noqa: E402

from jaxkd import _markdown  # noqa: E402

OUT = HERE / "results" / "deviation.md"
COLUMNS = ("value", "gradient", "adapters", "statistics")


def main() -> None:
    keys = sorted({tuple(f"{key}//".split("/")[:3]) for key in parity.FIXTURES.files})
    rows = []
    for name, names in parity.METHODS.items():
        drawn = sorted({pair for kind, pair, _ in keys if kind == name} - {"margin_table"})
        whole = [pair for kind, pair, of in keys if (kind, of) == ("net", name)]
        cases = [parity.adapters(name, pair) for pair in drawn]
        cases += [parity.whole_networks(name, pair) for pair in whole]
        steps = [parity.recipe(key) for key, (of, *_) in parity.RECIPES.items() if of == name]
        losses = [f"{step.pop('value'):.0e}" for step in steps]  # a run's own sums are float32
        found = {column: max((case[column] for case in cases + steps if column in case), default=None)
                 for column in COLUMNS}  # fmt: skip
        numbers = ["-" if value is None else f"{value:.0e}" for value in found.values()]
        rows.append([names.method, str(len(cases)), *numbers, *(losses or ["-"])])
        print(*rows[-1], flush=True)
    head = ["method", "cases", *COLUMNS, "sums of a run (float32)"]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, float64.  Largest deviation, divided by the "
        "largest entry of an array,\nor by the sum of absolute values in tables of sums.\n\n"
        + _markdown.table(head, rows, left=1)
    )


if __name__ == "__main__":
    main()
