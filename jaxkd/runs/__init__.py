"""Runs: everything with side effects around the pure core: records, checkpoints, resuming, evaluation."""

from jaxkd._extras import require

require("train", "flax", "optax", "orbax", "tensorboardX")

from jaxkd.runs.config import DistillConfig, TrainConfig  # noqa: E402
from jaxkd.runs.grid import grid  # noqa: E402
from jaxkd.runs.nonfinite import NonFiniteError  # noqa: E402
from jaxkd.runs.record import Result, read_metrics  # noqa: E402
from jaxkd.runs.run import distill, evaluate, train  # noqa: E402
from jaxkd.signals import Stopped  # noqa: E402

__all__ = [
    "DistillConfig",
    "NonFiniteError",
    "Result",
    "Stopped",
    "TrainConfig",
    "distill",
    "evaluate",
    "grid",
    "read_metrics",
    "train",
]
