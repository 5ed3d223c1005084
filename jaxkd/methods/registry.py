"""The table of methods: one row per name, with the options that its source recommends."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxkd import losses
from jaxkd._names import unknown
from jaxkd.methods.base import Labels, Method
from jaxkd.methods.black_box import MEKD
from jaxkd.methods.crd import CRD
from jaxkd.methods.feature import AT, CC, ITRD, NST, OFD, PKT, RKD, SP, VID, FitNet
from jaxkd.methods.learned import CTKD
from jaxkd.methods.logit import Logit, loss_options
from jaxkd.methods.review import ReviewKD
from jaxkd.methods.simkd import CATKD, SimKD
from jaxkd.methods.sums import Sum
from jaxkd.methods.two_views import MLKD
from jaxkd.options import as_type


class Row(NamedTuple):
    """A method with its recommended options, and a one-line summary."""

    make: Any
    summary: str
    options: Mapping[str, Any]
    loss: Callable[..., Any] | None = None


def _row(make: type[Method], summary: str, **options: Any) -> Row:
    return Row(make, summary, options)


def _logit(loss: Callable[..., Any], summary: str, make: type[Logit] = Logit, **options: Any) -> Row:
    return Row(make, summary, options, loss)


_ADAPTIVE: dict[str, Any] = {"temperature": "max_logit", "standardize": True}

# Weights are those of mdistiller, of RepDistiller, or of the method's own code.
_METHODS: dict[str, Row] = {
    "kd": _logit(losses.kd, "KD, fixed temperature 4 (Hinton et al. 2015)", weight=0.9, ce_weight=0.1),
    "lskd": _logit(
        losses.kd, "KD on z-scores, fixed temperature 2 (Sun et al. 2024)",
        weight=9.0, ce_weight=0.1, temperature=2.0, standardize=True,
    ),
    "atkd": _logit(
        losses.kd, "KD on z-scores, adaptive temperature (Matsuyama et al. 2025)",
        weight=9.0, ce_weight=0.1, **_ADAPTIVE,
    ),
    "dkd": _logit(
        losses.dkd, "decoupled KD: target class and the other classes (Zhao et al. 2022)", warmup_epochs=20
    ),
    "atkd_dkd": _logit(
        losses.dkd, "DKD on z-scores, adaptive temperature (Matsuyama et al. 2025; weight 9 as LSKD's)",
        weight=9.0, warmup_epochs=20, **_ADAPTIVE,
    ),
    "rld": _logit(
        losses.rld, "teacher's confidence, and its order below the label (Sun et al. 2024)", warmup_epochs=20
    ),
    "gdkd": _logit(
        losses.gdkd, "DKD with the teacher's likeliest classes in the label's place (Zheng and Cheng 2025)",
        warmup_epochs=20,
    ),
    "mlkd": _row(
        MLKD, "predictions, class and batch correlations of two views (Jin et al. 2023)",
    ),
    "atkd_mlkd": _row(
        MLKD, "MLKD on z-scores, adaptive temperature (Matsuyama et al. 2025; weight 9 as LSKD's)",
        weight=9.0, **_ADAPTIVE,
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
    "skd": _logit(
        losses.skd, "KD, and a Mahalanobis distance of the batch's cosines (StreamLined, CVPR 2026)",
        weight=0.9, ce_weight=0.1,
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
    "ctkd": _logit(
        losses.kd, "KD, temperature learned against the student (Li et al. 2023)", CTKD,
        weight=0.9, ce_weight=0.1,
    ),
    "ctkd_dkd": _logit(
        losses.dkd, "DKD, temperature learned against the student (Li et al. 2023)", CTKD, warmup_epochs=20
    ),
    "fitnet": _row(FitNet, "a map of the teacher, predicted from the student's (Romero et al. 2015)"),
    "at": _row(AT, "attention maps of each stage (Zagoruyko and Komodakis 2017)"),
    "nst": _row(NST, "distribution of the channels of each stage (Huang and Wang 2017)"),
    "vid": _row(VID, "likelihood of the teacher's maps, with variances (Ahn et al. 2019)"),
    "ofd": _row(OFD, "pre-activation maps above a margin (Heo et al. 2019)"),
    "reviewkd": _row(ReviewKD, "stages fused from the deepest to the shallowest (Chen et al. 2021)"),
    "rkd": _row(RKD, "distances and angles between examples (Park et al. 2019)"),
    "pkt": _row(PKT, "similarities of examples, as probabilities (Passalis and Tefas 2018)"),
    "sp": _row(SP, "Gram matrix of the batch in the last map (Tung and Mori 2019)"),
    "cc": _row(CC, "distances of neighbours in the batch, as in RepDistiller (Peng et al. 2019)"),
    "itrd": _row(ITRD, "correlation and mutual information over the batch (Miles et al. 2022)"),
    "simkd": _row(SimKD, "the last map, projected into the teacher's own classifier (Chen et al. 2022)"),
    "catkd": _row(CATKD, "class activation maps (Guo et al. 2023)"),
    "crd": _row(CRD, "contrast with a bank of embeddings of all examples (Tian et al. 2020)"),
    "mekd": _row(
        MEKD, "a teacher's answers alone, on images of a generator (Ma et al. 2022, arXiv 2205.10490)"
    ),
    "labels": _row(Labels, "cross-entropy with the labels, no teacher"),
}  # fmt: skip


def names() -> tuple[str, ...]:
    """The names that `create` accepts.

    >>> from jaxkd import methods
    >>> methods.names()[:3]
    ('kd', 'lskd', 'atkd')
    """
    return tuple(_METHODS)


def summary(name: str) -> str:
    """A method's one-line summary."""
    return " and ".join(_find(part).summary for part in name.split("+"))


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
    if "+" in name:
        return _accepted_by_sum(name)
    row = _find(name)
    kinds = typing.get_type_hints(row.make)
    helps = _attribute_docs(row.make)
    found = {
        field.name: Option(_kind(kinds[field.name], field), field.default, helps.get(field.name, ""))
        for field in dataclasses.fields(row.make)
        if field.name not in ("parent", "name", "title", "loss", "options")
    }
    if row.loss is not None:
        for option, parameter in loss_options(row.loss, row.make).items():
            kind = {"temperature": float | str}.get(option, type(parameter.default))
            found[option] = Option(kind, parameter.default, _HELP.get(option, f"{option} of the loss"))
    return {
        option: known._replace(default=row.options.get(option, known.default))
        for option, known in found.items()
    }


def _kind(hint: Any, field: Any) -> Any:
    """The type of an option on the command line, which cannot pass objects."""
    return type(field.default) if hint is Any else hint


_HELP = {
    "temperature": "a positive number, max_logit (the adaptive temperature) or max_logit_teacher",
    "standardize": "whether to use z-scores of the logits in the softmax",
    "top_k": "how many of the teacher's likeliest classes are apart",
    "ridge": "what is added to the variances",
}


def _accepted_by_sum(name: str) -> dict[str, Option]:
    """The options of each part, prefixed with the part's name, and one weight for the cross-entropy."""
    found = {"ce_weight": Option(float, 1.0, "weight of the cross-entropy with the labels")}
    for part in name.split("+"):
        found |= {
            f"{part}_{option}": known for option, known in accepted(part).items() if option != "ce_weight"
        }
    return found


def create(name: str, **options: Any) -> Method:
    """Creates a method by name.

    Args:
      name: one of `names()`; or several, joined by "+", for the sum of their losses.  The options of a sum
        are those of its parts, prefixed with the part's name, and `ce_weight`: "kd+dist" has `kd_weight`.
      **options: override the recommended ones; `accepted(name)` lists them.

    Returns:
      A Flax Linen module, `method(inputs) -> terms`.

    Raises:
      ValueError: the name is unknown, the method has no such option, or a value is of another type.

    >>> from jaxkd import methods
    >>> methods.options(methods.create("atkd", weight=6.0))["weight"]
    6.0
    """
    known = accepted(name)
    if others := sorted(options.keys() - known.keys()):
        raise ValueError(
            f"method {name} has no option {', '.join(others)}; it has {', '.join(known) or 'none'}"
        )
    typed = {option: _typed(option, options[option], known[option]) for option in options}
    values = {option: typed.get(option, known[option].default) for option in known}
    if "+" in name:
        return _create_sum(name, values)
    row = _find(name)
    if "title" in {field.name for field in dataclasses.fields(row.make)}:
        values["title"] = name
    if row.loss is not None:
        of_loss = {option: values.pop(option) for option in loss_options(row.loss, row.make)}
        values |= {"loss": row.loss, "options": of_loss}
    made: Method = row.make(**values)
    return made


def _typed(name: str, value: Any, option: Option) -> Any:
    """A value from a file or a command line in its option's type; functions and other objects stay."""
    value = value.item() if isinstance(value, np.generic) else value
    if option.kind is type(None) or not isinstance(value, str | int | float):
        return value
    return as_type(name, value, option.kind)


def _create_sum(name: str, values: Mapping[str, Any]) -> Method:
    parts = name.split("+")
    if len(set(parts)) < len(parts) or "labels" in parts:
        raise ValueError(f'method "{name}": the parts of a sum must differ, and "labels" is in every sum')
    made = []
    for part in parts:  # each gets the weight: some have a cross-entropy of other views, too
        own = {o: values[o if o == "ce_weight" else f"{part}_{o}"] for o in accepted(part)}
        made.append(create(part, **own))
    return Sum(tuple(made), title=name, ce_weight=values["ce_weight"])


def _find(name: str) -> Row:
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]


def options(method: Method) -> dict[str, Any]:
    """A method's attributes by name, ready for JSON; with the method's name, they identify it in a run.

    >>> from jaxkd import methods
    >>> methods.options(methods.create("lskd"))
    {'weight': 9.0, 'ce_weight': 0.1, 'warmup_epochs': 0, 'temperature': 2.0, 'standardize': True}
    """
    if isinstance(method, Sum):
        own = {} if method.ce_weight is None else {"ce_weight": method.ce_weight}
        of_parts = {
            f"{title(part)}_{option}": value
            for part in method.methods
            for option, value in options(part).items()
            if option not in own
        }
        return own | of_parts
    found = {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.name not in ("parent", "name", "loss", "function", "title")
    }
    of_loss = found.pop("options", {})
    return {**found, **of_loss}


def title(method: Method) -> str:
    """The name of a method: its row's, its function's, or its class's."""
    of_class = {row.make: name for name, row in _METHODS.items()}
    known = getattr(method, "title", None) or of_class.get(type(method))
    return known or type(method).__name__


def _attribute_docs(cls: Any) -> dict[str, str]:
    """The lines of the section "Attributes" of a docstring, by attribute."""
    inherited = [base for base in cls.__bases__ if dataclasses.is_dataclass(base)]
    found = {name: text for base in inherited for name, text in _attribute_docs(base).items()}
    lines = (cls.__doc__ or "").partition("Attributes:")[2].splitlines()
    last = None
    for line in lines:
        word, colon, text = line.strip().partition(":")
        if colon and word.isidentifier():
            last, found[word] = word, text.strip()
        elif last and line.strip():
            found[last] += " " + line.strip()
    return found
