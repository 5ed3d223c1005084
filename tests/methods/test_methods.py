"""Methods by name: the losses with the weights of their sources, equal to the authors' totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import relative

from jaxkd import losses, methods, temperature
from jaxkd.metrics import numbers
from jaxkd.models import Outputs

FIXTURES = Path(__file__).parents[1] / "fixtures"
LOSSES = np.load(FIXTURES / "losses.npz")
FEATURES = np.load(FIXTURES / "features.npz")


def inputs(epoch: int = 1, dtype: Any = jnp.float32) -> methods.Inputs:
    def views(network: str) -> dict[str, Outputs]:
        stored = {"main": f"b8_k10/{network}", "strong": f"b8_k10/{network}_strong"}
        return {view: Outputs(jnp.asarray(LOSSES[key], dtype), {}) for view, key in stored.items()}

    return methods.Inputs(
        student=views("z_s"),
        teacher=views("z_t"),
        labels=jnp.asarray(LOSSES["b8_k10/labels"], jnp.int32),
        ids=jnp.arange(8),
        where=jnp.ones(8, bool),
        epoch=jnp.int32(epoch),
        num_epochs=240,
    )


def terms(name: str, epoch: int = 1, **options: Any) -> methods.Terms:
    method = methods.create(name, **options)
    variables = method.init(jax.random.key(0), inputs(epoch))
    result: Any = method.apply(variables, inputs(epoch))
    return result


def total(made: methods.Terms) -> float:
    return float(sum(weight * jnp.mean(values) for values, weight in made.losses.values()))


# The authors' whole losses: method, epoch, options, the fixture's name.
TOTALS: list[tuple[str, int, dict[str, Any], str]] = [
    ("kd", 1, {}, "total_kd_r0.1_b0.9_T4"),
    ("lskd", 1, {}, "total_lskd_r0.1_b9_T2"),
    ("atkd", 1, {}, "total_atkd_r0.1_b9"),
    ("normkd", 1, {}, "total_normkd_r0.1_b0.9"),
    ("normdkd", 1, {"alpha": 7.0, "beta": 2.0}, "total_normdkd_a7_b2_ep1"),
    ("normdkd", 20, {"alpha": 7.0, "beta": 2.0}, "total_normdkd_a7_b2_ep20"),
    ("dtkd", 1, {}, "dtkd_a3_b1_ce1_T4_ep1"),
    ("dtkd", 20, {}, "dtkd_a3_b1_ce1_T4_ep20"),
    ("mlkd", 1, {}, "total_mlkd_T4_r0.1_b0.9"),
    (
        "mlkd",
        1,
        {"weight": 9.0, "temperature": 2.0, "standardize": True, "standardize_grams": False},
        "total_mlkd_lskd_T2_r0.1_b9",
    ),
    ("atkd_mlkd", 1, {}, "total_atkd_mlkd_r0.1_b9"),
]


@pytest.mark.parametrize(("name", "epoch", "options", "key"), TOTALS)
def test_totals_are_the_authors(
    name: str, epoch: int, options: dict, key: str, double: None, off: Callable
) -> None:
    """Value, and gradient of the student's logits of each view."""
    method, x = methods.create(name, **options), inputs(epoch, jnp.float64)

    def loss(logits: dict[str, jax.Array]) -> Any:
        student = {view: Outputs(own, {}) for view, own in logits.items()}
        made: Any = method.apply({}, dataclasses.replace(x, student=student))
        return sum(weight * jnp.mean(values) for values, weight in made.losses.values())

    run = jax.jit(jax.value_and_grad(loss))
    value, gradient = run({view: seen.logits for view, seen in x.student.items()})
    stored, place = (
        (LOSSES, f"b8_k10/{key}")
        if f"b8_k10/{key}/loss_f64" in LOSSES
        else (FEATURES, f"logits/b8_k10/{key}")
    )
    off(name, "value", relative(value, stored[f"{place}/loss_f64"]), 1e-7)
    kinds = {"main": ("grad", "grad_f64", "grad_weak"), "strong": ("grad_strong",)}
    for view in method.views:
        expected = next(stored[f"{place}/{kind}"] for kind in kinds[view] if f"{place}/{kind}" in stored)
        off(name, "gradient", relative(gradient[view], expected), 1e-6)


@pytest.mark.parametrize(
    ("name", "epoch", "options", "key"),
    [
        ("dkd", 1, {}, "dkd_a1_b8_T4_ep1"),
        ("dkd", 20, {"beta": 2.0}, "dkd_a1_b2_T4_ep20"),
        ("dkd", 5, {"temperature": "max_logit", "standardize": True}, "atkd_dkd_a1_b8_ep5"),
        ("atkd_dkd", 5, {"weight": 1.0}, "atkd_dkd_a1_b8_ep5"),
        ("ttm", 1, {"weight": 1.0}, "ttm_l0.1"),
        ("wttm", 1, {"weight": 1.0}, "wttm_l0.2"),
        ("dist", 1, {}, "dist_b1_g1_tau4"),
        ("mse", 1, {}, "kim_mse_mean"),
    ],
)
def test_terms_are_the_authors(name: str, epoch: int, options: dict, key: str) -> None:
    values, weight = terms(name, epoch, **options).losses["kd"]
    np.testing.assert_allclose(weight * jnp.mean(values), LOSSES[f"b8_k10/{key}/loss_f32"], rtol=2e-5)


def test_options_may_be_arrays_of_one_number_and_nothing_else() -> None:
    assert methods.create("kd", temperature=jnp.asarray(4.0)) == methods.create("kd", temperature=4.0)
    for options, message in (
        (
            {"temperature": None},
            "temperature must be a positive number, max_logit or max_logit_teacher, got None",
        ),
        ({"temperature": losses.kd}, "temperature must be a positive number, max_logit or"),
        ({"weight": None}, "weight must be a number, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            methods.create("kd", **options)


def test_ctkd_begins_at_its_temperature_and_is_reversed() -> None:
    method = methods.create("ctkd")
    variables = method.init(jax.random.key(0), inputs())
    made: Any = method.apply(variables, inputs())
    assert numbers(dict(made.metrics))["temperature"] == pytest.approx(15.6212, rel=1e-4)

    def loss(variables: Any, epoch: int) -> jax.Array:
        result: Any = method.apply(variables, inputs(epoch))
        return jnp.mean(result.losses["kd"][0])

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    early, late = (gradient(variables, epoch)["params"]["theta"] for epoch in (5, 10))
    assert float(early / late) == pytest.approx(0.5, rel=1e-4)  # lambda -0.5 and -1
    raised = {"params": {"theta": variables["params"]["theta"] - 0.1 * jnp.sign(late)}}
    assert loss(raised, 10) > loss(variables, 10)  # descent on theta raises the loss


@pytest.mark.parametrize("name", ["kd", "atkd"])
def test_every_tracing_gives_the_same_program(name: str) -> None:
    """Or else the cache of compiled programs would not find it again."""
    method = methods.create(name)

    def program() -> str:
        return jax.jit(lambda x: method.apply({}, x)).lower(inputs()).as_text()

    assert program() == program()


@pytest.mark.parametrize(
    ("options", "key"),
    [({}, "atkd_T_both_f32"), ({"temperature": "max_logit_teacher"}, "atkd_T_teacher_f32")],
)
def test_the_reported_temperature_is_the_one_that_was_used(options: dict, key: str) -> None:
    metric: Any = terms("atkd", **options).metrics["temperature"]
    expected = LOSSES[f"b8_k10/{key}"][:, 0]
    assert metric.compute()[""] == pytest.approx(expected.mean(), rel=1e-6)
    assert metric.quantile(1.0) == pytest.approx(expected.max(), rel=0.01)


def test_the_reported_temperature_of_dtkd_is_the_teachers() -> None:
    metric: Any = terms("dtkd").metrics["temperature"]
    s, t = (inputs().student_logits, inputs().teacher_logits)
    expected = temperature.max_ratio(s, t, of="teacher", reference=4.0)
    assert metric.compute()[""] == pytest.approx(float(expected.mean()), rel=1e-6)
    assert metric.quantile(1.0) > metric.quantile(0.0)


def test_a_method_knows_its_name_and_options() -> None:
    for name in methods.names():
        method = methods.create(name)
        assert methods.title(method) == name
        assert methods.options(method) == {key: o.default for key, o in methods.accepted(name).items()}
        assert hash(method) == hash(methods.create(name))
        assert methods.summary(name)
    changed = methods.create("dkd", beta=2.0)
    assert methods.title(changed) == "dkd"
    assert methods.options(changed)["beta"] == 2.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dkdd", {}, 'unknown method "dkdd"; did you mean "dkd"'),
        ("kd", {"temperature": "hot"}, "temperature must be a positive number, max_logit or"),
        ("kd", {"temperature": 0}, "got 0"),
        ("kd", {"temperature": float("nan")}, "got nan"),
        ("kd", {"standardize": "false"}, "standardize must be true or false, got 'false'"),
        ("kd", {"weight": "9"}, "weight must be a number, got '9'"),
        ("kd", {"temperature": True}, "temperature must be a number or text, got True"),
        ("dkd", {"warmup_epochs": np.float32(2.5)}, "warmup_epochs must be a whole number, got 2.5"),
        ("dkd", {"warmup_epochs": 2.5}, "warmup_epochs must be a whole number, got 2.5"),
        ("kd+dist", {"kd_weight": "9"}, "kd_weight must be a number, got '9'"),
        ("kd", {"heat": 3}, "method kd has no option heat; it has weight, ce_weight"),
        ("ttm", {"temperature": 3.0}, "method ttm has no option temperature; it has .*exponent"),
        ("kd", {"weight": -1.0}, "weight must be at least 0 and finite, got -1"),
        ("kd", {"weight": 0.0, "ce_weight": 0.0}, "both 0: there is nothing to learn"),
    ],
)
def test_bad_choices_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.create(name, **options)


@pytest.mark.parametrize("name", sorted(set(methods.names()) - {"labels"}))
def test_numbers_that_mean_nothing_are_refused(name: str) -> None:
    """Every numeric option of every method has a range, and says so."""
    for option, default in methods.options(methods.create(name)).items():
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            for value in (-1, float("nan"), float("inf")):
                with pytest.raises(ValueError, match=f"{option} must be .* got {value}"):
                    methods.create(name, **{option: value})


def test_methods_add_up() -> None:
    """One cross-entropy, the terms of all, and the options of each under its name."""
    made = terms("kd+dist+ctkd_dkd", epoch=5, kd_weight=2.0, ctkd_dkd_beta=2.0)
    assert list(made.losses) == ["ce", "kd", "dist", "ctkd_dkd"]
    parts = [terms(name, 5, **own) for name, own in (("kd", {}), ("dist", {}), ("ctkd_dkd", {"beta": 2.0}))]
    own = [float(jnp.mean(part.losses["kd"][0]) * part.losses["kd"][1]) for part in parts]
    ce = float(jnp.mean(made.losses["ce"][0]))
    assert total(made) == pytest.approx(ce + own[0] * 2 / 0.9 + own[1] + own[2], rel=1e-5)
    sum_by_name = methods.create("kd+dist", kd_weight=2.0)
    assert methods.title(sum_by_name) == "kd+dist"
    assert methods.options(sum_by_name)["kd_weight"] == 2.0
    assert hash(sum_by_name) == hash(methods.create("kd+dist", kd_weight=2.0))
    assert methods.summary("kd+dist").count(" and ") >= 1
    two = methods.Sum((methods.create("mlkd"), methods.create("kd", ce_weight=0.0)))
    assert (two.views, two.reads) == (("main", "strong"), ("logits",))
    assert methods.create("crd+mlkd").methods[1].ce_weight == 1.0  # of the strong view, too
    assert "mekd" in methods.title(methods.create("kd+mekd"))  # which has no cross-entropy
    for name, message in (
        ("kd+kd", "the parts of a sum must differ"),
        ("kd+labels", '"labels" is in every sum'),
        ("kd+dits", 'unknown method "dits"; did you mean "dist"'),
    ):
        with pytest.raises(ValueError, match=message):
            methods.create(name)
    with pytest.raises(ValueError, match="has no option weight; it has ce_weight, kd_weight"):
        methods.create("kd+dist", weight=1.0)


def test_no_term_of_a_sum_gets_lost() -> None:
    def two(weight: float, name: str) -> methods.Method:
        return methods.from_function(
            lambda x: {"a": (x.student_logits[:, 0], weight), "b": (x.student_logits[:, 1], weight)},
            name=name,
        )

    parts = two(1.0, "one"), two(10.0, "other")
    made: Any = methods.Sum(parts).apply({}, inputs())
    assert list(made.losses) == ["a", "b", "other_a", "other_b"]
    alone: list[Any] = [part.apply({}, inputs()) for part in parts]
    assert total(made) == pytest.approx(total(alone[0]) + total(alone[1]))


def test_the_cross_entropy_of_a_sum_is_that_of_the_prediction() -> None:
    class Predicting(methods.Method):
        def __call__(self, x: methods.Inputs) -> methods.Terms:
            return methods.Terms({"ce": (x.student_logits[:, 0] * 0 + 7.0, 1.0)})

        def predict(self, student: Outputs) -> jax.Array:
            return -student.logits

    for order in (1, -1):
        parts = (methods.create("kd"), Predicting())[::order]
        made: Any = methods.Sum(parts).apply({}, inputs())
        assert float(made.losses["ce"][0][0]) == 7.0
        assert made.losses["ce"][1] == pytest.approx(1.1)


def test_functions_become_methods() -> None:
    def values(x: methods.Inputs) -> jax.Array:
        return x.student_logits[:, 0]

    for function, names in (
        (values, ["mine"]),
        (lambda x: {"a": values(x), "b": (values(x).mean(), 2.0)}, ["a", "b"]),
    ):
        made: Any = methods.from_function(function, name="mine").apply({}, inputs())
        assert list(made.losses) == names
    with pytest.raises(ValueError, match="a method's name may have only letters"):
        methods.from_function(values, name="my loss")
    with pytest.raises(TypeError, match="Method is abstract: a method defines __call__"):
        methods.Method().apply({}, inputs())
