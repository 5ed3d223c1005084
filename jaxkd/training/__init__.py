"""The pure core of training: task, state, steps, optimisers, and their mapping over devices.

No files and no messages here; those are in `jaxkd.runs`.
"""

from jaxkd._extras import require

require("train", "flax", "optax")

from jaxkd.training.optimizers import Named, Recipe, by_label  # noqa: E402
from jaxkd.training.state import Tally, TrainState, initial_state  # noqa: E402
from jaxkd.training.step import Frozen, eval_step, train_step  # noqa: E402
from jaxkd.training.task import Task  # noqa: E402

__all__ = [
    "Frozen",
    "Named",
    "Recipe",
    "Tally",
    "Task",
    "TrainState",
    "by_label",
    "eval_step",
    "initial_state",
    "train_step",
]
