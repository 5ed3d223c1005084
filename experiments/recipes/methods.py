"""Every method on the digits: a ResNet-8 under a ResNet-20, with the options of each method's source.

    python experiments/recipes/methods.py             # 10 epochs, 3 seeds; half an hour on two CPU cores
    python experiments/recipes/methods.py --small     # two epochs and one seed of three methods

Runs, table and figures go to a folder in `runs`; the same command goes on where it was stopped.  The weights
were published for CIFAR-100 and 240 epochs, and one test image of the digits is 0.28 points: this shows that
every method trains, and not which one is better.  MEKD has two stages and `mekd.py`.
"""

from __future__ import annotations

from pathlib import Path

import tyro
from digits import RECIPE

from jaxkd import methods
from jaxkd.cli import run
from jaxkd.runs import grid

OTHERS = ("labels", "mekd")  # "alone" in the table, and the recipe of two stages
SUMS = ("atkd+simkd", "kd+crd")
SMALL = ("atkd", "simkd", "crd")


def main(
    teacher: str = "digits-resnet20",
    data: str = "digits",
    data_dir: Path | None = None,
    epochs: int = 10,
    seeds: int = 3,
    small: bool = False,
    out: Path | None = None,
    records: Path | None = None,
) -> None:
    """Trains a student with every method, and reports them.

    Args:
      teacher: name or folder of a network trained on the data.
      data: data set.
      data_dir: folder of prepared TensorFlow Datasets (array_record).
      epochs: passes over the training images.
      seeds: number of seeds, from 0.
      small: two epochs and one seed of three methods.
      out: folder for the runs, and for the table and the figures; by default one in runs, named by data and
        epochs.
      records: folder that keeps the record of each finished run, and the table and the figures.  A run whose
        record is there is not made again.
    """
    chosen = SMALL if small else [name for name in (*methods.names(), *SUMS) if name not in OTHERS]
    options = {**RECIPE, "data": data, "data_dir": data_dir, "epochs": epochs, "seeds": seeds}
    if data != "digits":
        options |= {"crop_padding": None, "flip": None}
    if small:
        options |= {"epochs": 2, "seeds": 1}
    out = out or Path("runs") / f"methods-{Path(data).name}-{options['epochs']}-epochs"
    table = grid(
        out,
        pairs=[(teacher, "resnet8")],
        methods={name: {"method": name} for name in chosen},
        records=records,
        **options,
    )
    print(f"\n{table}\ntable and figures: {(records or out) / 'report'}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
