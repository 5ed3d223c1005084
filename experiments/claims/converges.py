"""Claim: the adaptive loss converges to the correlation.  CIFAR-100, ResNet-56 to ResNet-8, a short schedule.

    python experiments/claims/converges.py           # hours; it goes on where it was stopped
    python experiments/claims/converges.py --small   # the digits

As the temperature grows, T^2 KL on z-scores tends to (K - 1) / K (1 - correlation) (`docs/limit.md`).  Here
students learn by the adaptive loss and by its limit, with the same weight, and both watch, on every training
image, how far one is from the other: |adaptive - limit| / limit.  The recipe and the teacher are those of
`better_students.py`.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from better_students import setting

from jaxkd import losses, methods, temperature
from jaxkd.cli import run
from jaxkd.metrics import Bins, Histogram
from jaxkd.runs import grid

WEIGHT, CE_WEIGHT = 9.0, 0.1
APART = Bins(1e-5, 10.0, 6 * 64)


class Watched(methods.Method):
    """KD on z-scores with the adaptive temperature, or its limit; both are watched.

    Attributes:
      by: "adaptive" or "limit", whichever the student learns by.
      weight: of the distillation loss.
      ce_weight: of the cross-entropy.
    """

    by: str = "adaptive"
    weight: float = WEIGHT
    ce_weight: float = CE_WEIGHT

    def __call__(self, x: methods.Inputs) -> methods.Terms:
        s, t = x.student_logits, x.teacher_logits
        found = {
            "adaptive": losses.kd(s, t, temperature=temperature.max_logit, standardize=True),
            "limit": losses.correlation(s, t),
        }
        apart = jnp.abs(found["adaptive"] - found["limit"]) / jnp.maximum(found["limit"], 1e-6)
        terms = {
            "ce": (methods.cross_entropy(s, x.labels), self.ce_weight),
            self.by: (found[self.by], self.weight),
        }
        return methods.Terms(terms, {"apart": Histogram.of(jax.lax.stop_gradient(apart), x.where, APART)})


def main(
    teacher: str = "cifar100-resnet56",
    student: str = "resnet8",
    seeds: int = 3,
    data_dir: Path | None = None,
    out: Path | None = None,
    records: Path | None = Path(__file__).parents[1] / "results/claims/converges",
    small: bool = False,
) -> None:
    """Students of the adaptive loss and of its limit.

    Args:
      teacher: name or folder of a network trained on CIFAR-100.
      student: architecture of the students.
      seeds: number of seeds, from 0.
      data_dir: folder of prepared TensorFlow Datasets (array_record).
      out: folder for the runs; by default runs/claims/converges, or runs/claims/converges-small.
      records: folder of the records of finished runs, of the tables and the figures.
      small: the digits for two epochs instead, with the teacher that comes with jaxkd.
    """
    out = out or Path(f"runs/claims/converges{'-small' if small else ''}")
    teacher, records, options = setting(teacher, records, seeds=seeds, data_dir=data_dir, small=small)
    table = grid(
        out,
        pairs=[(teacher, student)],
        methods={by: {"method": Watched(by=by)} for by in ("adaptive", "limit")},
        alone=False,
        records=records,
        baseline="limit",
        **options,
    )
    print(f"\n{table}\ntable and figures: {(records or out) / 'report'}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
