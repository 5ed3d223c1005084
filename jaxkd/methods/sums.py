"""Several methods at once, as papers combine a method on features with one on logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from jaxkd.methods.base import CE, Inputs, Method, Terms
from jaxkd.models import Outputs

if TYPE_CHECKING:
    from jaxkd.data.augment import Augmentation


class Sum(Method):
    """The summed terms of several methods.

    Their cross-entropies become one term, "ce": that of the prediction, if a part predicts, or else of the
    student's logits.  A term whose name is taken gets the name of its method, alone or before its own.  Of
    two metrics with one name, the first one's is shown, and none whose name a term has.

    Attributes:
      methods: the parts, at least one; at most one with a prediction of its own.
      title: the name.
      ce_weight: weight of "ce"; by default the sum of the parts' weights.

    >>> from jaxkd import methods
    >>> both = methods.Sum((methods.create("kd"), methods.create("dist", ce_weight=0.0)))
    >>> both.reads
    ('logits',)
    >>> methods.title(methods.create("kd+dist", kd_weight=1.0))
    'kd+dist'
    """

    methods: tuple[Method, ...]
    title: str = "sum"
    ce_weight: float | None = None

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("a sum of methods needs at least one")
        if len(own := [type(part).__name__ for part in self.methods if part.answers]) > 1:
            raise ValueError(f"only one method of a sum can have a prediction of its own: {', '.join(own)}")
        super().__post_init__()

    @property
    def views(self) -> tuple[str, ...]:  # type: ignore[override]
        """The views of all parts."""
        return tuple(dict.fromkeys(view for part in self.methods for view in part.views))

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Everything that a part reads."""
        return tuple(dict.fromkeys(name for part in self.methods for name in part.reads))

    @property
    def learns(self) -> str:  # type: ignore[override]
        """Everything that the parts learn."""
        return ", ".join(part.learns for part in self.methods if part.learns)

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        made = [part(x) for part in self.methods]
        # The part that predicts first: its cross-entropy is that of the prediction.
        order = sorted(range(len(made)), key=lambda index: not self.methods[index].answers)
        found = [made[index].losses[CE] for index in order if CE in made[index].losses]
        weight = sum(weight for _, weight in found) if self.ce_weight is None else self.ce_weight
        total = Terms({CE: (found[0][0], weight)} if found else {})
        for part, terms in zip(self.methods, made, strict=True):
            title = getattr(part, "title", type(part).__name__)
            others = {name: term for name, term in terms.losses.items() if name != CE}
            taken = [name for name in others if name in total.losses]
            renamed = {name: f"{title}_{name}" for name in taken}
            if len(taken) == 1 and title not in {**total.losses, **others}:
                renamed = {taken[0]: title}
            losses = {renamed.get(name, name): term for name, term in others.items()}
            watched = {name: metric for name, metric in terms.metrics.items() if name not in total.metrics}
            total += Terms(losses, watched)
        metrics = {name: metric for name, metric in total.metrics.items() if name not in total.losses}
        return Terms(total.losses, metrics)

    @property
    def answers(self) -> bool:
        """Whether a part predicts in the student's place."""
        return any(part.answers for part in self.methods)

    def predict(self, student: Outputs) -> jax.Array:
        """The prediction of the part that has its own."""
        return next((part for part in self.methods if part.answers), self.methods[0]).predict(student)

    def augmentation(self, view: str, main: Augmentation) -> Augmentation:
        """The augmentation of the first part with the view."""
        return next(part for part in self.methods if view in part.views).augmentation(view, main)

    def constants(self, teacher: Any, student: Any, dataset: Any) -> Mapping[str, Any]:
        """The constants of each part, under the name of its module."""
        parts = enumerate(self.methods)
        own = {f"methods_{index}": part.constants(teacher, student, dataset) for index, part in parts}
        return {name: constants for name, constants in own.items() if constants}


def answering_part(method: Method, variables: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method that predicts in the student's place, and its variables without "memory".

    Args:
      method: a method that predicts; for a sum, returns the part that does.
      variables: the variables of `method`, by collection.
    """
    kept = {name: tree for name, tree in variables.items() if name != "memory"}
    if not isinstance(method, Sum):
        return method, kept
    index, part = next((i, one) for i, one in enumerate(method.methods) if one.answers)
    own = f"methods_{index}"
    return answering_part(part, {name: tree[own] for name, tree in kept.items() if own in tree})
