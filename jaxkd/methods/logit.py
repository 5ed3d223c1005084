"""Methods on logits: one class over a loss of `jaxkd.losses`; each method is a row of the registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import losses, temperature
from jaxkd.logits import pearson, standardize
from jaxkd.methods.base import (
    NOT_NEGATIVE,
    POSITIVE,
    WEIGHTS,
    Inputs,
    Method,
    Range,
    Terms,
    check_weights,
    cross_entropy,
)
from jaxkd.metrics import Histogram, Mean, Metric

# The named temperature rules.
RULES: dict[str, temperature.Rule] = {
    "max_logit": temperature.max_logit,
    "max_logit_teacher": lambda student, teacher, **options: temperature.max_logit(
        student, teacher, of="teacher", **options
    ),
}
_OF_BATCH = (losses.dist, losses.skd)  # a scalar of the whole batch
# The valid numbers for the losses' own options.
_OF_LOSSES = dict.fromkeys(("alpha", "beta", "gamma"), NOT_NEGATIVE)
_OF_LOSSES |= dict.fromkeys(("exponent", "scale", "confidence_temperature", "ridge", "top_k"), POSITIVE)


class Logit(Method):
    """`ce_weight` x cross-entropy + `weight` x a loss on logits.

    Attributes:
      title: the method's name.
      loss: a loss of `jaxkd.losses`.
      weight: weight of the distillation loss.
      ce_weight: weight of the cross-entropy with the labels.
      warmup_epochs: number of epochs in which the distillation weight grows: min(epoch / warmup_epochs, 1).
      options: keyword arguments of the loss.
    """

    # Loss arguments that are not options of a method.
    fixed: ClassVar[tuple[str, ...]] = ("axis", "axis_name", "where", "ignore_index", "chunk_size")
    ranges: ClassVar[Mapping[str, Range]] = {**WEIGHTS, "warmup_epochs": NOT_NEGATIVE}

    title: str
    loss: Callable[..., jax.Array]
    weight: float = 1.0
    ce_weight: float = 1.0
    warmup_epochs: int = 0
    options: Mapping[str, Any] = nn.FrozenDict()

    def __post_init__(self) -> None:
        check_weights(self)
        # Programs are kept by them, and arrays have no hash.
        plain = {name: v.item() if hasattr(v, "item") else v for name, v in self.options.items()}
        object.__setattr__(self, "options", nn.FrozenDict(plain))
        if "temperature" in self.options:
            parse_temperature(self.options["temperature"])
        for name in self.options.keys() & _OF_LOSSES.keys():
            _OF_LOSSES[name].check(name, self.options[name])
        super().__post_init__()

    def __call__(self, x: Inputs) -> Terms:
        """Returns the terms "ce" and "kd", the metric "correlation" and, of some losses, "temperature"."""
        given = self.options.get("temperature")
        return self._terms(x, None if given is None else parse_temperature(given))

    def _terms(self, x: Inputs, rule: temperature.Temperature | None) -> Terms:
        s, t = x.student_logits, x.teacher_logits
        of_batch = self.loss in _OF_BATCH
        seen, arguments = (x.gather() if of_batch else x), dict(self.options)
        tau = None
        if rule is not None:
            tau = temperatures(rule, s, t, arguments["standardize"])
            # As a rule: the check of an array would put a number into the program that differs with each
            # trace, so the compiled program would not be found in the cache.
            arguments["temperature"] = rule if of_batch else lambda *_, **__: tau
        if "labels" in inspect.signature(self.loss).parameters:
            arguments["labels"] = seen.labels
        if of_batch:
            arguments["where"] = seen.where
        values = self.loss(seen.student_logits, seen.teacher_logits, **arguments)
        if self.loss is losses.dtkd and tau is not None:
            # The teacher's temperature is watched, not the reference.
            z = (standardize(s), standardize(t)) if arguments["standardize"] else (s, t)
            tau = tau * temperature.max_ratio(*z, reference=1.0)
        weight: jax.typing.ArrayLike = self.weight
        if self.warmup_epochs:
            weight = self.weight * jnp.minimum(x.epoch / self.warmup_epochs, 1.0)
        terms = {"ce": (cross_entropy(s, x.labels), self.ce_weight), "kd": (values, weight)}
        return Terms(terms, watched(x, tau))


def temperatures(rule: temperature.Temperature, s: jax.Array, t: jax.Array, z_scores: bool) -> jax.Array:
    """The temperatures of a batch, `[B, 1]`, from a rule on the logits or their z-scores."""
    seen = (standardize(s), standardize(t)) if z_scores else (s, t)
    return temperature.resolve(rule, *seen)


def watched(x: Inputs, tau: jax.Array | None) -> dict[str, Metric]:
    """The correlation of both networks' logits, and the distribution of the temperatures `[B, 1]`."""
    correlation = jax.lax.stop_gradient(pearson(x.student_logits, x.teacher_logits))
    metrics: dict[str, Metric] = {"correlation": Mean.of(correlation, x.where)}
    if tau is not None:
        metrics["temperature"] = Histogram.of(jax.lax.stop_gradient(tau[..., 0]), x.where)
    return metrics


def loss_options(loss: Callable[..., jax.Array], made: type[Logit]) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a loss that a method may set."""
    parameters = inspect.signature(loss).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in made.fixed}


def parse_temperature(value: float | str) -> float | temperature.Rule:
    """Turns a number, its text, or a rule's name into a loss's `temperature=` argument.

    >>> parse_temperature("4")
    4.0
    >>> parse_temperature("hot")
    Traceback (most recent call last):
    ...
    ValueError: temperature must be a positive number, max_logit or max_logit_teacher, got 'hot'
    """
    if value in RULES:
        return RULES[str(value)]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError(f"temperature must be a positive number, {' or '.join(RULES)}, got {value!r}")
    return number
