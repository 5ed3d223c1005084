"""CTKD: a temperature that is learned against the student (Li et al. 2023, arXiv 2211.16231)."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxkd import losses, temperature
from jaxkd.logits import pearson
from jaxkd.methods.base import Inputs, Method, Terms, cross_entropy
from jaxkd.metrics import Histogram, Mean


class CTKD(Method):
    """KD with T = start + end * sigmoid(theta), whose theta ascends the distillation loss.

    The gradient of theta is multiplied by lambda, which falls from 0 to -1 along half a cosine over
    `decay_epochs`.  theta is trained by the optimiser of the label "method".

    Attributes:
      weight: of the distillation loss.
      ce_weight: of the cross-entropy with the labels.
      standardize: whether the softmax sees z-scores.
      start: the lowest temperature.
      end: the width of the range of temperatures.
      decay_epochs: length of lambda's decay.
    """

    weight: float = 0.9
    ce_weight: float = 0.1
    standardize: bool = False
    start: float = 1.0
    end: float = 20.0
    decay_epochs: int = 10

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        theta = self.param("theta", nn.initializers.ones, ())
        strength = temperature.cosine_decay(x.epoch, epochs=self.decay_epochs)
        tau = temperature.learned(theta, strength, start=self.start, end=self.end)
        s, t = x.student_logits, x.teacher_logits
        loss = losses.kd(s, t, temperature=lambda *_, **__: tau, standardize=self.standardize)
        return Terms(
            {"ce": (cross_entropy(s, x.labels), self.ce_weight), "kd": (loss, self.weight)},
            {
                "temperature": Histogram.of(jax.lax.stop_gradient(tau), x.where),
                "correlation": Mean.of(jax.lax.stop_gradient(pearson(s, t)), x.where),
            },
        )
