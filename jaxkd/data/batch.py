"""What the devices get of a batch."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Batch:
    """One device's share of a batch.

    Attributes:
      ids: int32 `[B]`; -1 for padding.
      images: uint8 `[B, H, W, C]`; None until `fetch` takes them from the device's resident split.
      labels: int32 `[B]`.
      teacher_logits: on the view "main", `[B, K]`, from a cache; None to run the teacher.
      teacher_pooled: the teacher's pooled features `[B, D]` from there, if it holds them.
    """

    ids: Any
    images: Any = None
    labels: Any = None
    teacher_logits: Any = None
    teacher_pooled: Any = None

    @property
    def where(self) -> jax.Array:
        """Which places hold an example, bool `[B]`."""
        return self.ids >= 0


def fetch(resident: tuple[jax.Array, jax.Array] | None, batch: Batch) -> Batch:
    """Takes a batch's images and labels from a split that is resident on the device.

    Args:
      resident: the split's images, uint8 `[N, H, W, C]`, and labels, int32 `[N]`; None if the batch brings
        its own.
      batch: with its ids.
    """
    if resident is None:
        return batch
    images, labels = resident
    ids = jnp.maximum(batch.ids, 0)
    return batch.replace(images=images[ids], labels=labels[ids])  # type: ignore[attr-defined]
