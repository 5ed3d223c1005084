"""Distillation methods: Flax modules that declare what they need and return the terms of the training loss.

Adding a method is one class, or one row that configures a class, in the table of `registry.py`.
"""

from jaxkd._extras import require

require("train", "flax")

from jaxkd.methods.base import (  # noqa: E402
    Inputs,
    Labels,
    Method,
    Range,
    Terms,
    cross_entropy,
    from_function,
    predicts_itself,
)
from jaxkd.methods.registry import accepted, create, names, options, summary, title  # noqa: E402
from jaxkd.methods.sums import Sum, answering_part  # noqa: E402
from jaxkd.metrics import Histogram, Mean, Metric  # noqa: E402

__all__ = [
    "Histogram",
    "Inputs",
    "Labels",
    "Mean",
    "Method",
    "Metric",
    "Range",
    "Sum",
    "Terms",
    "accepted",
    "answering_part",
    "create",
    "cross_entropy",
    "from_function",
    "names",
    "options",
    "predicts_itself",
    "summary",
    "title",
]
