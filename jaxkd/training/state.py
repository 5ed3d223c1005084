"""The state of training: everything that a checkpoint holds, and a pure function of step and seed at birth."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# Bins of the temperatures' histogram: 64 to a decade, so that a quantile read from it is right to 4 %.
TEMPERATURE_EDGES = np.logspace(-1, 3, 4 * 64 + 1)


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
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: Any
    method_state: Any
    opt_state: Any
    tally: dict[str, jax.Array]


def empty_tally(metrics: tuple[str, ...]) -> dict[str, jax.Array]:
    """All sums at zero.

    Args:
      metrics: names of what the method reports.
    """
    zero = jnp.zeros((), jnp.float32)
    tally = {name: zero for name in ("examples", "loss", "ce", "correct", *metrics)}
    # The first step of the epoch at which something was not finite, and whether the teacher was the cause.
    tally["nonfinite_step"] = jnp.full((), -1, jnp.int32)
    tally["nonfinite_teacher"] = zero
    if "temperature" in metrics:
        tally["temperature_histogram"] = jnp.zeros(len(TEMPERATURE_EDGES) + 1, jnp.float32)
    return tally
