"""The table of methods: one row a name, with the options that its source recommends."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxkd import losses
from jaxkd._names import unknown
from jaxkd.methods.base import Labels, Method
from jaxkd.methods.feature import AT, CC, ITRD, NST, OFD, PKT, RKD, SP, VID, FitNet
from jaxkd.methods.learned import CTKD
from jaxkd.methods.logit import Logit, loss_options
from jaxkd.methods.review import ReviewKD


class Row(NamedTuple):
    """A method with its recommended options, and one line for people who choose."""

    summary: str
    options: Mapping[str, Any]
    make: Callable[..., Method]
    loss: Callable[..., Any] | None = None


def _logit(loss: Callable[..., Any], summary: str, **options: Any) -> Row:
    return Row(summary, options, Logit, loss)


# Weights are those of mdistiller, of RepDistiller, or of the method's own code.
_METHODS: dict[str, Row] = {
    "kd": _logit(losses.kd, "KD, fixed temperature 4 (Hinton et al. 2015)", weight=0.9, ce_weight=0.1),
    "lskd": _logit(
        losses.kd, "KD on z-scores, fixed temperature 2 (Sun et al. 2024)",
        weight=9.0, ce_weight=0.1, temperature=2.0, standardize=True,
    ),
    "atkd": _logit(
        losses.kd, "KD on z-scores, adaptive temperature (Matsuyama et al. 2025)",
        weight=9.0, ce_weight=0.1, temperature="max_logit", standardize=True,
    ),
    "dkd": _logit(
        losses.dkd, "decoupled KD: target class and the other classes (Zhao et al. 2022)", warmup_epochs=20
    ),
    "ttm": _logit(
        losses.ttm, "power transform of the teacher's probabilities (Zheng and Yang 2024)",
        weight=45.0, ce_weight=1.0, exponent=0.1,
    ),
    "wttm": _logit(
        losses.wttm, "TTM with a weight for each example (Zheng and Yang 2024)",
        weight=4.0, ce_weight=1.0, exponent=0.2,
    ),
    "dist": _logit(
        losses.dist, "correlation over classes and over the batch (Huang et al. 2022)",
        weight=1.0, ce_weight=1.0,
    ),
    "normkd": _logit(
        losses.normkd, "KD, temperature 2 x standard deviation of the logits (Chi et al. 2023)",
        weight=0.9, ce_weight=0.1,
    ),
    "normdkd": _logit(
        losses.normdkd, "NormKD with DKD's two parts (Chi et al. 2023)",
        weight=1.0, ce_weight=1.0, warmup_epochs=20,
    ),
    "dtkd": _logit(
        losses.dtkd, "KD, temperatures from both largest logits (Wei et al. 2024)", weight=1.0, ce_weight=1.0,
        warmup_epochs=20,
    ),
    "mse": _logit(losses.mse, "mean squared error of logits (Kim et al. 2021)", weight=1.0, ce_weight=0.0),
    "correlation": _logit(
        losses.correlation, "1 - Pearson correlation of logits, the limit of atkd", weight=9.0, ce_weight=0.1
    ),
    "ctkd": Row("KD, temperature learned against the student (Li et al. 2023)", {}, CTKD),
    "fitnet": Row("a map of the teacher, predicted from the student's (Romero et al. 2015)", {}, FitNet),
    "at": Row("attention maps of each stage (Zagoruyko and Komodakis 2017)", {}, AT),
    "nst": Row("distribution of the channels of each stage (Huang and Wang 2017)", {}, NST),
    "vid": Row("likelihood of the teacher's maps, with variances (Ahn et al. 2019)", {}, VID),
    "ofd": Row("pre-activation maps above a margin (Heo et al. 2019)", {}, OFD),
    "reviewkd": Row("stages fused from the deepest to the shallowest (Chen et al. 2021)", {}, ReviewKD),
    "rkd": Row("distances and angles between examples (Park et al. 2019)", {}, RKD),
    "pkt": Row("similarities of examples, as probabilities (Passalis and Tefas 2018)", {}, PKT),
    "sp": Row("Gram matrix of the batch in the last map (Tung and Mori 2019)", {}, SP),
    "cc": Row("distances of neighbours in the batch, as in RepDistiller (Peng et al. 2019)", {}, CC),
    "itrd": Row("correlation and mutual information over the batch (Miles et al. 2022)", {}, ITRD),
    "labels": Row("cross-entropy with the labels, no teacher", {}, Labels),
}  # fmt: skip


def names() -> tuple[str, ...]:
    """The names that `create` knows.

    >>> from jaxkd import methods
    >>> methods.names()[:3]
    ('kd', 'lskd', 'atkd')
    """
    return tuple(_METHODS)


def summary(name: str) -> str:
    """One line on a method."""
    return _row(name).summary


class Option(NamedTuple):
    """An option of a method: its type, and its default under the method's name."""

    kind: Any
    default: Any
    help: str


def accepted(name: str) -> dict[str, Option]:
    """The options of a method, by name.

    >>> from jaxkd import methods
    >>> {option: known.default for option, known in methods.accepted("ttm").items()}
    {'weight': 45.0, 'ce_weight': 1.0, 'warmup_epochs': 0, 'exponent': 0.1}
    """
    row = _row(name)
    kinds = typing.get_type_hints(row.make)
    helps = _attribute_docs(row.make)
    found = {
        field.name: Option(kinds[field.name], field.default, helps.get(field.name, ""))
        for field in dataclasses.fields(row.make)  # type: ignore[arg-type]
        if field.name not in ("parent", "name", "title", "loss", "options")
    }
    if row.loss is not None:
        for option, parameter in loss_options(row.loss).items():
            kind = {"temperature": float | str}.get(option, type(parameter.default))
            found[option] = Option(kind, parameter.default, _HELP.get(option, f"{option} of the loss"))
    return {
        option: known._replace(default=row.options.get(option, known.default))
        for option, known in found.items()
    }


_HELP = {
    "temperature": "a positive number, max_logit (the adaptive temperature) or max_logit_teacher",
    "standardize": "whether the softmax sees z-scores of the logits",
}


def create(name: str, **options: Any) -> Method:
    """Creates a method by name.

    Args:
      name: one of `names()`.
      **options: in place of the recommended ones; `accepted(name)` lists them.

    Returns:
      A Flax Linen module, `method(inputs) -> terms`.

    Raises:
      ValueError: the name is unknown, or the method has no such option.

    >>> from jaxkd import methods
    >>> methods.options(methods.create("atkd", weight=6.0))["weight"]
    6.0
    """
    row, known = _row(name), accepted(name)
    if others := sorted(options.keys() - known.keys()):
        raise ValueError(
            f"method {name} has no option {', '.join(others)}; it has {', '.join(known) or 'none'}"
        )
    values = {option: options.get(option, known[option].default) for option in known}
    if row.loss is None:
        return row.make(**values)
    of_loss = {option: values.pop(option) for option in loss_options(row.loss)}
    return row.make(title=name, loss=row.loss, options=of_loss, **values)


def _row(name: str) -> Row:
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]


def options(method: Method) -> dict[str, Any]:
    """A method's attributes by name, ready for JSON: with its name, what identifies it in a run.

    >>> from jaxkd import methods
    >>> methods.options(methods.create("lskd"))
    {'weight': 9.0, 'ce_weight': 0.1, 'warmup_epochs': 0, 'temperature': 2.0, 'standardize': True}
    """
    found = {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.name not in ("parent", "name", "loss", "function", "title")
    }
    of_loss = found.pop("options", {})
    return {**found, **of_loss}


def title(method: Method) -> str:
    """The name of a method: that of its row, of its function, or of its class."""
    of_class = {row.make: name for name, row in _METHODS.items()}
    known = getattr(method, "title", None) or of_class.get(type(method))
    return known or type(method).__name__


def _attribute_docs(cls: Any) -> dict[str, str]:
    """The lines of the section "Attributes" of a docstring, by attribute."""
    lines = (cls.__doc__ or "").partition("Attributes:")[2].splitlines()
    found: dict[str, str] = {}
    last = None
    for line in lines:
        word, colon, text = line.strip().partition(":")
        if colon and word.isidentifier():
            last, found[word] = word, text.strip()
        elif last and line.strip():
            found[last] += " " + line.strip()
    return found
