"""Claim: the adaptive temperature makes better students.  CIFAR-100, ResNet-56 to ResNet-8, a short schedule.

    python experiments/claims/better_students.py           # hours; it goes on where it was stopped
    python experiments/claims/better_students.py --small   # the digits, two methods
    python experiments/claims/better_students.py --student wrn_16_1 --methods kd lskd atkd dtkd # another pair
    python experiments/claims/better_students.py --epochs 240 --methods kd dtkd atkd lskd       # days

Eight epochs, in which the learning rate drops after 5, 6 and 7: the recipe of the distillation
literature (240 epochs, drops after 150, 180, 210), squeezed.  So are the warm-ups that some methods have in
their first 20 epochs and CTKD's decay over 10: of eight epochs, less than one is left of each.  Weights are
those of each method's authors for the full schedule.  All methods of seed 0 come first.

The teacher is made of a published PyTorch file, and is found by its name:

    jaxkd import cifar100_resnet56.pt --model resnet56 --data cifar100 \
        --mean 0.5070 0.4865 0.4409 --std 0.2673 0.2564 0.2761

Its logits on the views of a seed are computed once, by the first run of the seed that needs them.  Finished
runs leave their records in `experiments/results/claims/better_students`, and are not made again on any
machine that has them.  Two CPU cores that do nothing else take six to ten minutes a run, and fifteen for the
logits of a seed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

from jaxkd._names import unknown
from jaxkd.cli import run
from jaxkd.runs import grid

T = TypeVar("T")
RECIPE = {
    "data": "cifar100",
    "batch_size": 64,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "schedule": "steps",  # times 0.1 after 62.5, 75 and 87.5 % of the epochs: 5, 6 and 7 of 8
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "crop_padding": 4,
    "flip": True,
}
Z = {"standardize": True}
FULL = 240  # epochs; the warm-ups and the decay below are of this schedule, and are squeezed with it
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("kd", {"temperature": 4.0, "weight": 0.9, "ce_weight": 0.1}),
    "atkd": ("atkd", {"temperature": "max_logit", "weight": 9.0, "ce_weight": 0.1}),
    "lskd": ("lskd", {"temperature": 2.0, "weight": 9.0, "ce_weight": 0.1}),
    "correlation": ("correlation", {"weight": 9.0, "ce_weight": 0.1}),
    "dtkd": (
        "dtkd",
        {"temperature": 4.0, "alpha": 3.0, "beta": 1.0, "weight": 1.0, "ce_weight": 1.0, "warmup_epochs": 20},
    ),
    "dkd": (
        "dkd",
        {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "weight": 1.0, "ce_weight": 1.0, "warmup_epochs": 20},
    ),
    # With the weight 9 that LSKD and ATKD give to losses on z-scores: nobody published one for this row.
    "dkd-adaptive": (
        "dkd",
        {"temperature": "max_logit", "alpha": 1.0, "beta": 8.0, "weight": 9.0, "ce_weight": 1.0,
         "warmup_epochs": 20, **Z},
    ),
    "atkd-teacher": ("atkd", {"temperature": "max_logit_teacher", "weight": 9.0, "ce_weight": 0.1}),
    "ttm": ("ttm", {"exponent": 0.1, "weight": 45.0, "ce_weight": 1.0}),
    "wttm": ("wttm", {"exponent": 0.2, "weight": 4.0, "ce_weight": 1.0}),
    "dist": ("dist", {"temperature": 4.0, "beta": 1.0, "gamma": 1.0, "weight": 1.0, "ce_weight": 1.0}),
    "normkd": ("normkd", {"scale": 2.0, "weight": 0.9, "ce_weight": 0.1}),
    "ctkd": ("ctkd", {"start": 1.0, "end": 20.0, "decay_epochs": 10, "weight": 0.9, "ce_weight": 0.1}),
    "mse": ("mse", {"over_classes": "mean", "weight": 1.0, "ce_weight": 0.0}),
    "rld": (
        "rld",
        {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "confidence_temperature": 1.0, "weight": 1.0,
         "ce_weight": 1.0, "warmup_epochs": 20},
    ),
}  # fmt: skip
EPOCHS = 8
SQUEEZED = {"warmup_epochs": 0, "decay_epochs": 1}  # the least that each may be
RECORDS = Path(__file__).parents[1] / "results/claims/better_students"
SMALL = {"data": "digits", "epochs": 2, "crop_padding": 1, "flip": False}
# The records of this claim's first pair, which other claims take for their own where they fit.
FIRST_PAIR = RECORDS / f"cifar100-resnet56-resnet8-{EPOCHS}-epochs"


def setting(
    teacher: str,
    records: Path | None,
    *,
    epochs: int = EPOCHS,
    seeds: int,
    data_dir: Path | None,
    small: bool,
) -> tuple[str, Path | None, dict[str, Any]]:
    """The teacher, the folder of the records and the options of all runs of a claim on CIFAR-100.

    Where it is small, those of the digits; nothing is recorded then.
    """
    if small:
        return "digits-resnet20", None, {**RECIPE, **SMALL, "seeds": 2, "cache": "auto"}
    # The first run of a seed keeps the teacher's logits for the others.
    options = {"epochs": epochs, "data_dir": data_dir, "seeds": seeds, "cache": "fill"}
    return teacher, records, {**RECIPE, **options}


def only(known: Mapping[str, T], names: Collection[str], what: str) -> dict[str, T]:
    """Those of a table that are named.

    Raises:
      ValueError: a name is not in the table.
    """
    for name in names:
        if name not in known:
            raise unknown(what, name, known)
    return {name: known[name] for name in names}


def main(
    teacher: str = "cifar100-resnet56",
    student: str = "resnet8",
    epochs: int = EPOCHS,
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: int = 3,
    data_dir: Path | None = None,
    out: Path | None = None,
    small: bool = False,
) -> None:
    """Students of a ResNet-56 on CIFAR-100: alone, and with each method.

    Args:
      teacher: name or folder of a network trained on CIFAR-100.
      student: architecture of the students.
      epochs: passes over the training images; the schedule is stretched to fit.
      methods: which ones, by their names here; the student alone comes in any case, and is the baseline
        without kd.
      seeds: number of seeds, from 0.
      data_dir: folder of prepared TensorFlow Datasets (array_record).
      out: folder for the runs; by default runs/claims/better_students, or with -small.
      small: the digits for two epochs instead, two methods, with the teacher that comes with jaxkd.
    """
    place = f"{Path(teacher).name}-{student}-{epochs}-epochs"
    teacher, records, options = setting(
        teacher, RECORDS / place, epochs=epochs, seeds=seeds, data_dir=data_dir, small=small
    )
    if small:
        methods = ("kd", "atkd")
    chosen = {}
    for name, (kind, values) in only(METHODS, methods, "method").items():
        for key in SQUEEZED.keys() & values.keys():
            values = {**values, key: max(SQUEEZED[key], int(values[key] * epochs / FULL))}
        chosen[name] = {"method": kind, "method_options": values}
    out = out or Path(f"runs/claims/better_students{'-small' if small else ''}")
    out = out if small else out / place
    table = grid(
        out,
        pairs=[(teacher, student)],
        methods=chosen,
        records=records,
        baseline="kd" if "kd" in chosen else "alone",
        **options,
    )
    print(f"\n{table}\ntable and figures: {(records or out) / 'report'}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
