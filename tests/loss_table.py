"""The one table that drives every generic property: a row for each loss and each way of using it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import reference as ref

from jaxkd import losses, temperature

# Losses on logits; the others have tests of their own.
OF_LOGITS = (
    set(losses.__all__)
    - set(losses.feature.__all__)
    - {
        "nce",
        "cross_entropy",
        "in_chunks",
        "kd_from_hidden",
        "entropy_weights",
        "repair",
        "wkd",
        "kd_top_k",
    }
)


class Row(NamedTuple):
    """How to call a loss, and what the mathematics promises of it.

    `call(student, teacher, labels, **options)`; `reference` the same in NumPy.  `detached`: the temperature
    carries no gradient though it depends on the student, so that finite differences must hold it fixed.
    """

    call: Callable[..., Any]
    reference: Callable[..., Any]
    per_example: bool = True
    zero: str | None = "exact"  # value at student == teacher: exactly 0, 0 up to rounding, or not 0
    shift: bool = True  # unchanged when a constant is added to all logits of an example
    scale: bool = False  # unchanged when an example's logits are multiplied by a positive number
    detached: bool = False
    excludes: bool = True  # finite where the teacher excludes a class with a logit of -inf
    gram: bool = False  # compares every example, or class, with every other one: a device has to see them all
    variant: bool = False  # other numbers through the same code as another row: no structural properties


def _plain(loss, **fixed):
    return lambda s, t, y, **options: loss(s, t, **(fixed | options))


def _labelled(loss, **fixed):
    return lambda s, t, y, **options: loss(s, t, y, **(fixed | options))


def _gdkd(**fixed):
    def call(s, t, y, axis=-1, **options):
        return losses.gdkd(s, t, top_k=min(2, s.shape[axis] - 1), axis=axis, **(fixed | options))

    return call


def _views(loss, **fixed):
    # The second view is a weaker contrast of the first; z-scores, and so adaptive temperatures, are the same.
    return lambda s, t, y, **options: loss(s, t, s * 0.75, t * 0.75, **(fixed | options))


ADAPTIVE: dict[str, Any] = {"temperature": temperature.max_logit, "standardize": True}
TEACHER: dict[str, Any] = {
    "temperature": functools.partial(temperature.max_logit, of="teacher"),
    "standardize": True,
}
DEVIATION: dict[str, Any] = {"temperature": temperature.standard_deviation}
ARRAY: dict[str, Any] = {"temperature": jnp.array(3.0)}


def _teacher_rule(s, t):
    return ref.MAX_LOGIT * abs(t).max(-1, keepdims=True)


def _deviation_rule(s, t):
    return 2 * t.std(-1, ddof=1, keepdims=True)


def _rows():
    z = {"scale": True, "detached": True, "excludes": False}
    for name in ("kd", "reverse_kl", "jensen_shannon", "soft_cross_entropy", "dist_inter"):
        loss, numpy = getattr(losses, name), getattr(ref, name)
        zero = {"soft_cross_entropy": None, "dist_inter": "close"}.get(name, "exact")
        yield (
            name,
            Row(_plain(loss), lambda s, t, y, f=numpy: f(s, t), zero=zero, excludes=name != "reverse_kl"),
        )
        yield (
            f"{name} adaptive",
            Row(
                _plain(loss, **ADAPTIVE),
                lambda s, t, y, f=numpy: f(s, t, ref.adaptive, True),
                zero=zero,
                variant=name != "kd",
                **z,
            ),
        )
    yield (
        "kd standardised",
        Row(
            _plain(losses.kd, temperature=2.0, standardize=True),
            lambda s, t, y: ref.kd(s, t, 2.0, True),
            scale=True,
            excludes=False,
            variant=True,
        ),
    )
    yield (
        "kd adaptive, teacher's maximum",
        Row(
            _plain(losses.kd, **TEACHER),
            lambda s, t, y: ref.kd(s, t, _teacher_rule, True),
            scale=True,
            excludes=False,
        ),
    )
    yield (
        "kd raw, teacher's deviation",
        Row(
            _plain(losses.kd, **DEVIATION),
            lambda s, t, y: ref.kd(s, t, _deviation_rule),
            excludes=False,
        ),
    )
    yield (
        "kd, chunks",
        Row(
            _plain(losses.kd, chunk_size=3, **ADAPTIVE),
            lambda s, t, y: ref.kd(s, t, ref.adaptive, True),
            variant=True,
            **z,
        ),
    )
    yield "kd, array", Row(_plain(losses.kd, **ARRAY), lambda s, t, y: ref.kd(s, t, 3.0), variant=True)
    for a, b in ((0.2, 0.7), (0.0, 1.0)):
        yield (
            f"alpha_beta {a}, {b}" if b != 0.7 else "alpha_beta",
            Row(
                _plain(losses.alpha_beta, alpha=a, beta=b),
                lambda s, t, y, a=a, b=b: ref.alpha_beta(s, t, a, b),
                excludes=a > 0,
                variant=a == 0,
            ),
        )
    yield (
        "jensen_shannon, uneven",
        Row(
            _plain(losses.jensen_shannon, teacher_weight=0.9),
            lambda s, t, y: ref.jensen_shannon(s, t, w=0.9),
            variant=True,
        ),
    )
    yield "normkd", Row(_plain(losses.normkd), lambda s, t, y: ref.normkd(s, t), zero="close")
    yield "dtkd", Row(_plain(losses.dtkd), lambda s, t, y: ref.dtkd(s, t), shift=False)
    yield (
        "dtkd standardised",
        Row(
            _plain(losses.dtkd, standardize=True),
            lambda s, t, y: ref.dtkd(ref.zscore(s), ref.zscore(t)),
            scale=True,
            excludes=False,
            variant=True,
        ),
    )
    for name in ("ttm", "wttm"):
        loss, numpy = getattr(losses, name), getattr(ref, name)
        yield name, Row(_plain(loss), lambda s, t, y, f=numpy: f(s, t))
        yield (
            f"{name}, exponent 0.2",
            Row(_plain(loss, exponent=0.2), lambda s, t, y, f=numpy: f(s, t, 0.2), zero=None, variant=True),
        )
    yield "mse", Row(_plain(losses.mse), lambda s, t, y: ref.mse(s, t), shift=False, excludes=False)
    yield (
        "correlation",
        Row(
            _plain(losses.correlation),
            lambda s, t, y: ref.correlation(s, t),
            zero="close",
            scale=True,
            excludes=False,
        ),
    )
    yield "dkd", Row(_labelled(losses.dkd), ref.dkd)
    yield (
        "dkd adaptive",
        Row(
            _labelled(losses.dkd, beta=2.0, **ADAPTIVE),
            lambda s, t, y: ref.dkd(s, t, y, ref.adaptive, True, beta=2.0),
            **z,
        ),
    )
    yield "gdkd", Row(_gdkd(), lambda s, t, y: ref.gdkd(s, t, top_k=2))
    yield (
        "gdkd adaptive",
        Row(
            _gdkd(**ADAPTIVE),
            lambda s, t, y: ref.gdkd(s, t, ref.adaptive, True, top_k=2),
            variant=True,
            **z,
        ),
    )
    yield "normdkd", Row(_labelled(losses.normdkd), ref.normdkd, zero="close")
    yield "rld", Row(_labelled(losses.rld), ref.rld, zero=None)
    yield (
        "rld adaptive",
        Row(
            _labelled(losses.rld, **ADAPTIVE),
            lambda s, t, y: ref.rld(s, t, y, ref.adaptive, True),
            **z | {"zero": None},
        ),
    )
    batch: dict[str, Any] = {"per_example": False}
    for name in ("dist", "dist_intra"):
        loss, numpy = getattr(losses, name), getattr(ref, name)
        yield name, Row(_plain(loss), lambda s, t, y, f=numpy: f(s, t), zero="close", **batch)
    yield (
        "dist adaptive",
        Row(
            _plain(losses.dist, **ADAPTIVE),
            lambda s, t, y: ref.dist(s, t, ref.adaptive, standardize=True),
            zero="close",
            variant=True,
            **batch,
            **z,
        ),
    )
    yield (
        "skd",
        Row(
            _plain(losses.skd), lambda s, t, y: ref.skd(s, t), shift=False, gram=True, excludes=False, **batch
        ),
    )
    yield (
        "skd adaptive",
        Row(
            _plain(losses.skd, **ADAPTIVE),
            lambda s, t, y: ref.skd(s, t, ref.adaptive, True),
            gram=True,
            variant=True,
            **batch,
            **z,
        ),
    )
    for name in ("class_correlation", "batch_correlation"):
        loss, numpy = getattr(losses, name), getattr(ref, name)
        yield name, Row(_plain(loss), lambda s, t, y, f=numpy: f(s, t), gram=True, **batch)
    for label, options, numpy_options, promises in (
        ("", {}, {}, {}),
        (" adaptive", ADAPTIVE, {"tau": ref.adaptive, "standardize": True}, z | {"zero": "close"}),
        (
            " adaptive, kd terms standardised",
            ADAPTIVE | {"standardize": "kd"},
            {"tau": ref.adaptive, "standardize": "kd"},
            {"detached": True, "zero": "close", "variant": True, "excludes": False},
        ),
        (", true mask", {"true_mask": True}, {"true_mask": True}, {"variant": True}),
    ):
        yield (
            f"mlkd{label}",
            Row(
                _views(losses.mlkd, **options),
                lambda s, t, y, o=numpy_options: ref.mlkd(s, t, s * 0.75, t * 0.75, **o),
                gram=True,
                **batch,
                **promises,
            ),
        )


ROWS: dict[str, Row] = dict(_rows())
STRUCTURAL = [name for name, row in ROWS.items() if not row.variant]
PER_EXAMPLE = [name for name, row in ROWS.items() if row.per_example]
