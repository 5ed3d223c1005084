"""MLKD: a weakly and a strongly augmented view of each image (Jin et al. 2023, CVPR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from jaxkd import losses
from jaxkd.methods.base import WEIGHTS, Inputs, Method, Range, Terms, check_weights, cross_entropy
from jaxkd.methods.logit import parse_temperature, temperatures, watched

if TYPE_CHECKING:
    from jaxkd.data.augment import Augmentation


class MLKD(Method):
    """Multi-level logit distillation: predictions, class correlations and batch correlations on two views.

    The view "main" is the weak one; the view "strong" adds RandAugment.  Cross-entropy is on both.  The
    student runs twice, so its batch norm sees two batches.  The loss is of the whole batch.

    Attributes:
      weight: weight of `losses.mlkd`.
      ce_weight: weight of each view's cross-entropy.
      temperature: a positive number, max_logit (the adaptive temperature) or max_logit_teacher; replaces
        the first of the five temperatures.
      standardize: whether the KD terms use z-scores.
      standardize_grams: whether Gram matrices and masks use them too (Matsuyama et al.; not Sun et al.).
      true_mask: whether the masks select, unlike in the published code.
    """

    title: str = "mlkd"
    weight: float = 0.9
    ce_weight: float = 0.1
    temperature: float | str = 4.0
    standardize: bool = False
    standardize_grams: bool = True
    true_mask: bool = False

    views: ClassVar[tuple[str, ...]] = ("main", "strong")
    ranges: ClassVar[Mapping[str, Range]] = WEIGHTS

    def __post_init__(self) -> None:
        check_weights(self)
        parse_temperature(self.temperature)
        super().__post_init__()

    def augmentation(self, view: str, main: Augmentation) -> Augmentation:
        """See `Method`."""
        from jaxkd.data import Compose, RandAugment

        return Compose((main, RandAugment()))

    def __call__(self, x: Inputs) -> Terms:
        """Returns the terms "ce", "ce_strong" and "mlkd", and metrics of the weak view."""
        rule, whole = parse_temperature(self.temperature), x.gather()
        loss = losses.mlkd(
            whole.student_logits,
            whole.teacher_logits,
            whole.student["strong"].logits,
            whole.teacher["strong"].logits,
            temperature=rule,
            standardize="kd" if self.standardize and not self.standardize_grams else self.standardize,
            true_mask=self.true_mask,
            where=whole.where,
        )
        tau = temperatures(rule, x.student_logits, x.teacher_logits, self.standardize)
        return Terms(
            {
                "ce": (cross_entropy(x.student_logits, x.labels), self.ce_weight),
                "ce_strong": (cross_entropy(x.student["strong"].logits, x.labels), self.ce_weight),
                "mlkd": (loss, self.weight),
            },
            watched(x, tau),
        )
