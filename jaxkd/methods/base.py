"""What every distillation method is, for the training step."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax

from jaxkd.models import Outputs


class Progress(NamedTuple):
    """How far training has come: for warm-ups and schedules.

    Attributes:
      epoch: the current epoch, from 1; int32 scalar.
      num_epochs: how many there will be.
    """

    epoch: jax.Array
    num_epochs: int


class Method(nn.Module):
    """A distillation loss with its weights.

    Attributes:
      weight: of the distillation loss in the total.
      ce_weight: of the cross-entropy with the labels, which the training step adds.
    """

    weight: float
    ce_weight: float

    def __call__(
        self, student: Outputs, teacher: Outputs, labels: jax.Array, progress: Progress
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the loss, weighted, and what is worth watching.

        Returns:
          The loss, and metrics by name: each one value per example, `[B]`, which the training step averages
          over the examples that count.
        """
        raise TypeError(f"{type(self).__name__} is abstract: a method defines __call__")
