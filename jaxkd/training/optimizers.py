"""Optimisers by name, and any optax transformation.

A new optimiser is one row of `_RULES`; a new schedule is one row of `_SCHEDULES`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from jaxkd._names import kind, unknown

# The literature's: in 240 epochs, the rate drops to a tenth after 150, 180 and 210.
_MILESTONES = (150 / 240, 180 / 240, 210 / 240)


def steps_schedule(learning_rate: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Times 0.1 after 62.5, 75 and 87.5 % of the steps.

    >>> schedule = steps_schedule(0.05, 240 * 782)
    >>> [round(float(schedule(epoch * 782)), 6) for epoch in (149, 150, 180, 210)]
    [0.05, 0.005, 0.0005, 5e-05]
    """
    drops: dict[int, float] = {}
    for fraction in _MILESTONES:  # several may fall on one step
        step = round(fraction * total_steps)
        drops[step] = 0.1 * drops.get(step, 1.0)
    return _warmed_up(optax.piecewise_constant_schedule(learning_rate, drops), learning_rate, warmup_steps)


def cosine_schedule(learning_rate: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Half a cosine from the rate, which is reached at the end of the warm-up, to 0.

    >>> schedule = cosine_schedule(1.0, 10, 2)
    >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    decay = optax.cosine_decay_schedule(learning_rate, max(total_steps - warmup_steps, 1))
    later = (lambda step: decay(step - warmup_steps)) if warmup_steps else decay
    return _warmed_up(later, learning_rate, warmup_steps)


def constant_schedule(learning_rate: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """A constant rate."""
    return _warmed_up(optax.constant_schedule(learning_rate), learning_rate, warmup_steps)


def _warmed_up(schedule: optax.Schedule, learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """The schedule, with its first steps replaced by a linear rise from 0."""
    if not warmup_steps:
        return schedule
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return lambda step: jax.numpy.where(step < warmup_steps, rise(step), schedule(step))


def sgd(
    schedule: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    """SGD as in torch: weight decay added to all gradients, then momentum, then the learning rate."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum or None),
    )


_SCHEDULES: dict[str, Callable[[float, int, int], optax.Schedule]] = {
    "steps": steps_schedule,
    "cosine": cosine_schedule,
    "constant": constant_schedule,
}
_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adamw": lambda schedule, *, momentum, weight_decay: optax.adamw(
        schedule, b1=momentum, weight_decay=weight_decay
    ),
    "lion": lambda schedule, *, momentum, weight_decay: optax.lion(
        schedule, b1=momentum, weight_decay=weight_decay
    ),
}


def names() -> tuple[str, ...]:
    """The names of the optimisers."""
    return tuple(_RULES)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named optimiser with its learning rate schedule; by default the literature's.

    Attributes:
      optimizer: one of `names()`.
      learning_rate: the peak learning rate.
      schedule: "steps", "cosine" or "constant".
      warmup_steps: number of steps of a linear rise from 0.
      momentum: SGD momentum; the first beta of adamw and lion.
      weight_decay: for all parameters, including biases and batch norm; decoupled for adamw and lion.
      total_steps: length of the run.
    """

    optimizer: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    momentum: float
    weight_decay: float
    total_steps: int

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return float(self._schedule(step))

    @functools.cached_property
    def _schedule(self) -> optax.Schedule:
        make = _choose(_SCHEDULES, "schedule", self.schedule)
        return make(self.learning_rate, self.total_steps, self.warmup_steps)

    def transformation(self) -> optax.GradientTransformation:
        """The optax transformation; equal recipes give the same object, so they share compiled programs."""
        return _transformation(self)


@functools.lru_cache(maxsize=64)
def _transformation(recipe: Recipe) -> optax.GradientTransformation:
    rule = _choose(_RULES, "optimizer", recipe.optimizer)
    return rule(recipe._schedule, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _choose(table: Mapping[str, Any], what: str, name: str) -> Any:
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


class Named(NamedTuple):
    """A transformation with a name that identifies it in a run: `Named("adam", optax.adam(1e-3))`.

    Without a name, the structure of its state identifies it, which is the same for every learning rate.
    """

    name: str
    transformation: Any


def as_transformation(optimizer: Any) -> optax.GradientTransformation:
    """A user's optimiser: a transformation, one for each label, or one of these in `Named`.

    Raises:
      TypeError: it is something else.
    """
    own = optimizer.transformation if isinstance(optimizer, Named) else optimizer
    for one in own.values() if isinstance(own, Mapping) else [own]:
        if not all(callable(getattr(one, name, None)) for name in ("init", "update")):
            raise TypeError(
                "an optimizer must be a name or an optax transformation, such as optax.adamw(1e-3), "
                f"got {kind(one)}"
            )
    return by_label(own) if isinstance(own, Mapping) else own


def require_evaluable(opt_state: Any) -> None:
    """Raises ValueError if an optimiser trains other parameters than those to evaluate."""

    def schedule_free(node: Any) -> bool:
        return type(node).__name__ == "ScheduleFreeState"

    if any(map(schedule_free, jax.tree.leaves(opt_state, is_leaf=schedule_free))):
        raise ValueError(
            "the optimizer is schedule-free: the parameters that it trains are not those to evaluate, and "
            "jaxkd evaluates the trained ones; use another, such as optax.adamw(1e-3) with ema=0.999"
        )


def by_label(transformations: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """One transformation for each part of the parameters.

    Args:
      transformations: by the prefix of a parameter's path: "student", "method", or longer ones such as
        "method/theta" or "student/head".  The longest matching prefix is used.

    Raises:
      ValueError: a parameter has no transformation, or a label no parameter (but for "method", where the
        method has none).

    >>> import jax.numpy as jnp
    >>> import optax
    >>> both = by_label({"student": optax.sgd(0.1), "method": optax.adam(1e-3)})
    >>> params = {"student": {"w": jnp.zeros(2)}, "method": {}}
    >>> updates, _ = both.update({"student": {"w": jnp.ones(2)}, "method": {}}, both.init(params), params)
    >>> print(updates["student"]["w"])
    [-0.1 -0.1]
    """
    known = sorted(transformations, key=len, reverse=True)

    def path_of(path: Any) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    def is_below(path: str, name: str) -> bool:
        return path == name or path.startswith(f"{name}/")

    def label(path: Any, _: Any) -> str:
        own = path_of(path)
        for name in known:
            if is_below(own, name):
                return name
        raise ValueError(
            f"parameter {own} has no optimizer: the labels are {', '.join(transformations)}; "
            'add one for "student" and one for "method"'
        )

    def labels(params: Any) -> Any:
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        learns = any(is_below(path, "method") for path in paths)
        for name in known:
            # A method may have no parameters; any other part has some, or is misspelt.
            expected = learns if is_below(name, "method") else True
            if expected and not any(is_below(path, name) for path in paths):
                raise ValueError(
                    f'no parameter begins with {name}; correct the label: they begin with "student/" or '
                    '"method/"'
                )
        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform(dict(transformations), labels)
