"""CTKD: a temperature that is learned against the student (Li et al. 2023, arXiv 2211.16231)."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jaxkd import temperature
from jaxkd.methods.base import COUNT, POSITIVE, Inputs, Terms
from jaxkd.methods.logit import Logit


class CTKD(Logit):
    """A loss with T = start + end * sigmoid(theta), whose theta ascends the loss.

    The gradient of theta is multiplied by lambda, which falls from 0 to -1 along half a cosine over
    `decay_epochs`.  theta is trained by the optimiser of the label "method".

    Attributes:
      start: the lowest temperature.
      end: the width of the range of temperatures.
      decay_epochs: length of lambda's decay.
    """

    fixed: ClassVar[tuple[str, ...]] = (*Logit.fixed, "temperature")
    learns: ClassVar[str] = "the temperature"
    ranges: ClassVar = {"start": POSITIVE, "end": POSITIVE, "decay_epochs": COUNT}

    start: float = 1.0
    end: float = 20.0
    decay_epochs: int = 10

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Logit`."""
        theta = self.param("theta", nn.initializers.ones, ())
        strength = temperature.cosine_decay(x.epoch, epochs=self.decay_epochs)
        tau = temperature.learned(theta, strength, start=self.start, end=self.end)
        return self._terms(x, lambda s, _: jnp.broadcast_to(tau, (*s.shape[:-1], 1)))
