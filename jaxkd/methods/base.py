"""What a distillation method is: it declares what it needs, gets one argument, and returns named terms.

The training step calls a method on the examples of one device.  What a method learns or holds lies in the
collections of its Linen module, by meaning:

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
import optax

from jaxkd.metrics import Metric
from jaxkd.models import Outputs

if TYPE_CHECKING:
    from jaxkd.data.augment import Augmentation

CE = "ce"  # the name of the term that every method with labels has
Values = tuple[jax.Array, jax.typing.ArrayLike]


@flax.struct.dataclass
class Inputs:
    """What a method sees of a batch: one device's share, or with accumulation a micro-batch of it.

    Attributes:
      student: its outputs in training, by view.
      teacher: its outputs in evaluation mode, by view; no gradient flows into them.  Without features where
        the logits come from a cache; empty for a method that reads nothing.
      labels: int32 `[B]`.
      ids: the examples' ids, int32 `[B]`; -1 for padding.
      where: which rows are real examples and not padding, bool `[B]`.  The step masks terms and metrics that
        have a value per example; a loss on the whole batch must use it.
      epoch: the current epoch, from 1, int32.
      num_epochs: how many there will be.
      axis_name: the devices' axis, for batch norm and collectives; None outside of training.
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
        """The same of all devices' examples, in the order of the devices: for losses on the whole batch.

        Gradients flow back to the device that an example came from.  Micro-batches are not gathered.
        """
        if self.axis_name is None:
            return self
        rows: Any = dataclasses.replace(self, epoch=None)  # type: ignore[arg-type]
        gathered = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, self.axis_name, tiled=True), rows)
        return dataclasses.replace(gathered, epoch=self.epoch)


@flax.struct.dataclass
class Terms:
    """What a method returns.

    Attributes:
      losses: name to (values, weight).  Values are `[B]`, one per example, or a scalar of the whole
        (gathered) batch.  The training loss is the sum of weight times batch mean; each term is logged
        without its weight.
      metrics: name to `Metric`: what else is worth watching.
    """

    losses: Mapping[str, Values]
    metrics: Mapping[str, Metric] = flax.struct.field(default_factory=dict)

    def __add__(self, other: Terms) -> Terms:
        """The terms of both; ValueError if two have the same name."""
        if twice := self.losses.keys() & other.losses.keys():
            raise ValueError(f"two terms have the same name: {', '.join(sorted(twice))}; rename one of them")
        return Terms({**self.losses, **other.losses}, {**self.metrics, **other.metrics})


class Range(NamedTuple):
    """The numbers that an option of a method takes.

    Attributes:
      low: the least.
      open: whether `low` itself is left out.
      below: what they are all less than.
    """

    low: float
    open: bool = False
    below: float = float("inf")

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError if an option has another value."""
        if not (self.low < value if self.open else self.low <= value) or not value < self.below:
            least = f"above {self.low:g}" if self.open else f"at least {self.low:g}"
            most = "finite" if self.below == float("inf") else f"below {self.below:g}"
            raise ValueError(f"{name} must be {least} and {most}, got {value}")


NOT_NEGATIVE, POSITIVE, COUNT = Range(0.0), Range(0.0, open=True), Range(1.0)
WEIGHTS: Mapping[str, Range] = {"weight": NOT_NEGATIVE, "ce_weight": NOT_NEGATIVE}  # see `check_weights`


class Method(nn.Module):
    """A distillation method: a Linen module whose `__call__` maps `Inputs` to `Terms`.

    Attributes:
      views: the views of an image that it needs; "main" is the run's augmentation.
      reads: what it reads of the teacher: "logits", "stages" (maps), "preacts" (maps before the activation),
        "weights" (see `constants`), or names of features ("pooled", "last", "cam", ...); empty for a method
        without a teacher.  A cache serves a method that reads only what the cache holds.
      learns: what it trains besides the student, in words.
      ranges: what numbers its options may be, by name; those of the classes above hold, too.

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
        # Called outside of `init` and `apply`, where a method that Flax wraps may make no module.
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
        """Whether it answers in the student's place, so that the student alone is not what it trains."""
        return type(self).predict is not Method.predict

    def predict(self, student: Outputs) -> jax.Array:
        """The logits by which the student is evaluated, `[B, K]`; it may use the method's variables."""
        return student.logits

    @nn.nowrap
    def augmentation(self, view: str, main: Augmentation) -> Augmentation:
        """The augmentation of a view other than "main", for a run that has none of its own for it.

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
    """Training on labels alone: cross-entropy, and no teacher."""

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
        if isinstance(result, Mapping):
            return Terms({name: v if isinstance(v, tuple) else (v, 1.0) for name, v in result.items()})
        return Terms({self.title: (jnp.asarray(result), 1.0)})


def from_function(
    function: Callable[[Inputs], Any],
    *,
    name: str,
    views: tuple[str, ...] = ("main",),
    reads: tuple[str, ...] = ("logits",),
) -> Method:
    """Makes a method of a function.

    Args:
      function: of `Inputs`; it returns the whole training loss (cross-entropy included, if it is wanted), one
        value per example `[B]` or a scalar; or a mapping of named terms; or `Terms`.
      name: of letters, digits, "-" and "_".  It identifies the method: a run is resumed only under the same
        name, so give another name to a changed function.
      views: the views of an image that it needs.
      reads: what it reads of the teacher; () for none.

    Raises:
      ValueError: the name has other characters.

    >>> from jaxkd import losses, methods
    >>> def soft(x):
    ...     return losses.kd(x.student_logits, x.teacher_logits, temperature=2.0)
    >>> methods.from_function(soft, name="soft").title
    'soft'
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f'the name of a method must be of letters, digits, "-" and "_", got {name!r}')
    return FunctionMethod(function=function, title=name, views=tuple(views), reads=tuple(reads))


def check_weights(method: Any) -> None:
    """Raises ValueError if a method's `weight` and `ce_weight` are both 0."""
    if method.weight == method.ce_weight == 0:
        raise ValueError("weight and ce_weight are both 0: there is nothing to learn")


def predicts_itself(method: Method) -> bool:
    """Whether a method answers in the student's place, so that the student alone is not what it trains.

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
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
