"""The contract of a distillation method: it declares its needs, gets one argument, and returns named terms.

The training step calls a method on the examples of one device.  A method's variables are in the collections
of its Linen module, by meaning:

    params       trained; the optimiser's label is "method"
    constants    arrays of the teacher or of the data; never changed (see `Method.constants`)
    statistics   running averages; the step averages them over devices, by number of examples
    memory       rows by example id; every device must make the same update, from `Inputs.gather`

Random numbers: `self.make_rng("sample")` is a function of the seed and the step, the same on all devices;
`self.make_rng("dropout")` differs between devices.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd._names import describe_object
from jaxkd.metrics import Metric
from jaxkd.models import Outputs

if TYPE_CHECKING:
    from jaxkd.data.augment import Augmentation

CE = "ce"  # the name of the term that every method with labels has
Values = tuple[jax.Array, jax.typing.ArrayLike]


@flax.struct.dataclass
class Inputs:
    """A method's view of a batch: one device's shard, or with gradient accumulation a micro-batch of it.

    Attributes:
      student: the student's outputs in training mode, by view.
      teacher: the teacher's outputs in evaluation mode, by view; no gradient flows into them.  Without
        features if the logits come from a cache; empty for a method that reads nothing.
      labels: int32 `[B]`.
      ids: the examples' ids, int32 `[B]`; -1 for padding.
      where: mask of the real examples, without padding, bool `[B]`.  The step masks per-example terms and
        metrics; a loss on the whole batch must use it.
      epoch: the current epoch, from 1, int32.
      num_epochs: the total number of epochs.
      axis_name: the device axis, for batch norm and collectives; None outside of training.
    """

    student: Mapping[str, Outputs]
    teacher: Mapping[str, Outputs]
    labels: jax.Array
    ids: jax.Array
    where: jax.Array
    epoch: jax.Array
    num_epochs: int = flax.struct.field(pytree_node=False)
    axis_name: str | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def student_logits(self) -> jax.Array:
        """The student's logits on the view "main", `[B, K]`."""
        return self.student["main"].logits

    @property
    def teacher_logits(self) -> jax.Array:
        """The teacher's logits on the view "main", `[B, K]`."""
        return self.teacher["main"].logits

    def gather(self) -> Inputs:
        """Gathers the examples of all devices, in device order: for losses on the whole batch.

        Gradients flow back to the device of each example.  Micro-batches are not gathered.
        """
        if self.axis_name is None:
            return self
        rows: Any = dataclasses.replace(self, epoch=None)  # type: ignore[arg-type]
        gathered = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, self.axis_name, tiled=True), rows)
        return dataclasses.replace(gathered, epoch=self.epoch)


@flax.struct.dataclass
class Terms:
    """A method's result.

    Attributes:
      losses: maps names to (values, weight).  Values are `[B]`, one per example, or a scalar for the whole
        (gathered) batch.  The training loss is the sum of weight times batch mean; each term is logged
        without its weight.
      metrics: maps names to `Metric`: other quantities to log.
    """

    losses: Mapping[str, Values]
    metrics: Mapping[str, Metric] = flax.struct.field(default_factory=dict)

    def __add__(self, other: Terms) -> Terms:
        """The terms of both; ValueError if two have the same name."""
        if twice := self.losses.keys() & other.losses.keys():
            raise ValueError(f"two terms have the same name: {', '.join(sorted(twice))}; rename one of them")
        return Terms({**self.losses, **other.losses}, {**self.metrics, **other.metrics})


class Range(NamedTuple):
    """The valid numbers for a method's option.

    Attributes:
      low: the lower bound.
      open: whether `low` itself is excluded.
      below: the exclusive upper bound.
    """

    low: float
    open: bool = False
    below: float = float("inf")

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError if an option has another value."""
        try:
            inside = (self.low < value if self.open else self.low <= value) and value < self.below
        except TypeError:
            raise ValueError(f"{name} must be a number, got {value!r}") from None
        if not inside:
            least = f"above {self.low:g}" if self.open else f"at least {self.low:g}"
            most = "finite" if self.below == float("inf") else f"below {self.below:g}"
            raise ValueError(f"{name} must be {least} and {most}, got {value}")


NOT_NEGATIVE, POSITIVE, COUNT = Range(0.0), Range(0.0, open=True), Range(1.0)
WEIGHTS: Mapping[str, Range] = {"weight": NOT_NEGATIVE, "ce_weight": NOT_NEGATIVE}  # see `check_weights`


class Method(nn.Module):
    """A distillation method: a Linen module whose `__call__` maps `Inputs` to `Terms`.

    Attributes:
      views: the views of an image that it needs; "main" is the run's augmentation.
      reads: what it reads from the teacher: "logits", "stages" (maps), "preacts" (maps before the
        activation), "weights" (see `constants`), or names of features ("pooled", "last", "cam", ...); empty
        for a method without a teacher.  A cache serves a method that reads only what the cache holds.
      learns: a description of what it trains besides the student.
      ranges: the valid numbers for its options, by name; those of its base classes apply too.

    >>> import jax.numpy as jnp
    >>> from jaxkd import methods
    >>> class Mine(methods.Method):
    ...     weight: float = 1.0
    ...     def __call__(self, x):
    ...         distance = jnp.mean((x.student_logits - x.teacher_logits) ** 2, axis=-1)
    ...         ce = methods.cross_entropy(x.student_logits, x.labels)
    ...         return methods.Terms({"ce": (ce, 1.0), "distance": (distance, self.weight)})
    >>> methods.options(Mine(weight=2.0))
    {'weight': 2.0}
    """

    views: ClassVar[tuple[str, ...]] = ("main",)
    reads: ClassVar[tuple[str, ...]] = ("logits",)
    learns: ClassVar[str] = ""
    ranges: ClassVar[Mapping[str, Range]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        # Called outside of `init` and `apply`, where a method wrapped by Flax must not create modules.
        for name in ("augmentation", "constants"):
            if name in vars(cls):
                nn.nowrap(vars(cls)[name])
        super().__init_subclass__(**options)

    def __post_init__(self) -> None:
        for kind in type(self).__mro__:
            for name, allowed in vars(kind).get("ranges", {}).items():
                allowed.check(name, getattr(self, name))
        super().__post_init__()

    def __call__(self, x: Inputs) -> Terms:
        """Computes the terms of a batch."""
        raise TypeError(f"{type(self).__name__} is abstract: a method defines __call__")

    @property
    def answers(self) -> bool:
        """Whether it predicts in the student's place: then the student alone is not the trained network."""
        return type(self).predict is not Method.predict

    def predict(self, student: Outputs) -> jax.Array:
        """The logits used to evaluate the student, `[B, K]`; may use the method's variables."""
        return student.logits

    @nn.nowrap
    def augmentation(self, view: str, main: Augmentation) -> Augmentation:
        """The default augmentation of a view other than "main".

        Args:
          view: one of `views`.
          main: the run's augmentation of "main".
        """
        return main

    @nn.nowrap
    def constants(self, teacher: Any, student: Any, dataset: Any) -> Mapping[str, Any]:
        """Arrays for the collection "constants", by name: of the teacher, or of the data.

        Args:
          teacher: a `jaxkd.teachers.Teacher`.
          student: the student's `Network`.
          dataset: a `jaxkd.data.Dataset`.
        """
        return {}


class Labels(Method):
    """Training on labels only: cross-entropy, no teacher."""

    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        return Terms({"ce": (cross_entropy(x.student_logits, x.labels), 1.0)})


class FunctionMethod(Method, kw_only=True):
    """A plain function as a method; see `from_function`."""

    function: Callable[[Inputs], Any]
    title: str
    views: tuple[str, ...] = ("main",)  # type: ignore[misc]
    reads: tuple[str, ...] = ("logits",)  # type: ignore[misc]

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        result = self.function(x)
        if isinstance(result, Terms):
            return result
        terms = result if isinstance(result, Mapping) else {self.title: result}
        pairs = {name: term if isinstance(term, tuple) else (term, 1.0) for name, term in terms.items()}
        for values, weight in pairs.values():
            if isinstance(result, tuple) or not all(map(_is_number, (values, weight))):
                raise TypeError(
                    f"the function of method {self.title} must return values [B], a scalar, a mapping of "
                    f"names to these or to (values, weight), or Terms, got {describe_object(result)}"
                )
        return Terms({name: (jnp.asarray(values), weight) for name, (values, weight) in pairs.items()})


def _is_number(thing: Any) -> bool:
    return isinstance(thing, jax.Array | np.ndarray | np.generic | float | int)


def from_function(
    function: Callable[[Inputs], Any],
    *,
    name: str,
    views: tuple[str, ...] = ("main",),
    reads: tuple[str, ...] = ("logits",),
) -> Method:
    """Makes a method from a function.

    Args:
      function: takes `Inputs`; returns the whole training loss (including the cross-entropy, if wanted), one
        value per example `[B]` or a scalar; or a mapping of named terms; or `Terms`.
      name: letters, digits, "-" and "_".  It identifies the method: a run resumes only under the same name,
        so rename a changed function.
      views: the views of an image that it needs.
      reads: what it reads from the teacher; () for nothing.

    Raises:
      ValueError: the name has other characters.

    >>> from jaxkd import losses, methods
    >>> def soft(x):
    ...     return losses.kd(x.student_logits, x.teacher_logits, temperature=2.0)
    >>> methods.from_function(soft, name="soft").title
    'soft'
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f'a method\'s name may have only letters, digits, "-" and "_", got {name!r}')
    return FunctionMethod(function=function, title=name, views=tuple(views), reads=tuple(reads))


def check_weights(method: Any) -> None:
    """Raises ValueError if a method's `weight` and `ce_weight` are both 0."""
    if method.weight == method.ce_weight == 0:
        raise ValueError("weight and ce_weight are both 0: there is nothing to learn")


def predicts_itself(method: Method) -> bool:
    """Whether a method predicts in the student's place, so that the student alone is not the trained network.

    >>> from jaxkd import methods
    >>> methods.predicts_itself(methods.create("kd"))
    False
    """
    return method.answers


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy with the labels, one value per example, in nats: logits `[B, K]`, labels `[B]`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import methods
    >>> methods.cross_entropy(jnp.zeros((1, 2)), jnp.array([0])).round(3).tolist()
    [0.6930000185966492]
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
