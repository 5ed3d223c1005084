"""Training: state, the pure step, its mapping over devices, checkpoints, and the loop around them."""

from jaxkd._extras import require

require("train", "flax", "optax", "orbax", "tensorboardX")

from jaxkd.signals import Stopped  # noqa: E402
from jaxkd.training.build_cache import build_cache  # noqa: E402
from jaxkd.training.nonfinite import NonFiniteError  # noqa: E402
from jaxkd.training.run import distill, evaluate, require_fit, train  # noqa: E402

__all__ = ["NonFiniteError", "Stopped", "build_cache", "distill", "evaluate", "require_fit", "train"]
