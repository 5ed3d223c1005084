"""Options for the optimisation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxkd.options import Options, option
from jaxkd.training.optimizers import Recipe

_LEARNING_RATES = {"sgd": 0.05, "adamw": 1e-3, "lion": 1e-4}
_WEIGHT_DECAYS = {"sgd": 5e-4, "adamw": 0.05, "lion": 0.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """Optimisation"""

    epochs: int | None = option(default=None, main=True)
    """Passes over the training images; the learning rate schedule scales with it. Default: the literature's
    240 for CIFAR and 100 for ImageNet, 10 for digits, 30 for other data."""
    seed: int = option(default=0, main=True)
    """Random seed of initialisation, order and augmentation."""
    batch_size: int = 64
    """Images per update, over all devices."""
    optimizer: str = "sgd"
    """sgd (the literature's), adamw or lion."""
    learning_rate: float | None = None
    """Peak learning rate; not scaled with the batch size. Default: sgd 0.05, adamw 0.001, lion 0.0001. The
    literature uses 0.01 for MobileNet and ShuffleNet students."""
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    """Learning rate schedule: times 0.1 after 62.5, 75 and 87.5 percent of the epochs, half a cosine, or
    constant."""
    warmup_epochs: int = 0
    """Number of epochs in which the learning rate rises from 0."""
    momentum: float = 0.9
    """SGD momentum; the first beta of adamw and lion."""
    weight_decay: float | None = None
    """Weight decay for all parameters, including biases and batch norm. Default: sgd 0.0005, adamw 0.05, lion
    0.5."""
    ema: float | None = None
    """Decay of a moving average of the student, batch-norm statistics included, which is evaluated and saved;
    smaller in the first steps: (1 + step) / (10 + step). Default: none."""
    accumulate: int = 1
    """Number of micro-batches per update (gradient accumulation). Batch norm, and losses on a whole batch,
    see one micro-batch at a time."""
    batch_norm: Literal["global", "device"] = "global"
    """Batch-norm statistics over the global batch, or per device."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the student's activations; parameters, statistics and losses stay float32."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(1, "epochs", "batch_size", "accumulate")
        self.require(0, "seed", "momentum", "weight_decay", "warmup_epochs")
        if self.seed >= 2**32:
            raise ValueError(f"--seed must be less than 2**32, the range of random keys, got {self.seed}")
        if self.momentum >= 1:
            raise ValueError(f"--momentum must be less than 1, got {self.momentum}")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"--ema must be between 0 and 1, such as 0.999, got {self.ema}")

    def recipe(self, num_epochs: int, steps_per_epoch: int) -> Recipe:
        """The optimiser set by the options.

        Raises:
          ValueError: its name is unknown.
        """
        rate, decay = self.learning_rate, self.weight_decay
        return Recipe(
            optimizer=self.optimizer,
            learning_rate=_LEARNING_RATES.get(self.optimizer, 0.0) if rate is None else rate,
            schedule=self.schedule,
            warmup_steps=self.warmup_epochs * steps_per_epoch,
            momentum=self.momentum,
            weight_decay=_WEIGHT_DECAYS.get(self.optimizer, 0.0) if decay is None else decay,
            total_steps=num_epochs * steps_per_epoch,
        )
