"""Methods: the losses with the weights of their sources, made by name."""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import methods
from jaxkd.models import Outputs

PROGRESS = methods.Progress(jnp.ones((), jnp.int32), 240)
LOSSES = np.load(Path(__file__).parents[1] / "fixtures" / "losses.npz")


def outputs(name: str) -> Outputs:
    return Outputs(jnp.asarray(LOSSES[f"b8_k10/{name}"], jnp.float32), {})


@pytest.mark.parametrize(
    ("name", "total"),
    [("kd", "total_kd_r0.1_b0.9_T4"), ("lskd", "total_lskd_r0.1_b9_T2"), ("atkd", "total_atkd_r0.1_b9")],
)
def test_totals_with_the_default_weights_are_the_authors(name: str, total: str) -> None:
    method = methods.create(name)
    labels = jnp.asarray(LOSSES["b8_k10/labels"])
    loss, metrics = method.apply({}, outputs("z_s"), outputs("z_t"), labels, PROGRESS)
    assert loss.shape == metrics["temperature"].shape == metrics["correlation"].shape == (8,)
    whole = method.ce_weight * LOSSES["b8_k10/ce/loss_f32"] + loss.mean()
    np.testing.assert_allclose(whole, LOSSES[f"b8_k10/{total}/loss_f32"], rtol=2e-5)


@pytest.mark.parametrize("name", ["kd", "atkd"])
def test_every_tracing_gives_the_same_program(name: str) -> None:
    """Or else the cache of compiled programs would not find it again."""
    method = methods.create(name)
    s, t, labels = outputs("z_s"), outputs("z_t"), jnp.asarray(LOSSES["b8_k10/labels"])

    def program() -> str:
        return jax.jit(lambda s, t: method.apply({}, s, t, labels, PROGRESS)).lower(s, t).as_text()

    assert program() == program()


def test_the_reported_temperature_is_the_one_that_was_used() -> None:
    labels = jnp.asarray(LOSSES["b8_k10/labels"])
    for name, options, key in (
        ("atkd", {}, "atkd_T_both_f32"),
        ("atkd", {"temperature": "max_logit_teacher"}, "atkd_T_teacher_f32"),
    ):
        _, metrics = methods.create(name, **options).apply(
            {}, outputs("z_s"), outputs("z_t"), labels, PROGRESS
        )
        np.testing.assert_allclose(metrics["temperature"], LOSSES[f"b8_k10/{key}"][:, 0], rtol=1e-6)


def test_methods_are_flax_modules_without_parameters_of_their_own() -> None:
    for name in methods.names():
        method = methods.create(name)
        assert isinstance(method, nn.Module)
        labels = jnp.zeros(8, jnp.int32)
        assert not method.init(jax.random.key(0), outputs("z_s"), outputs("z_t"), labels, PROGRESS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dkdd", {}, 'unknown method "dkdd". Accepted: kd, lskd, atkd'),
        (
            "kd",
            {"temperature": "hot"},
            "temperature must be a positive number, max_logit or max_logit_teacher",
        ),
        ("kd", {"temperature": 0}, "got 0"),
        ("kd", {"temperature": float("nan")}, "got nan"),
        ("kd", {"heat": 3}, 'method "kd" cannot take .*heat'),
    ],
)
def test_bad_choices_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.create(name, **options)
