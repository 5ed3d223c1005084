"""The training state: everything in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import metrics
from jaxkd._names import kind
from jaxkd.methods import Method
from jaxkd.training.optimizers import require_evaluable
from jaxkd.training.task import Task


@flax.struct.dataclass
class Tally:
    """Sums over the current epoch so far; in the state, so that a resumed run reports the same numbers.

    Attributes:
      losses: the loss, the accuracy, and the method's terms, by name; see `jaxkd.metrics`.
      metrics: the method's other metrics, by name.
      nonfinite_step: the first step of the epoch with a NaN or infinite value; -1 for none.
      nonfinite_teacher: the number of examples whose teacher logits were NaN or infinite.
    """

    losses: dict[str, Any]
    metrics: dict[str, Any]
    nonfinite_step: jax.Array
    nonfinite_teacher: jax.Array

    @property
    def all(self) -> dict[str, Any]:
        """All metrics by name, the losses first."""
        return {**self.losses, **self.metrics}


@flax.struct.dataclass
class TrainState:
    """Parameters, other variables, optimiser state, and the sums of the current epoch.

    Attributes:
      step: the number of updates; int32.
      params: `{"student": ..., "method": ...}`.
      network: the student's other collections.
      method: the method's other collections: "statistics" and "memory".
      opt_state: the optimiser's state.
      tally: the current epoch's sums.
      average: the moving average of what is evaluated, see `evaluated`; None without `Task.ema`.
    """

    step: jax.Array
    params: dict[str, Any]
    network: dict[str, Any]
    method: dict[str, Any]
    opt_state: Any
    tally: Tally
    average: Any = None

    @property
    def student(self) -> dict[str, Any]:
        """The student's variables for evaluation and saving."""
        return self._evaluated["student"]

    @property
    def method_variables(self) -> dict[str, Any]:
        """The method's variables for evaluation and saving, without constants."""
        return {"params": self.params["method"], **self.method, **self._evaluated.get("method", {})}

    @property
    def _evaluated(self) -> dict[str, Any]:
        if self.average is None:
            return {"student": {"params": self.params["student"], **self.network}}
        return self.average


def evaluated(
    method: Method, params: Mapping[str, Any], network: Mapping[str, Any], variables: Mapping[str, Any]
) -> dict[str, Any]:
    """What the accuracy depends on: the student's variables, and the method's where it predicts.

    Args:
      method: the method.
      params: those of "student" and "method".
      network: the student's other collections.
      variables: the method's other collections; "memory" has no part in a prediction.
    """
    found = {"student": {"params": params["student"], **network}}
    if method.answers:
        kept = {name: tree for name, tree in variables.items() if name != "memory"}
        found["method"] = {"params": params["method"], **kept}
    return found


def initial_state(
    task: Task,
    image_shape: tuple[int, int, int],
    *,
    teacher: Any = None,
    constants: Mapping[str, Any] | None = None,
) -> TrainState:
    """The state at step 0, a function of the task's seed.

    Args:
      task: the run's constants.
      image_shape: height, width, channels.
      teacher: the teacher's variables, of which only the shapes matter; None without a teacher.
      constants: the method's constants.

    Raises:
      ValueError: a name is used by two of the method's terms and metrics, or by the step itself; or a term
        has another shape than `[B]` or `[]`; or the optimizer is schedule-free.
      TypeError: a metric is no `Metric`, or gives what is no number or no JSON.
    """
    student = dict(task.student.init(task.seed, image_shape))
    inputs = task.example_inputs(student, teacher, image_shape)
    method, terms = task.init_method(inputs, constants or {})
    if not terms.losses:
        raise ValueError(
            f"the method {type(task.method).__name__} returns no term: there is nothing to learn"
        )
    names = ["loss", "accuracy", *terms.losses, *terms.metrics]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"the method gives two terms or metrics the name {', '.join(twice)}; rename one "
            '("loss" and "accuracy" are the step\'s own)'
        )
    for name, (values, _) in terms.losses.items():
        if values.shape not in ((), inputs.labels.shape):
            raise ValueError(
                f"term {name} of the method must have one value for each example, [B], or be a scalar, got "
                f"[{', '.join('B' if side == len(inputs.labels) else str(side) for side in values.shape)}]"
            )
    for name, metric in terms.metrics.items():
        _require_metric(name, metric)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    mean = metrics.Mean(number, number)  # type: ignore[arg-type]
    own = {"loss": mean, "accuracy": metrics.Percentage(number, number)}  # type: ignore[arg-type]
    losses = {**own, **dict.fromkeys(terms.losses, mean)}
    params = {"student": student.pop("params", {}), "method": method.pop("params", {})}
    opt_state = jax.jit(task.optimizer.init)(params)  # one program, not one for every shape
    require_evaluable(opt_state)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        network=student,
        method=method,
        opt_state=opt_state,
        tally=empty_tally(losses, terms.metrics),
        average=None
        if task.ema is None
        else jax.tree.map(jnp.copy, evaluated(task.method, params, student, method)),
    )


def _require_metric(name: str, metric: Any) -> None:
    """Raises TypeError for what cannot be logged and recorded; `metric` may hold shapes alone."""
    if not isinstance(metric, metrics.Metric):
        raise TypeError(
            f"metric {name} of the method must have compute() and describe(), as metrics.Mean.of(values, "
            f"x.where) has, got {kind(metric)}"
        )
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), metric)
    for number in ones.compute().values():
        if not isinstance(number, float | int):
            raise TypeError(
                f"metric {name}: compute() must give numbers of Python, float(...), got {kind(number)}"
            )
    try:
        json.dumps(ones.describe())
    except TypeError as error:
        raise TypeError(
            f"metric {name}: describe() must be ready for JSON, with float(...) and .tolist(): {error}"
        ) from None


def empty_tally(losses: Mapping[str, Any], others: Mapping[str, Any]) -> Tally:
    """A tally with all sums at zero.

    Args:
      losses: metrics by name; shapes are enough.
      others: the same for the other metrics.
    """
    return Tally(
        metrics.zeros_like(dict(losses)),
        metrics.zeros_like(dict(others)),
        nonfinite_step=jnp.asarray(np.full((), -1, np.int32)),
        nonfinite_teacher=jnp.asarray(np.zeros((), np.float32)),
    )
