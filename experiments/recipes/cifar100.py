"""CIFAR-100: a ResNet-56 taught to a ResNet-8, with the recipe of the distillation literature.

    python experiments/recipes/cifar100.py             # 240 epochs a run, from teachers/resnet56
    python experiments/recipes/cifar100.py --epochs 3  # the same schedule, squeezed
    python experiments/recipes/cifar100.py --small     # the digits, two epochs

The teacher is any network trained on CIFAR-100; `jaxkd import` makes one of a published PyTorch file:

    jaxkd import cifar100_resnet56.pt --model resnet56 --data cifar100 --out teachers/resnet56 \
        --mean 0.5070 0.4865 0.4409 --std 0.2673 0.2564 0.2761

Every number of the recipe stands below.  Expected for three epochs and seed 0 on a CPU, with a teacher of
72.63 %: alone 24.6 %, kd 27.8 %, atkd 31.4 % (in `experiments/results`).  On two CPU cores an epoch takes
some two and a half minutes with the teacher in the loop, and one with a cache of its logits (`jaxkd cache`).
"""

from __future__ import annotations

from pathlib import Path

import tyro

from jaxkd.cli import run
from jaxkd.runs import grid

RECIPE = {
    "data": "cifar100",
    "epochs": 240,
    "batch_size": 64,
    "optimizer": "sgd",
    "learning_rate": 0.05,  # 0.01 for MobileNet and ShuffleNet students
    "schedule": "steps",  # times 0.1 after 62.5, 75 and 87.5 %: epochs 150, 180 and 210
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "crop_padding": 4,
    "flip": True,
}
METHODS = {
    "kd": {"method": "kd", "method_options": {"temperature": 4.0, "weight": 0.9, "ce_weight": 0.1}},
    "atkd": {"method": "atkd", "method_options": {"weight": 9.0, "ce_weight": 0.1}},
}
SMALL = {"data": "digits", "epochs": 2, "crop_padding": 1, "flip": False}


def main(
    teacher: str = "teachers/resnet56",
    student: str = "resnet8",
    epochs: int = 240,
    seeds: int = 1,
    data_dir: Path | None = None,
    out: Path | None = None,
    small: bool = False,
) -> None:
    """Students of a ResNet-56 on CIFAR-100: alone, with a fixed temperature, and with the adaptive one.

    Args:
      teacher: name or folder of a network trained on CIFAR-100.
      student: architecture of the students.
      epochs: passes over the training images; the schedule is stretched to fit.
      seeds: number of seeds, from 0.
      data_dir: folder of prepared TensorFlow Datasets (array_record).
      out: folder for the runs, the table and the figures; by default one in runs, named by student and
        epochs.
      small: the digits for two epochs instead, with the teacher that comes with jaxkd.
    """
    options = {**RECIPE, "epochs": epochs, "seeds": seeds, "data_dir": data_dir}
    if small:
        teacher, options = "digits-resnet20", {**RECIPE, **SMALL, "seeds": seeds}
    out = out or Path("runs") / ("cifar100-small" if small else f"cifar100-{student}-{epochs}-epochs")
    table = grid(out, pairs=[(teacher, student)], methods=METHODS, **options)
    print(f"\n{table}\ntable and figures: {out / 'report'}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
