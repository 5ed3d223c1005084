"""Claim: adaptive temperatures are higher than the usual fixed ones.  Teachers of 10 and of 100 classes.

    python experiments/claims/higher_temperatures.py           # minutes on two CPU cores
    python experiments/claims/higher_temperatures.py --small   # the teacher of the digits alone

The temperatures that a teacher's logits alone give (`of="teacher"`) for every test image: their distribution,
and by class.  No student is needed, and nothing is trained; how they move along training is in the records of
`better_students.py`.  z-scores bound them: with K classes by 1.366 sqrt((K - 1) / K) from below and by
1.366 (K - 1) / sqrt(K) from above, which is 3.89 for 10 classes and 13.52 for 100.
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.figure import Figure

from jaxkd import _markdown, data, standardize, teachers, temperature
from jaxkd.cli import run
from jaxkd.runs import figures

TEACHERS = ("digits-resnet20", "cifar10-resnet20", "cifar100-resnet56")
USUAL = (2.0, 4.0)  # fixed temperatures of the literature
BATCH = 500
RESULTS = Path(__file__).parents[1] / "results" / "claims"


def temperatures(teacher: teachers.Teacher, split: data.Split) -> tuple[np.ndarray, float]:
    """The temperature of each image, and the teacher's accuracy in percent."""
    found, correct = [], 0
    for start in range(0, len(split), BATCH):
        logits = teacher.logits(split.images[start : start + BATCH])
        z = standardize(logits)
        found.append(np.asarray(temperature.max_logit(z, z, of="teacher"))[:, 0])
        correct += int((np.asarray(logits).argmax(-1) == split.labels[start : start + BATCH]).sum())
    return np.concatenate(found), 100 * correct / len(split)


def bounds(num_classes: int) -> tuple[float, float]:
    factor = (1 + 3**0.5) / 2
    return factor * ((num_classes - 1) / num_classes) ** 0.5, factor * (num_classes - 1) / num_classes**0.5


def figure(found: dict[str, tuple[np.ndarray, np.ndarray, int]]) -> Figure:
    """Distributions, and means and 5 to 95 % of the images of each class, classes in order of their means."""
    with mpl.rc_context(figures.STYLE):
        made = Figure(figsize=(figures.COLUMN, 4.2), layout="constrained")
        above, below = made.subplots(2, 1)
        for place, (name, (taus, labels, num_classes)) in enumerate(found.items()):
            colour, line = figures.COLOURS[(3, 4, 2, 5, 6)[place % 5]], ("-", "--", "-.", ":")[place % 4]
            above.hist(
                taus, bins=40, weights=np.full(len(taus), 100 / len(taus)), histtype="step",
                color=colour, linestyle=line, label=f"{name}, {num_classes} classes",
            )  # fmt: skip
            above.axvline(bounds(num_classes)[1], color=colour, linestyle=line, linewidth=0.7, alpha=0.7)
            of_class = [taus[labels == label] for label in range(num_classes)]
            of_class = sorted((each for each in of_class if len(each)), key=np.mean)
            share = (np.arange(len(of_class)) + 0.5) / len(of_class)
            below.plot(share, [each.mean() for each in of_class], color=colour, linestyle=line)
            low, high = (np.array([np.quantile(each, part) for each in of_class]) for part in (0.05, 0.95))
            below.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
        for span in (above.axvspan, below.axhspan):
            span(*USUAL, color="0.88", linewidth=0, zorder=0)
        above.set(xlabel="temperature (thin lines: the bound)", ylabel="test images (%)", xlim=(1, None))
        below.set(xlabel="classes in order of their mean", ylabel="temperature", ylim=(1, None))
        below.set_xticks([])
        made.legend(frameon=False, loc="outside lower center")
    return made


def main(
    names: tuple[str, ...] = TEACHERS,
    data_dir: Path | None = None,
    out: Path | None = None,
    small: bool = False,
) -> None:
    """Temperatures of teachers' logits, by image and by class.

    Args:
      names: names or folders of teachers; the data are those that each was trained on.
      data_dir: folder of prepared TensorFlow Datasets (array_record).
      out: folder of the table and the figure; by default that of the committed ones, or
        runs/claims/higher_temperatures-small.
      small: the digits alone.
    """
    out = out or (Path("runs/claims/higher_temperatures-small") if small else RESULTS / "higher_temperatures")
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[np.ndarray, np.ndarray, int]] = {}
    rows = []
    for name in TEACHERS[:1] if small else names:
        teacher = teachers.load(name)
        own = teacher.description.data
        where = data_dir if own != "digits" and not own.endswith(".npz") else None
        split = data.load(own, data_dir=where, splits=("test",)).splits["test"]
        taus, accuracy = temperatures(teacher, split)
        found[teacher.name] = taus, np.asarray(split.labels), teacher.num_classes
        numbers = [taus.mean(), *np.quantile(taus, (0.05, 0.5, 0.95)), *bounds(teacher.num_classes)]
        about = [teacher.name, own, str(teacher.num_classes), f"{accuracy:.2f}"]
        above = [f"{100 * float((taus > usual).mean()):.1f}" for usual in USUAL]
        rows.append([*about, *(f"{number:.2f}" for number in numbers), *above])
    head = ["teacher", "data", "classes", "accuracy", "mean", "5 %", "median", "95 %", "lowest possible"]
    head += ["highest possible", *(f"above {usual:g} (%)" for usual in USUAL)]
    table = _markdown.table(head, rows, left=2)
    (out / "report.md").write_text(f"{table}\n![temperatures](higher_temperatures.png)\n")
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    figures.save(figure(found), out, "higher_temperatures")
    print(f"{table}\ntable and figure: {out}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
