"""Claim: nobody has to tune the temperature.  CIFAR-100, ResNet-56 to ResNet-8, a short schedule.

    python experiments/claims/nobody_tunes.py           # hours; it goes on where it was stopped
    python experiments/claims/nobody_tunes.py --small   # the digits, three temperatures

KD on z-scores with fixed temperatures from 1 to 12 and in their limit, the correlation loss, beside the
adaptive temperature, all with weight 9; then the weights 1, 3 and 27 for the temperature 2 and for the
adaptive one.  Does the adaptive temperature reach the best fixed one without a search?  The best fixed one is
chosen on the test set, which favours it.  The recipe and the teacher are those of `better_students.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import tyro
from better_students import FIRST_PAIR, setting
from matplotlib.figure import Figure

from jaxkd.cli import run
from jaxkd.runs import figures, grid
from jaxkd.runs.statistics import spread
from jaxkd.runs.summary import Cell, read, summarise

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
WEIGHTS = (1.0, 3.0, 9.0, 27.0)
CE_WEIGHT = 0.1
RECORDS = Path(__file__).parents[1] / "results/claims/nobody_tunes"


def methods_of(temperatures: tuple[float, ...], weights: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    def on_z(temperature: float | str, weight: float) -> dict[str, Any]:
        values = {"temperature": temperature, "weight": weight, "ce_weight": CE_WEIGHT}
        return {"method": "lskd" if isinstance(temperature, float) else "atkd", "method_options": values}

    return {
        "adaptive": on_z("max_logit", 9.0),
        **{f"T={value:g}": on_z(value, 9.0) for value in temperatures},
        "correlation": {"method": "correlation", "method_options": {"weight": 9.0, "ce_weight": CE_WEIGHT}},
        **{
            f"{name}, weight {weight:g}": on_z(temperature, weight)
            for weight in weights
            if weight != 9.0
            for name, temperature in (("adaptive", "max_logit"), ("T=2", 2.0))
        },
    }


def figure(cells: dict[str, Cell]) -> Figure:
    """Accuracy over the fixed temperature, with the adaptive one across; and over the weight."""
    spreads = {
        name: spread(list(cell.accuracies.values())) for name, cell in cells.items() if cell.accuracies
    }
    with mpl.rc_context(figures.STYLE):
        made = Figure(figsize=(figures.COLUMN, 3.9), layout="constrained")
        left, right = made.subplots(2, 1, sharey=True)

        def draw(
            axes: Any, places: list[float], names: list[str], colour: str, marker: str, label: str
        ) -> None:
            known = [(place, name) for place, name in zip(places, names, strict=True) if name in spreads]
            if not known:
                return
            axes.errorbar(
                [place for place, _ in known],
                [spreads[name].mean for _, name in known],
                [spreads[name].deviation or 0.0 for _, name in known],
                color=colour, marker=marker, markersize=3, capsize=2, label=label,
            )  # fmt: skip

        orange, blue = figures.COLOURS[1], figures.COLOURS[3]
        draw(left, list(TEMPERATURES), [f"T={value:g}" for value in TEMPERATURES], orange, "s", "fixed")
        draw(left, [20.0], ["correlation"], figures.COLOURS[5], "^", "limit (correlation)")
        if "adaptive" in spreads:
            own = spreads["adaptive"]
            left.axhline(own.mean, color=blue, label="adaptive")
            half = own.deviation or 0.0
            left.axhspan(own.mean - half, own.mean + half, color=blue, alpha=0.15, linewidth=0)
        left.set_xscale("log")
        ticks = [*TEMPERATURES, 20.0]
        left.set_xticks(ticks, [*(f"{value:g}" for value in TEMPERATURES), "∞"])
        left.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        left.set(xlim=(0.9, 23.0), xlabel="temperature, at weight 9", ylabel="test accuracy (%)")
        for name, colour, marker in (("T=2", orange, "s"), ("adaptive", blue, "D")):
            names = [name if weight == 9.0 else f"{name}, weight {weight:g}" for weight in WEIGHTS]
            draw(right, list(WEIGHTS), names, colour, marker, name)
        right.set_xscale("log")
        right.set_xticks(WEIGHTS, [f"{weight:g}" for weight in WEIGHTS])
        right.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        right.set(xlabel="weight of the distillation loss", ylabel="test accuracy (%)")
        for axes in (left, right):
            axes.legend(frameon=False, fontsize=6.5)
    return made


def main(
    teacher: str = "cifar100-resnet56",
    student: str = "resnet8",
    methods: tuple[str, ...] = (),
    seeds: int = 3,
    data_dir: Path | None = None,
    out: Path | None = None,
    records: Path | None = RECORDS,
    small: bool = False,
) -> None:
    """KD on z-scores over temperatures and weights, fixed and adaptive.

    Args:
      teacher: name or folder of a network trained on CIFAR-100.
      student: architecture of the students.
      methods: which ones, by their names here ("adaptive", "T=4", "adaptive, weight 27", ...); or all.
      seeds: number of seeds, from 0.
      data_dir: folder of prepared TensorFlow Datasets (array_record).
      out: folder for the runs; by default runs/claims/nobody_tunes, or runs/claims/nobody_tunes-small.
      records: folder of the records of finished runs, of the tables and the figures.
      small: the digits for two epochs instead, one temperature, with the teacher that comes with jaxkd.
    """
    out = out or Path(f"runs/claims/nobody_tunes{'-small' if small else ''}")
    teacher, records, options = setting(teacher, records, seeds=seeds, data_dir=data_dir, small=small)
    known = methods_of((2.0,), ()) if small else methods_of(TEMPERATURES, WEIGHTS)
    if others := set(methods) - known.keys():
        raise ValueError(f"no method {', '.join(sorted(others))}; there are {'; '.join(known)}")
    table = grid(
        out,
        pairs=[(teacher, student)],
        methods={name: known[name] for name in methods or known},
        alone=False,
        records=records,
        reuse=[FIRST_PAIR],
        baseline="adaptive",
        **options,
    )
    cells = {name: cell for (name, _), cell in summarise(read([records or out]), by_name=True).cells.items()}
    figures.save(figure(cells), (records or out) / "report", "nobody_tunes")
    print(f"\n{table}\ntable and figures: {(records or out) / 'report'}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
