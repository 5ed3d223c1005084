"""Distillation methods: Flax modules that hold a loss, its weights, and whatever it has to learn.

Adding a method is one class (or one row that configures a class) in the table of `registry.py`.
"""

from jaxkd._extras import require

require("train", "flax")

from jaxkd.methods.base import Method, Progress  # noqa: E402
from jaxkd.methods.registry import create, names, options  # noqa: E402

__all__ = ["Method", "Progress", "create", "names", "options"]
