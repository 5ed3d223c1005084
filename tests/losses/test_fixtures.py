"""Every loss against the numbers of the authors' codes, value and gradient, in float32 and float64."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import relative

from jaxkd import losses, standardize, temperature

FIXTURES = np.load(Path(__file__).parents[1] / "fixtures" / "losses.npz")
NEWER = np.load(Path(__file__).parents[1] / "fixtures" / "features.npz")  # its gradients are of float64
B8 = "b8_k10/"
PRECISIONS = {"f32": (np.float32, 2e-5, 5e-6), "f64": (np.float64, 1e-7, 1e-8)}
TEACHER_ONLY = functools.partial(temperature.max_logit, of="teacher")

_mean = {
    "kd_T1": functools.partial(losses.kd, temperature=1.0),
    "kd_T2": functools.partial(losses.kd, temperature=2.0),
    "kd_T4": losses.kd,
    "lskd_T2": functools.partial(losses.kd, temperature=2.0, standardize=True),
    "lskd_T4": functools.partial(losses.kd, standardize=True),
    "lskd_official_T2": functools.partial(losses.kd, temperature=2.0, standardize=True),
    "atkd_kd": functools.partial(losses.kd, temperature=temperature.max_logit, standardize=True),
    "atkd_kd_teacheronly": functools.partial(losses.kd, temperature=TEACHER_ONLY, standardize=True),
    "ttm_l0.1": functools.partial(losses.ttm, exponent=0.1),
    "ttm_l0.2": functools.partial(losses.ttm, exponent=0.2),
    "ttm_l1": losses.ttm,
    "wttm_l0.1": functools.partial(losses.wttm, exponent=0.1),
    "wttm_l0.2": functools.partial(losses.wttm, exponent=0.2),
    "wttm_l1": losses.wttm,
    "dist_b1_g1_tau1": functools.partial(losses.dist, temperature=1.0),
    "dist_b1_g1_tau4": losses.dist,
    "dist_b2_g2_tau4": functools.partial(losses.dist, beta=2.0, gamma=2.0),
    "normkd_T2": losses.normkd,
    "kim_mse_mean": losses.mse,
    "kim_mse_sumclass": functools.partial(losses.mse, over_classes="sum"),
}
_decoupled = {
    "dkd_a1_b8_T4_ep1": (1 / 20, losses.dkd),
    "dkd_a1_b8_T4_ep20": (1, losses.dkd),
    "dkd_a1_b2_T4_ep1": (1 / 20, functools.partial(losses.dkd, beta=2.0)),
    "dkd_a1_b2_T4_ep20": (1, functools.partial(losses.dkd, beta=2.0)),
    "dkd_a1_b8_T2_ep20_lskd": (1, functools.partial(losses.dkd, temperature=2.0, standardize=True)),
    "atkd_dkd_a1_b8_ep20": (
        1,
        functools.partial(losses.dkd, temperature=temperature.max_logit, standardize=True),
    ),
    "atkd_dkd_a1_b8_ep5": (
        5 / 20,
        functools.partial(losses.dkd, temperature=temperature.max_logit, standardize=True),
    ),
    "normdkd_a1_b8_T2": (1, losses.normdkd),
    "rld_a1_b8_at1_T4": (1, losses.rld),
    "rld_a1_b4_at4_T4": (1, functools.partial(losses.rld, beta=4.0, confidence_temperature=4.0)),
    "rld_a9_b9_at2_T2_stand": (
        1,
        functools.partial(
            losses.rld, alpha=9.0, beta=9.0, temperature=2.0, confidence_temperature=2.0, standardize=True
        ),
    ),
}
_transport = {
    "wkd_l_T4_g1_lam0.05_it10": functools.partial(losses.wkd, weight=1.0),
    "wkd_l_T2_g30_lam0.05_it10": functools.partial(losses.wkd, temperature=2.0),
    "wkd_l_T4_g1_lam25_it30": functools.partial(losses.wkd, weight=1.0, regularizer=25.0, iterations=30),
}
_totals = {
    "total_kd_r0.1_b0.9_T4": (0.9, losses.kd),
    "total_lskd_r0.1_b9_T2": (9.0, functools.partial(losses.kd, temperature=2.0, standardize=True)),
    "total_atkd_r0.1_b9": (
        9.0,
        functools.partial(losses.kd, temperature=temperature.max_logit, standardize=True),
    ),
}
_two_views = {
    "mlkd_T4": (1.0, losses.mlkd),
    "mlkd_T2_lskdflag": (1.0, functools.partial(losses.mlkd, temperature=2.0, standardize=True)),
    "atkd_mlkd": (
        1.0,
        functools.partial(losses.mlkd, temperature=temperature.max_logit, standardize=True),
    ),
    "mlkd_official_T4_w1": (1.0, losses.mlkd),
    "mlkd_official_T4_w0.9": (0.9, losses.mlkd),
    "mlkd_lskdrepo_T2_w9_stand": (
        9.0,
        functools.partial(losses.mlkd, temperature=2.0, standardize="kd"),
    ),
}


def _cross_entropy(student, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(student), labels[:, None], axis=1))


def _cases():
    """Yields name -> scalar function of (student of the weak view, of the strong view)."""
    for name, loss in _mean.items():
        yield name, lambda w, s, x, loss=loss: jnp.mean(loss(w, x["z_t"]))
    for name, (factor, loss) in _decoupled.items():
        yield name, lambda w, s, x, f=factor, loss=loss: f * jnp.mean(loss(w, x["z_t"], x["labels"]))
    for name, loss in _transport.items():
        cost = NEWER[f"logits/{B8}wkd_cost"]
        yield name, lambda w, s, x, loss=loss, c=cost: jnp.mean(loss(w, x["z_t"], x["labels"], c))
    for name, (weight, loss) in _totals.items():
        yield (
            name,
            lambda w, s, x, b=weight, loss=loss: (
                0.1 * _cross_entropy(w, x["labels"]) + b * jnp.mean(loss(w, x["z_t"]))
            ),
        )
    for name, (weight, loss) in _two_views.items():
        yield name, lambda w, s, x, b=weight, loss=loss: b * loss(w, x["z_t"], s, x["z_t_strong"])


CASES = dict(_cases())
METHODS = ["kd", "lskd", "atkd", "ttm", "wttm", "dist", "normkd", "mse", "dkd", "atkd_dkd", "normdkd", "rld"]
METHODS += ["mlkd", "atkd_mlkd", "wkd"]


def method_of(case):
    """The method that a case is of, by its name."""
    named = case.removeprefix("total_").removeprefix("kim_")
    return max((name for name in METHODS if named.startswith(name)), key=len)


@functools.cache
def _results(precision):
    """Values and gradients of all cases, from one compilation."""
    dtype = PRECISIONS[precision][0]
    with jax.enable_x64(precision == "f64"):
        inputs = {k: FIXTURES[B8 + k] for k in ("z_s", "z_t", "z_s_strong", "z_t_strong", "labels")}
        inputs = {k: jnp.asarray(v if k == "labels" else v.astype(dtype)) for k, v in inputs.items()}

        @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def run(weak, strong):
            return {
                name: jax.value_and_grad(lambda w, s, case=case: case(w, s, inputs), argnums=(0, 1))(
                    weak, strong
                )
                for name, case in CASES.items()
            }

        return jax.device_get(run(inputs["z_s"], inputs["z_s_strong"]))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_source(name, precision, off):
    dtype, rtol, atol = PRECISIONS[precision]
    value, (weak, strong) = _results(precision)[name]
    assert value.dtype == dtype
    newer = name.startswith(("rld", "wkd"))
    expected_value = (
        NEWER[f"logits/{B8}{name}/loss_{precision}"] if newer else FIXTURES[f"{B8}{name}/loss_{precision}"]
    )
    expected = NEWER[f"logits/{B8}{name}/grad"] if newer else FIXTURES[f"{B8}{name}/grad_{precision}"]
    gradient = np.stack([weak, strong]) if expected.ndim == 3 else weak
    # The tolerances of fixtures/README.md; a gradient larger than 1 may be off in proportion.
    np.testing.assert_allclose(value, expected_value, rtol=rtol)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=atol * max(1.0, np.abs(expected).max()))
    if precision == "f64":
        off(method_of(name), "value", relative(value, expected_value), rtol)
        off(method_of(name), "gradient", relative(gradient, expected), 1e-6)


def test_every_logit_fixture_has_a_case():
    stored = {k.split("/")[1] for k in FIXTURES.files if k.startswith(B8) and k.endswith("loss_f64")}
    elsewhere = {k for k in stored if k.startswith("ctkd")} | {"ce", "hiT", "corr"}
    stored |= {
        k.split("/")[2]
        for k in NEWER.files
        if k.startswith(("logits/" + B8 + "rld", "logits/" + B8 + "wkd_l"))
    }
    assert stored - elsewhere == set(CASES)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("theta", "strength"), [(1, -1), (0.3, -0.5), (1, 0)])
def test_learned_temperature_is_that_of_the_source(theta, strength, precision, off):
    dtype, rtol, atol = PRECISIONS[precision]
    key = f"{B8}ctkd_theta{theta}_lam{strength}/"

    def loss(student, theta):
        tau = temperature.learned(theta, strength)
        return jnp.mean(losses.kd(student, teacher, temperature=tau)), tau

    with jax.enable_x64(precision == "f64"):
        student, teacher = (jnp.asarray(FIXTURES[B8 + k].astype(dtype)) for k in ("z_s", "z_t"))
        (value, tau), (of_student, of_theta) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            student, jnp.asarray([theta], dtype)
        )
        np.testing.assert_allclose(value, FIXTURES[f"{key}loss_{precision}"], rtol=rtol)
        np.testing.assert_allclose(tau, FIXTURES[f"{key}temp_{precision}"], rtol=1e-6)
        np.testing.assert_allclose(of_student, FIXTURES[f"{key}grad_{precision}"], rtol=0, atol=atol)
        np.testing.assert_allclose(of_theta, FIXTURES[f"{key}grad_theta_{precision}"], rtol=0, atol=atol)
    if precision == "f64":
        off("ctkd", "value", relative(value, FIXTURES[f"{key}loss_f64"]), rtol)
        off("ctkd", "gradient", relative(of_student, FIXTURES[f"{key}grad_f64"]), 1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_standardized_logits_and_temperatures_are_those_of_the_source(precision):
    dtype, rtol, _ = PRECISIONS[precision]
    with jax.enable_x64(precision == "f64"):
        student, teacher = (jnp.asarray(FIXTURES[B8 + k].astype(dtype)) for k in ("z_s", "z_t"))
        z_s, z_t = standardize(student), standardize(teacher)
        actual = {
            "std_s": z_s,
            "std_t": z_t,
            "atkd_T_both": temperature.max_logit(z_s, z_t),
            "atkd_T_teacher": temperature.max_logit(z_s, z_t, of="teacher"),
            "atkd_T_rawboth": temperature.max_logit(student, teacher),
        }
        for name, value in actual.items():
            expected = FIXTURES[f"{B8}{name}_{precision}"]
            # The source takes the square root of 3 in float32.
            np.testing.assert_allclose(
                value, expected, rtol=rtol, atol=1e-6 if dtype == np.float32 else 1e-12
            )


def test_edge_cases_agree_where_the_source_is_defined():
    """Rows: constant student, equal logits, two different one-hot rows, logits of 1e4."""
    for precision, (dtype, rtol, atol) in PRECISIONS.items():
        with jax.enable_x64(precision == "f64"):
            student, teacher = (jnp.asarray(FIXTURES[f"edge/{k}"].astype(dtype)) for k in ("z_s", "z_t"))
            for name, tau in (("atkd_kd", temperature.max_logit), ("lskd_T2", 2.0)):

                def loss(s, teacher=teacher, tau=tau):
                    return jnp.mean(losses.kd(s, teacher, temperature=tau, standardize=True))

                value, gradient = jax.value_and_grad(loss)(student)
                np.testing.assert_allclose(value, FIXTURES[f"edge/{name}/loss_{precision}"], rtol=rtol)
                expected = FIXTURES[f"edge/{name}/grad_{precision}"]
                np.testing.assert_allclose(gradient[1:], expected[1:], rtol=0, atol=atol)
                # The source's gradient at constant logits is of the size of 1 / eps; ours is 0.
                np.testing.assert_array_equal(gradient[0], 0)


def test_scheduled_temperature_follows_the_source():
    epochs, divergence = FIXTURES["dts/epochs_and_divergence"].T
    for name, adjust in (("adjust", True), ("noadjust", False)):
        with jax.enable_x64(True):
            tau, sequence = 4.0, []
            for epoch, d in zip(epochs, divergence, strict=True):
                tau = temperature.scheduled(tau, epoch / 100, d, adjust=adjust)
                sequence.append(float(tau))
        np.testing.assert_allclose(sequence, FIXTURES[f"dts/T_init4_min2_max4_E100_{name}"], rtol=1e-12)


def test_decay_schedules_follow_the_source():
    for name, rule in (("cosine", temperature.cosine_decay), ("linear", temperature.linear_decay)):
        with jax.enable_x64(True):
            actual = rule(jnp.arange(15))
        np.testing.assert_allclose(actual, FIXTURES[f"ctkd/{name}_decay_max0_min-1_loops10"], atol=1e-12)


@pytest.mark.parametrize("data", ["hiT", "corr"])
def test_kd_tends_to_the_correlation_with_its_first_order_term(data, off):
    """T^2 KL = limit + coefficient / T + O(1 / T^2)."""
    with jax.enable_x64(True):
        student = jnp.asarray(FIXTURES[B8 + ("z_s" if data == "hiT" else "corr/z_s")])
        teacher = jnp.asarray(FIXTURES[B8 + "z_t"])
        temperatures = FIXTURES[B8 + "hiT/T"]
        curve = jax.vmap(lambda t: jnp.mean(losses.kd(student, teacher, temperature=t, standardize=True)))(
            jnp.asarray(temperatures)
        )
        curve = np.asarray(curve)
        limit = float(jnp.mean(losses.correlation(student, teacher)))
    np.testing.assert_allclose(curve, FIXTURES[f"{B8}{data}/loss"], rtol=1e-7)
    off("correlation", "value", relative(limit, FIXTURES[f"{B8}{data}/limit_bessel"]), 1e-7)
    coefficient = FIXTURES[f"{B8}{data}/coef_1_over_T"]
    large = temperatures >= 8
    remainder = np.abs(curve - limit - coefficient / temperatures)[large]
    assert np.all(remainder * temperatures[large] ** 2 < 1.0)
    np.testing.assert_allclose((curve[-1] - limit) * temperatures[-1], coefficient, rtol=2e-2)
