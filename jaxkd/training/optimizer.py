"""The recipe of the distillation literature: SGD with momentum, decay of all weights, steps in the rate."""

from __future__ import annotations

import optax

# Of 240 epochs, the rate falls to a tenth after 150, 180 and 210.
_MILESTONES = (150 / 240, 180 / 240, 210 / 240)


def learning_rate_schedule(learning_rate: float, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step: times 0.1 after 62.5, 75 and 87.5 % of the epochs.

    >>> schedule = learning_rate_schedule(0.05, num_epochs=240, steps_per_epoch=782)
    >>> [round(float(schedule(epoch * 782)), 6) for epoch in (149, 150, 180, 210)]
    [0.05, 0.005, 0.0005, 5e-05]
    """
    steps = num_epochs * steps_per_epoch
    return optax.piecewise_constant_schedule(
        learning_rate, {round(fraction * steps): 0.1 for fraction in _MILESTONES}
    )


def sgd(schedule: optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD as in torch: decay added to the gradient of every parameter, then momentum, then the rate."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum or None),
    )
