"""CRD: contrastive representation distillation, with a bank of embeddings of each network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.losses.feature import unit
from jaxkd.methods.base import COUNT, Inputs, Range, Terms
from jaxkd.methods.feature import Feature, networks, pooled
from jaxkd.models.layers import linear

_EPS = 1e-12


class CRD(Feature):
    """CRD: contrasts the student's embedding of an image with the teacher's embeddings, and vice versa.

    Both embeddings are trained.  A bank holds an embedding of every training example: a running average of
    the network's embeddings of that example.  Negatives come from the banks, from the other classes, without
    replacement; they are a function of the seed, the step and the example.

    Attributes:
      weight: weight of the loss.
      ce_weight: weight of the cross-entropy with the labels.
      dimensions: dimensions of the embeddings.
      negatives: the maximum per example; fewer if the other classes have fewer, or if classes differ much in
        size.
      score_temperature: temperature of the similarities, not of logits.
      momentum: momentum of the banks: the fraction of a row that is kept.
    """

    weight: float = 0.8
    dimensions: int = 128
    negatives: int = 16384
    score_temperature: float = 0.07
    momentum: float = 0.5

    reads: ClassVar = ("pooled",)
    learns: ClassVar = "two embeddings, two banks"
    ranges: ClassVar = {
        "dimensions": COUNT,
        "negatives": COUNT,
        "score_temperature": Range(0.02),  # exp(1 / t) must be a float32
        "momentum": Range(0.0, below=1.0),
    }

    def constants(self, teacher: Any, student: Any, dataset: Any) -> Mapping[str, Any]:
        """The labels of the training examples, from which negatives are drawn."""
        labels = getattr(dataset.splits["train"], "labels", None)
        if labels is None:
            raise ValueError(
                f"crd needs the labels of all training examples, but those of {dataset.name} are streamed; "
                "use data that fit into memory, or another method"
            )
        return {"labels": np.asarray(labels, np.int32)}

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        labels: Any = self.get_variable("constants", "labels")
        size = len(labels)
        layers = {
            name: linear(self.dimensions, inputs=pooled(outputs, name).shape[-1], name=f"embed_{name}")
            for outputs, name in networks(x)
        }
        banks = {name: self.variable("memory", f"{name}_bank", self._draw, name, size) for name in layers}
        totals = {name: self.variable("memory", f"{name}_total", lambda: -jnp.ones(())) for name in layers}

        def embedded(seen: Inputs) -> dict[str, jax.Array]:
            return {name: unit(layers[name](pooled(outputs, name))) for outputs, name in networks(seen)}

        index, keep = contrast(
            self.make_rng("sample"),
            x.ids,
            x.labels,
            labels,
            negatives=self.negatives,
            num_classes=x.student_logits.shape[-1],
        )
        values = jnp.zeros(len(x.ids))
        for (name, embedding), other in zip(embedded(x).items(), reversed(banks), strict=True):
            similarity = jnp.matmul(embedding, banks[other].value.T, precision="highest")
            scores = jnp.exp(jnp.take_along_axis(similarity, index, axis=1) / self.score_temperature)
            total = _total(totals[name].value, scores, keep & x.where[:, None], size, x.axis_name)
            if not self.is_initializing():
                totals[name].value = total
            values += losses.nce(scores / jnp.maximum(total, _EPS), num_examples=size, where=keep)

        if not self.is_initializing():
            whole = x.gather()
            rows = jnp.where(whole.where, whole.ids, size)
            for name, embedding in jax.lax.stop_gradient(embedded(whole)).items():
                bank = banks[name].value
                moved = unit(self.momentum * bank[whole.ids] + (1 - self.momentum) * embedding)
                banks[name].value = bank.at[rows].set(moved, mode="drop")
        return self._terms(x, crd=(values, 1.0))

    def _draw(self, name: str, size: int) -> jax.Array:
        """Rows of a length of about 1."""
        key = jax.random.fold_in(self.make_rng("params"), len(name) if name == "student" else 0)
        bound = (3 / self.dimensions) ** 0.5
        return jax.random.uniform(key, (size, self.dimensions), minval=-bound, maxval=bound)


def contrast(
    key: jax.Array,
    ids: jax.Array,
    labels: jax.Array,
    all_labels: jax.Array,
    *,
    negatives: int,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Draws the negatives of each example.

    Args:
      key: the step's key, the same on all devices.
      ids: the batch's ids `[B]`: an example's negatives depend neither on the others nor on its device.
      labels: the batch's labels.
      all_labels: the labels of all training examples.
      negatives: the maximum per example.
      num_classes: number of classes.

    Returns:
      Ids `[B, 1 + W]`, the example itself first and each other one at most once, and which of them count.
    """
    size, all_labels = len(all_labels), jnp.asarray(all_labels)
    shuffling, starting = jax.random.split(key)
    order = jax.random.permutation(shuffling, size)
    # A window of the shuffled examples, with room for those of the same class, which do not count.
    width = min(size, negatives + 2 * -(-size // num_classes))
    start = jax.vmap(
        lambda one: jax.random.randint(jax.random.fold_in(starting, one), (), 0, size, jnp.int32)
    )(ids)
    drawn = order[(start[:, None] + jnp.arange(width)) % size]
    other = all_labels[drawn] != labels[:, None]
    keep = other & (jnp.cumsum(other, axis=1) <= negatives)
    own = jnp.maximum(ids, 0)[:, None]
    return jnp.concatenate([own, drawn], 1), jnp.concatenate([jnp.ones_like(own, bool), keep], 1)


def _total(
    known: jax.Array, scores: jax.Array, where: jax.Array, size: int, axis_name: str | None
) -> jax.Array:
    """What makes probabilities of scores: estimated from the first batch of all devices, and kept."""
    sums = jnp.sum(jnp.where(where, scores, 0.0)), jnp.sum(where)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    estimate = jax.lax.stop_gradient(sums[0] / jnp.maximum(sums[1], 1) * size)
    return jnp.where((known < 0) & (sums[1] > 0), estimate, known)
