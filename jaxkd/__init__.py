"""jaxkd: knowledge distillation in JAX, with a temperature that nobody has to tune.

The losses, temperatures and logit functions need jax alone.  Everything else (`models`, `methods`, `data`,
`teachers`, `report`, `train`, `distill`) is imported when first used, and needs the `train` extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxkd import losses, temperature
from jaxkd.cpu import tune_cpu
from jaxkd.logits import pearson, standardize

if TYPE_CHECKING:
    from jaxkd import cache, config, data, methods, metrics, models, runs, teachers, training
    from jaxkd.runs import distill, evaluate, train
    from jaxkd.runs.report import report

__version__ = "0.1.0"

_MODULES = ("cache", "config", "data", "methods", "metrics", "models", "runs", "teachers", "training")
_FUNCTIONS = {
    "distill": "jaxkd.runs",
    "evaluate": "jaxkd.runs",
    "report": "jaxkd.runs.report",
    "train": "jaxkd.runs",
}

__all__ = [  # noqa: RUF022 - the light part first
    "losses", "pearson", "standardize", "temperature", "tune_cpu",
    "cache", "config", "data", "distill", "evaluate", "methods", "metrics", "models", "report", "runs",
    "teachers", "train", "training",
]  # fmt: skip


if not TYPE_CHECKING:  # else a misspelt name would have a type

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"jaxkd.{name}")
        if name in _FUNCTIONS:
            return getattr(importlib.import_module(_FUNCTIONS[name]), name)
        raise AttributeError(f"module 'jaxkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
