"""Methods on logits alone."""

from __future__ import annotations

import jax

from jaxkd import losses, temperature
from jaxkd.logits import pearson, standardize
from jaxkd.methods.base import Method, Progress
from jaxkd.models import Outputs

# The names that the command line knows, besides numbers.
_RULES: dict[str, temperature.Rule] = {
    "max_logit": temperature.max_logit,
    "max_logit_teacher": lambda student, teacher, **options: temperature.max_logit(
        student, teacher, of="teacher", **options
    ),
}


class KD(Method):
    """Knowledge distillation with `jaxkd.losses.kd`.

    Attributes:
      temperature: a positive number, or the name of a rule: "max_logit" (the adaptive temperature, over
        student and teacher) or "max_logit_teacher".
      standardize: whether the softmax sees z-scores.
    """

    temperature: float | str = 4.0
    standardize: bool = False

    def __post_init__(self) -> None:
        parse_temperature(self.temperature)
        super().__post_init__()

    def __call__(
        self, student: Outputs, teacher: Outputs, labels: jax.Array, progress: Progress
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the weighted loss per example, with its temperatures and the networks' correlation."""
        rule = parse_temperature(self.temperature)
        s, t = student.logits, jax.lax.stop_gradient(teacher.logits)
        seen = (standardize(s), standardize(t)) if self.standardize else (s, t)
        tau = temperature.resolve(rule, *seen)
        # As a rule: the check of a given array puts a number into the program that differs from tracing to
        # tracing, and a compiled program would not be found again.
        loss = losses.kd(s, t, temperature=lambda *_: tau, standardize=self.standardize)
        return self.weight * loss, {
            "kd": loss,
            "temperature": jax.lax.stop_gradient(tau[..., 0]),
            "correlation": jax.lax.stop_gradient(pearson(s, t)),
        }


def parse_temperature(value: float | str) -> float | temperature.Rule:
    """Turns a number, its text, or the name of a rule into what a loss takes as `temperature=`.

    >>> parse_temperature("4")
    4.0
    >>> parse_temperature("hot")
    Traceback (most recent call last):
    ...
    ValueError: temperature must be a positive number, max_logit or max_logit_teacher, got 'hot'
    """
    if value in _RULES:
        return _RULES[str(value)]
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError(f"temperature must be a positive number, {' or '.join(_RULES)}, got {value!r}")
    return number
