"""Claim: the adaptive temperature plugs into other losses.  CIFAR-100, ResNet-56 to ResNet-8, short schedule.

    python experiments/claims/plugs_in.py                    # hours; it goes on where it was stopped
    python experiments/claims/plugs_in.py --losses dkd dist  # some of the losses
    python experiments/claims/plugs_in.py --small            # the digits, one loss

Each loss that has a temperature, three times with the same weight: on logits with its authors' temperature,
on z-scores with that temperature, and on z-scores with the adaptive one.  So what z-scores do is told apart
from what the temperature does: the difference is to the second.  The recipe and the teacher are those of
`better_students.py`.
"""

from __future__ import annotations

from pathlib import Path

import tyro
from better_students import FIRST_PAIR, only, setting
from nobody_tunes import RECORDS as NOBODY_TUNES

from jaxkd.cli import run
from jaxkd.runs import grid

# A loss, its authors' temperature, and what else it takes.
LOSSES: dict[str, tuple[float, dict[str, float]]] = {
    "kd": (4.0, {"weight": 9.0, "ce_weight": 0.1}),
    "dkd": (4.0, {"weight": 1.0, "ce_weight": 1.0, "alpha": 1.0, "beta": 8.0, "warmup_epochs": 0}),
    "dist": (4.0, {"weight": 1.0, "ce_weight": 1.0, "beta": 1.0, "gamma": 1.0}),
    "dtkd": (4.0, {"weight": 1.0, "ce_weight": 1.0, "alpha": 3.0, "beta": 1.0, "warmup_epochs": 0}),
}
# What a loss on z-scores is called: other claims have run it by these names, and their records are taken.
ON_Z_SCORES = {"kd": ("lskd", "atkd")}


def main(
    teacher: str = "cifar100-resnet56",
    student: str = "resnet8",
    losses: tuple[str, ...] = tuple(LOSSES),
    seeds: int = 3,
    data_dir: Path | None = None,
    out: Path | None = None,
    records: Path | None = Path(__file__).parents[1] / "results/claims/plugs_in",
    small: bool = False,
) -> None:
    """Losses with their own temperature and with the adaptive one.

    Args:
      teacher: name or folder of a network trained on CIFAR-100.
      student: architecture of the students.
      losses: which ones, by their names here.
      seeds: number of seeds, from 0.
      data_dir: folder of prepared TensorFlow Datasets (array_record).
      out: folder for the runs; by default runs/claims/plugs_in, or runs/claims/plugs_in-small.
      records: folder of the records of finished runs, of the tables and the figures.
      small: the digits for two epochs instead, one loss, with the teacher that comes with jaxkd.
    """
    out = out or Path(f"runs/claims/plugs_in{'-small' if small else ''}")
    teacher, records, options = setting(teacher, records, seeds=seeds, data_dir=data_dir, small=small)
    for loss, (own, others) in only(LOSSES, ("dkd",) if small else losses, "loss").items():
        fixed, adaptive = ON_Z_SCORES.get(loss, (loss, loss))
        methods = {
            name: {
                "method": method,
                "method_options": {**others, "temperature": temperature, "standardize": standardize},
            }
            for name, method, temperature, standardize in (
                (loss, loss, own, False),
                (f"{loss} on z-scores", fixed, own, True),
                (f"{loss}, adaptive", adaptive, "max_logit", True),
            )
        }
        table = grid(
            out / loss,
            pairs=[(teacher, student)],
            methods=methods,
            alone=False,
            records=records and records / loss,
            reuse=[FIRST_PAIR, NOBODY_TUNES],
            baseline=f"{loss} on z-scores",
            **options,
        )
        print(f"\n{table}\ntable and figures: {(records or out) / loss / 'report'}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
