"""The state of training: everything that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.training.loss_scale import LossScale

# Bins of the temperatures' histogram: 256 to a decade, so that a quantile read from it is right to 1 %.
TEMPERATURE_EDGES = np.logspace(-1, 3, 4 * 256 + 1)


@flax.struct.dataclass
class TrainState:
    """Parameters, statistics, optimiser, and the running sums of the current epoch.

    Attributes:
      step: how many updates have been made; int32.
      params: `{"student": ..., "method": ...}`.
      batch_stats: the student's running statistics.
      method_state: the method's variables that are not trained.
      opt_state: of the optimiser.
      tally: sums over the epoch's examples so far, by name; kept here so that a resumed run reports the
        same numbers.
      loss_scale: with float16; None without.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: Any
    method_state: Any
    opt_state: Any
    tally: dict[str, jax.Array]
    loss_scale: LossScale | None = None


def empty_tally(metrics: tuple[str, ...]) -> dict[str, jax.Array]:
    """All sums at zero.

    Args:
      metrics: names of what the method reports.
    """
    # An array for each name: a buffer can be donated only once.
    names = ("examples", "loss", "ce", "correct", "nonfinite_teacher", *metrics)
    tally = {name: jnp.zeros((), jnp.float32) for name in names}
    # The first step of the epoch at which something was not finite; `nonfinite_teacher` counts examples.
    tally["nonfinite_step"] = jnp.full((), -1, jnp.int32)
    if "temperature" in metrics:
        tally["temperature_histogram"] = jnp.zeros(len(TEMPERATURE_EDGES) + 1, jnp.float32)
    return tally
