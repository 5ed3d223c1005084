"""Methods on features: one class each, over the losses of `jaxkd.losses.feature`.

Features are found by name: the maps "stage1", "stage2", ... in this order, the pre-activation maps
"stage1_preact" and so on (without one, a stage's own map is used), and "pooled".  If two networks have
different numbers of stages, the shorter list decides.  A method's layers between the networks are trained
with the student; they are initialised as in the public code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.losses.feature import adaptive_pool, of_one_size
from jaxkd.methods.base import (
    COUNT,
    NOT_NEGATIVE,
    WEIGHTS,
    Inputs,
    Method,
    Range,
    Terms,
    check_weights,
    cross_entropy,
)
from jaxkd.models import Outputs
from jaxkd.models.initializers import Initializer, fan_in_uniform, fan_out_normal, uniform
from jaxkd.models.layers import BatchNorm, linear, relu, widened


class Feature(Method):
    """`ce_weight` x cross-entropy + `weight` x a loss on features; the base of the methods below.

    Attributes:
      weight: weight of the loss on features.
      ce_weight: weight of the cross-entropy with the labels.
    """

    weight: float = 1.0
    ce_weight: float = 1.0

    ranges: ClassVar[Mapping[str, Range]] = WEIGHTS

    def __post_init__(self) -> None:
        check_weights(self)
        super().__post_init__()

    def _terms(self, x: Inputs, **terms: tuple[jax.Array, jax.typing.ArrayLike]) -> Terms:
        """The cross-entropy, and other terms as (values, part of `weight`)."""
        ce = cross_entropy(x.student_logits, x.labels)
        weighted = {name: (values, self.weight * part) for name, (values, part) in terms.items()}
        return Terms({"ce": (ce, self.ce_weight), **weighted})


class FitNet(Feature):
    """FitNet: the teacher's map, predicted from the student's by a convolution, batch norm and ReLU.

    Attributes:
      weight: weight of the mean squared error of the maps.
      ce_weight: weight of the cross-entropy with the labels.
      hint: name of the map, in both networks.
    """

    weight: float = 100.0
    hint: str = "stage2"

    reads: ClassVar = ("stages",)
    learns: ClassVar = "a convolution with batch norm"

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        student, teacher = (map_named(self.hint, *network) for network in networks(x))
        y = self._convolution(student.shape, teacher.shape)(widened(student))
        y = batch_norm(x, y, name="bn")(y, x.where)
        return self._terms(x, hint=(losses.hint(relu(y), teacher), 1.0))

    def _convolution(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
        """Resizes a map to the teacher's size: a stride of 2, its transpose, or a kernel without padding."""
        (_, h, w, width), (_, rows, columns, channels) = student, teacher
        if (h, w) == (2 * rows, 2 * columns):
            return convolution(channels, (3, 3), inputs=width, stride=2, padding=1, name="conv")
        if (2 * h, 2 * w) == (rows, columns):
            init = uniform(1 / math.sqrt(16 * channels))  # torch's default for transposed kernels
            padding = ((2, 2), (2, 2))  # torch's padding of 1
            return nn.ConvTranspose(
                channels, (4, 4), (2, 2), padding, kernel_init=init, bias_init=init, name="conv"
            )
        if h >= rows and w >= columns:
            kernel = 1 + h - rows, 1 + w - columns
            return convolution(channels, kernel, inputs=width, padding=0, name="conv")
        raise ValueError(
            f"fitnet resizes a student's map to the teacher's size if it is larger, equal or half as large; "
            f"{self.hint} is {h}x{w} in the student and {rows}x{columns} in the teacher; choose another map "
            "with hint (--method.hint)"
        )


class AT(Feature):
    """Attention transfer: the spatial energy of each stage's maps.

    Attributes:
      weight: weight of the distance of the attention maps, summed over the stages.
      ce_weight: weight of the cross-entropy with the labels.
      power: exponent of the activations.
    """

    weight: float = 1000.0
    power: float = 2.0

    reads: ClassVar = ("stages",)
    ranges: ClassVar = {"power": COUNT}

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        pairs = zip(*(stages(*network).values() for network in networks(x)), strict=False)
        distance = sum(losses.attention(s, t, power=self.power) for s, t in pairs)
        return self._terms(x, attention=(jnp.asarray(distance), 1.0))


class NST(Feature):
    """Neuron selectivity transfer: the distribution of the channels of each stage.

    Attributes:
      weight: weight of the discrepancy, summed over the stages.
      ce_weight: weight of the cross-entropy with the labels.
    """

    weight: float = 50.0

    reads: ClassVar = ("stages",)

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        pairs = zip(*(stages(*network).values() for network in networks(x)), strict=False)
        return self._terms(x, nst=(jnp.asarray(sum(losses.nst(s, t) for s, t in pairs)), 1.0))


class VID(Feature):
    """Variational information distillation: the likelihood of the teacher's map, given the student's.

    Attributes:
      weight: weight of the negative log-likelihood, summed over the stages.
      ce_weight: weight of the cross-entropy with the labels.
      variance: initial variance of every channel.
    """

    weight: float = 1.0
    variance: float = 5.0

    reads: ClassVar = ("stages",)
    learns: ClassVar = "regressors and variances"
    ranges: ClassVar = {"variance": Range(0.001)}

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        pairs = zip(*(stages(*network).values() for network in networks(x)), strict=False)
        total: Any = 0.0
        for index, pair in enumerate(pairs):
            y, t = of_one_size(*pair)
            width = t.shape[-1]
            for place in (0, 2, 4):  # in the public code's sequence, with the activations between them
                name = f"regressors_{index}_{place}"
                y = convolution(width, (1, 1), inputs=y.shape[-1], use_bias=False, name=name)(
                    relu(y) if place else y
                )
            start = math.log(math.expm1(self.variance - 1e-5))
            init = nn.initializers.constant(start)
            total += losses.vid(y, t, self.param(f"log_scales_{index}", init, (width,)))
        return self._terms(x, vid=(total, 1.0))


class OFD(Feature):
    """Overhaul of feature distillation: pre-activation maps, the teacher's cut off below a margin.

    The margins come from the batch norms before the teacher's activations.

    Attributes:
      weight: weight of the partial distance; each stage counts half as much as the next one.
      ce_weight: weight of the cross-entropy with the labels.
    """

    weight: float = 0.001

    reads: ClassVar = ("preacts", "weights")
    learns: ClassVar = "convolutions with batch norm"

    def constants(self, teacher: Any, student: Any, dataset: Any) -> Mapping[str, np.ndarray]:
        """The margins, by stage.

        Raises:
          ValueError: no batch norms before the teacher's activations are known.
        """
        own = teacher.forward is None
        module = teacher.description.create_model() if own else getattr(teacher.forward, "module", None)
        norms = getattr(module, "preact_norms", {})
        if not norms:
            raise ValueError(
                f"ofd takes margins from the batch norm before each stage's activation, but none are known "
                f"for the teacher {teacher.name}; use a ResNet, Wide ResNet, VGG or MobileNetV2, or give "
                'your module a property preact_norms, such as {"stage1": ("block1", "norm2")}'
            )
        margins = {}
        for stage, path in norms.items():
            norm = teacher.variables["params"]
            for name in path:
                norm = norm[name]
            margins[stage] = losses.ofd_margin(norm["scale"], norm["bias"])
        return margins

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        student, teacher = (stages(*network, before_activation=True) for network in networks(x))
        number = min(len(student), len(teacher))
        pairs = zip(list(student.values())[-number:], list(teacher.items())[-number:], strict=True)
        total: Any = 0.0
        for index, (s, (stage, t)) in enumerate(pairs):
            if not self.has_variable("constants", stage):
                raise ValueError(
                    f"ofd has no margin for the teacher's {stage}; method.constants(...) computes the "
                    "margins of the stages in the teacher's preact_norms"
                )
            y = widened(s)
            y = convolution(
                t.shape[-1],
                (1, 1),
                inputs=y.shape[-1],
                use_bias=False,
                kernel_init=fan_out_normal,
                name=f"connectors_{index}_0",
            )(y)
            y = batch_norm(x, y, name=f"connectors_{index}_1")(y, x.where)
            margin: Any = self.get_variable("constants", stage)
            target = adaptive_pool(widened(t), s.shape[1:3])
            total += losses.ofd(y, target, margin) / 2 ** (number - 1 - index)
        return self._terms(x, ofd=(total, 1.0))


class RKD(Feature):
    """Relational KD: distances and angles between the examples of the batch, of all devices.

    Attributes:
      weight: weight of the relational loss.
      ce_weight: weight of the cross-entropy with the labels.
      distance_weight: weight of the distances in the relational loss.
      angle_weight: weight of the angles in the relational loss.
    """

    weight: float = 1.0
    distance_weight: float = 25.0
    angle_weight: float = 50.0

    reads: ClassVar = ("pooled",)
    ranges: ClassVar = {"distance_weight": NOT_NEGATIVE, "angle_weight": NOT_NEGATIVE}

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        student, teacher, where = pooled_of_batch(x)
        relations = losses.rkd(
            student,
            teacher,
            distance_weight=self.distance_weight,
            angle_weight=self.angle_weight,
            where=where,
        )
        return self._terms(x, rkd=(relations, 1.0))


class PKT(Feature):
    """Probabilistic knowledge transfer: similarities of the examples of the batch, as probabilities.

    Attributes:
      weight: weight of the divergence, which is small.
      ce_weight: weight of the cross-entropy with the labels.
    """

    weight: float = 30000.0

    reads: ClassVar = ("pooled",)

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        student, teacher, where = pooled_of_batch(x)
        return self._terms(x, pkt=(losses.pkt(student, teacher, where=where), 1.0))


class SP(Feature):
    """Similarity-preserving KD: the Gram matrix of the batch in the last map.

    Attributes:
      weight: weight of the distance of the matrices, which is small.
      ce_weight: weight of the cross-entropy with the labels.
    """

    weight: float = 3000.0

    reads: ClassVar = ("stages",)

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        whole = x.gather()
        student, teacher = (list(stages(*network).values())[-1] for network in networks(whole))
        return self._terms(x, sp=(losses.sp(student, teacher, where=whole.where), 1.0))


class CC(Feature):
    """Correlation congruence as in RepDistiller: both networks' pooled features, embedded.

    Attributes:
      weight: weight of the congruence.
      ce_weight: weight of the cross-entropy with the labels.
      dim: width of the embeddings.
    """

    weight: float = 0.02
    dim: int = 128

    reads: ClassVar = ("pooled",)
    learns: ClassVar = "two embeddings"
    ranges: ClassVar = {"dim": COUNT}

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        student, teacher, where = pooled_of_batch(x)
        s = linear(self.dim, inputs=student.shape[-1], name="embed_s")(student)
        t = linear(self.dim, inputs=teacher.shape[-1], name="embed_t")(teacher)
        return self._terms(x, cc=(losses.cc(s, t, where=where), 1.0))


class ITRD(Feature):
    """Information theoretic representation distillation: correlation and mutual information over the batch.

    Attributes:
      weight: weight of both losses.
      ce_weight: weight of the cross-entropy with the labels.
      correlation_weight: weight of the correlation loss.
      mutual_weight: weight of the mutual information loss.
      alpha: the order of Renyi's entropy in the correlation loss.
    """

    correlation_weight: float = 2.0
    mutual_weight: float = 1.0
    alpha: float = 1.5

    reads: ClassVar = ("pooled",)
    learns: ClassVar = "an embedding"
    ranges: ClassVar = {
        "correlation_weight": NOT_NEGATIVE,
        "mutual_weight": NOT_NEGATIVE,
        "alpha": Range(0.5),
    }

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        student, teacher, where = pooled_of_batch(x)
        widths = student.shape[-1], teacher.shape[-1]
        embedded = linear(widths[1], inputs=widths[0], name="embed")(student)
        correlation = losses.itrd_correlation(embedded, teacher, alpha=self.alpha, where=where)
        # As in the authors' code, features of equal width are compared directly.
        compared = student if widths[0] == widths[1] else embedded
        mutual = losses.itrd_mutual(compared, teacher, where=where)
        return self._terms(
            x,
            itrd_correlation=(correlation, self.correlation_weight),
            itrd_mutual=(mutual, self.mutual_weight),
        )


def networks(x: Inputs) -> tuple[tuple[Outputs, str], tuple[Outputs, str]]:
    """The student's and the teacher's outputs, each with its name for errors."""
    return (x.student["main"], "student"), (x.teacher["main"], "teacher")


def stages(outputs: Outputs, of: str, *, before_activation: bool = False) -> dict[str, jax.Array]:
    """A network's maps in order, "stage1" and so on; optionally the pre-activation maps, if they differ."""
    found = {}
    for number in itertools.count(1):
        stage = f"stage{number}"
        if stage not in outputs.features:
            break
        name = f"{stage}_preact" if before_activation else stage
        found[stage] = map_named(name if name in outputs.features else stage, outputs, of)
    return found or {"stage1": map_named("stage1", outputs, of)}  # raises an error that names what is missing


def pooled(outputs: Outputs, of: str) -> jax.Array:
    """A network's pooled features `[B, D]`."""
    return _named("pooled", outputs, of, rank=2)


def pooled_of_batch(x: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The student's and the teacher's pooled features of all devices' examples, and the mask of real ones."""
    whole = x.gather()
    student, teacher = (pooled(*network) for network in networks(whole))
    return student, teacher, whole.where


def map_named(name: str, outputs: Outputs, of: str) -> jax.Array:
    """A network's map `[B, H, W, C]` by name."""
    return _named(name, outputs, of, rank=4)


def _named(name: str, outputs: Outputs, of: str, rank: int) -> jax.Array:
    if name not in outputs.features:
        raise ValueError(
            f"the method reads the feature {name} of both networks, but the {of} has "
            f"{', '.join(outputs.features) or 'no features'}; your own module must return features by name "
            f"with its logits, or name them with models.from_linen(module, features={{{name!r}: 'path'}})"
        )
    feature = outputs.features[name]
    if feature.ndim != rank:
        wanted = "[B, H, W, C]" if rank == 4 else "[B, D]"
        raise ValueError(f"the {of}'s feature {name} must be {wanted}, got shape {list(feature.shape)}")
    return feature


def convolution(
    width: int,
    kernel: tuple[int, int],
    *,
    inputs: int,
    name: str,
    stride: int = 1,
    padding: int = 0,
    use_bias: bool = True,
    kernel_init: Initializer = fan_in_uniform,
) -> nn.Conv:
    """A convolution initialised as in torch, for `inputs` channels."""
    bias = uniform(1 / math.sqrt(math.prod(kernel) * inputs))
    return nn.Conv(
        width, kernel, stride, padding, use_bias=use_bias, kernel_init=kernel_init, bias_init=bias, name=name
    )


def batch_norm(x: Inputs, y: jax.Array, *, name: str) -> BatchNorm:
    """Batch norm over the examples of all devices, in the dtype of `y`."""
    return BatchNorm(use_running_average=False, axis_name=x.axis_name, dtype=y.dtype, name=name)
