"""Dynamic loss scaling, for float16: gradients too small for it are scaled up, as far as none overflows.

Micikevicius et al. 2018 (arXiv 1710.03740, section 3.2), with the constants and the rule of
`flax.training.dynamic_scale.DynamicScale`, which the tests compare with.  Flax keeps the rule inside its
`value_and_grad`; here gradients are added up first, over parts of a batch and over devices.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

_GROWTH, _GROWTH_INTERVAL, _BACKOFF = 2.0, 2000, 0.5
_INITIAL, _LARGEST = 65536.0, 2.0**127


@flax.struct.dataclass
class LossScale:
    """What a loss is multiplied with before its gradient is taken.

    Attributes:
      scale: the factor; float32, at least 1.
      finite_steps: steps since it last changed; int32.
      skipped_steps: updates that were left out, since a gradient overflowed; int32.
    """

    scale: jax.Array
    finite_steps: jax.Array
    skipped_steps: jax.Array

    @classmethod
    def initial(cls) -> LossScale:
        """65,536, and no step yet.

        >>> float(LossScale.initial().adjust(jnp.array(False)).scale)
        32768.0
        """
        return cls(jnp.float32(_INITIAL), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def adjust(self, finite: jax.Array) -> LossScale:
        """After a step: doubled after 2,000 with `finite` gradients in a row, halved after one without."""
        grow = self.finite_steps == _GROWTH_INTERVAL
        grown = jnp.where(grow, jnp.minimum(self.scale * _GROWTH, _LARGEST), self.scale)
        return LossScale(
            scale=jnp.where(finite, grown, jnp.maximum(self.scale * _BACKOFF, 1.0)),
            finite_steps=jnp.where(grow | ~finite, 0, self.finite_steps + 1),
            skipped_steps=self.skipped_steps + jnp.where(finite, 0, 1),
        )

    def is_exhausted(self, finite: jax.Array) -> jax.Array:
        """Whether a gradient that is not `finite` cannot be mended by a smaller scale."""
        return ~finite & (self.scale <= 1.0)


def skip_unless(finite: jax.Array, new: tuple[Any, Any], old_opt_state: Any) -> tuple[Any, Any]:
    """The update and the optimiser's state after it; or no update and the state before it.

    Counters count on: the learning rate's schedule goes by the step, whether it was skipped or not.

    Args:
      finite: whether the gradients were.
      new: updates, and the optimiser's state after them.
      old_opt_state: the optimiser's state before them.
    """
    updates, opt_state = new

    def choose(after: jax.Array, before: jax.Array) -> jax.Array:
        return after if jnp.issubdtype(after.dtype, jnp.integer) else jnp.where(finite, after, before)

    return (
        jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0.0), updates),
        jax.tree.map(choose, opt_state, old_opt_state),
    )
