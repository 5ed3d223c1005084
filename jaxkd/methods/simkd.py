"""Methods on the classifier's input: SimKD, which predicts with the teacher's classifier, and CAT-KD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxkd import losses
from jaxkd.losses.feature import adaptive_pool, of_one_size
from jaxkd.methods.base import COUNT, Inputs, Terms, cross_entropy
from jaxkd.methods.feature import Feature, convolution, map_named, networks, stages
from jaxkd.models import Outputs
from jaxkd.models.layers import BatchNorm, relu, widened


class SimKD(Feature):
    """SimKD: the teacher's last map, predicted from the student's; the teacher's own classifier predicts.

    What is trained, evaluated and saved is the student with a projector and that classifier; the student's
    own classifier is not trained.

    Attributes:
      weight: weight of the mean squared error of the maps.
      ce_weight: weight of the cross-entropy of the prediction with the labels; the source has none.
      factor: ratio of the teacher's map's width to the projector's inner width.
      map: name of the map, in both networks: "last" is the map that is pooled for the classifier; of a
        student that widens its last stage before it pools (MobileNetV2, ShuffleV2), "last" is that stage,
        as in the source.
    """

    ce_weight: float = 0.0
    factor: int = 2
    map: str = "last"

    reads: ClassVar = ("last", "weights")
    learns: ClassVar = "a projector"
    ranges: ClassVar = {"factor": COUNT}

    def constants(self, teacher: Any, student: Any, dataset: Any) -> Mapping[str, Any]:
        """The teacher's classifier, and the pooling weights for a map of the smaller one's size."""
        network, variables = teacher.frozen
        shape = dataset.image_shape
        own = jax.eval_shape(lambda: student.init(0, shape))
        outputs = {
            "teacher": network.output_shapes(variables, shape),
            "student": student.output_shapes(own, shape),
        }
        maps = map_named(self.map, outputs["teacher"], "teacher"), self._source(outputs["student"])
        sizes = [a.shape[1:3] for a in maps]
        height, width = (min(side) for side in zip(*sizes, strict=True))
        average = np.full((height, width), 1 / (height * width), np.float32)
        return {**linear_head(teacher, "simkd"), "average": average}

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        projected = self._project(self._source(x.student["main"]), x.where, x.axis_name, train=True)
        _, target = of_one_size(projected, map_named(self.map, x.teacher["main"], "teacher"))
        ce = cross_entropy(self._classify(projected), x.labels)
        return Terms({"ce": (ce, self.ce_weight), "simkd": (losses.hint(projected, target), self.weight)})

    def predict(self, student: Outputs) -> jax.Array:
        """The teacher's classifier on the projected map."""
        return self._classify(self._project(self._source(student), None, None, train=False))

    @nn.nowrap
    def _source(self, student: Outputs) -> jax.Array:
        """The student's map that is projected."""
        source = map_named(self.map, student, "student")
        if self.map == "last" and "stage1" in student.features:
            *_, stage = stages(student, "student").values()
            return stage if stage.shape[1:3] == source.shape[1:3] and stage.shape != source.shape else source
        return source

    @nn.compact
    def _project(
        self, source: jax.Array, where: jax.Array | None, axis_name: str | None, *, train: bool
    ) -> jax.Array:
        """1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU: a map like the teacher's."""
        average: Any = self.get_variable("constants", "average")
        head: Any = self.get_variable("constants", "kernel")
        width, inside = head.shape[0], head.shape[0] // self.factor
        y = adaptive_pool(widened(source), average.shape)
        for index, (channels, size) in enumerate(((inside, 1), (inside, 3), (width, 1))):
            conv = convolution(
                channels,
                (size, size),
                inputs=y.shape[-1],
                padding=size // 2,
                use_bias=False,
                name=f"transfer_{3 * index}",
            )
            norm = BatchNorm(
                use_running_average=not train,
                axis_name=axis_name,
                dtype=y.dtype,
                name=f"transfer_{3 * index + 1}",
            )
            y = relu(norm(conv(y), where))
        return y

    def _classify(self, projected: jax.Array) -> jax.Array:
        given: list[Any] = [self.get_variable("constants", name) for name in ("kernel", "bias", "average")]
        kernel, bias, average = given
        return jnp.einsum("bhwc,hw->bc", projected, average) @ kernel + bias


class CATKD(Feature):
    """CAT-KD: the class activation maps of both networks, pooled to a small size.

    Attributes:
      weight: weight of the mean squared error of the maps.
      ce_weight: weight of the cross-entropy with the labels.
      size: height and width of the compared maps; the source uses 4 for ShuffleNet students.
      normalize: whether to divide each map by its length; the source does so between different families.
    """

    weight: float = 1.0
    size: int = 2
    normalize: bool = False

    reads: ClassVar = ("cam",)
    ranges: ClassVar = {"size": COUNT}

    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        student, teacher = (map_named("cam", *network) for network in networks(x))
        distance = losses.class_activation(student, teacher, size=self.size, normalize=self.normalize)
        return self._terms(x, catkd=(distance, 1.0))


def linear_head(teacher: Any, method: str) -> dict[str, Any]:
    """The linear layer of a teacher that maps its pooled features to logits: kernel and bias.

    Args:
      teacher: a `jaxkd.teachers.Teacher`.
      method: the method's name, for the error.

    Raises:
      ValueError: there is no such layer, or there are several candidates.
    """
    network, variables = teacher.frozen
    shape = teacher.input_shape
    outputs = network.output_shapes(variables, shape)
    pooled = outputs.features.get("pooled", jax.ShapeDtypeStruct((1, 0), jnp.float32))
    flat = flatten_dict(dict(teacher.variables or {}))
    found = [
        {"kernel": leaf, "bias": flat.get((*path[:-1], "bias"), jnp.zeros(leaf.shape[-1]))}
        for path, leaf in flat.items()
        if path[-1] == "kernel" and leaf.shape == (pooled.shape[-1], outputs.logits.shape[-1])
    ]
    if found and teacher.forward is not None:  # an own network: a layer of that shape may be another one
        images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, *shape)), jnp.uint8)
        result = jax.jit(lambda v, x: network.apply(v, x)[0])(variables, images)
        vectors = result.features["pooled"]
        found = [
            head
            for head in found
            if jnp.allclose(vectors @ head["kernel"] + head["bias"], result.logits, rtol=1e-3, atol=1e-3)
        ]
    if len(found) != 1:
        raise ValueError(
            f'{method} needs the linear layer of the teacher that maps the feature "pooled" to logits, and '
            f"{teacher.name} has {len(found)} that could be it; a network of your own names its pooled "
            'features with models.from_linen(module, features={"pooled": "path"})'
        )
    return found[0]
