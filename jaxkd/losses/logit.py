"""Losses on the logits of each example separately.

`jaxkd.losses` documents their shared arguments.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import _classes
from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd._classes import AxisName
from jaxkd.losses._chunks import cut
from jaxkd.losses._inputs import Pair, prepare


def kd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    chunk_size: int | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Knowledge distillation: the KL divergence between softened teacher and student, times T squared.

    `L_i = T_i^2 sum_k p_ik (log p_ik - log q_ik)`.  With `standardize=True` this is logit standardisation
    (LSKD); with `temperature=jaxkd.temperature.max_logit` as well, it is the adaptive temperature's loss,
    which is close to one minus the correlation of the two.

    Args:
      chunk_size: number of examples per chunk, or None for all at once; with sharded examples, over all
        devices.  For logits of hundreds of megabytes on a CPU: temporary memory is a few megabytes (8
        examples of 32,000 classes) instead of several times the logits.  The gradient computes each chunk
        twice: no slower for the plain loss, a little slower for the adaptive one.

    Raises:
      ValueError: the chunk size is below 1.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses, temperature
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.kd(student, teacher, temperature=4.0).mean():.3f}")
    0.794
    >>> adaptive = losses.kd(student, teacher, temperature=temperature.max_logit, standardize=True)
    >>> print(f"{adaptive.mean():.3f}")
    1.322

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2; Sun et al. 2024 (arXiv 2403.01427) for z-scores;
    Matsuyama et al. 2025 (arXiv 2503.09030) for the adaptive temperature.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    if chunk_size is None:
        return _kd(x, temperature, standardize)
    return _by_chunks(x, temperature, standardize, chunk_size)


def _kd(x: Pair, temperature: _temperature.Temperature, standardize: bool) -> jax.Array:
    tau = (x.standardized() if standardize else x).temperature(temperature, standardize)
    return x.masked(tau[..., 0] ** 2 * x.divergence(tau, tau, standardize=standardize))


def _by_chunks(
    x: Pair, temperature: _temperature.Temperature, standardize: bool, chunk_size: int
) -> jax.Array:
    plan = cut(x.student, x.student.shape[:-1], chunk_size)
    # A number or an array may carry a gradient, and an array has one row per example: it is chunked too.
    tau = None if callable(temperature) else x.temperature(temperature)

    def of_chunk(rows: tuple) -> jax.Array:
        tau, arrays = rows
        rule = temperature if tau is None else lambda *_, **__: tau
        return _kd(Pair(**arrays, axis_name=x.axis_name), rule, standardize)

    arrays = {name: value for name, value in x._asdict().items() if name != "axis_name"}
    rows = jax.tree.map(lambda a: plan.split(a, fill=1), (tau, arrays))
    # A chunk stores nothing for the backward pass.
    forgetful = jax.checkpoint(of_chunk, prevent_cse=False)
    return plan.join(jax.lax.map(forgetful, rows))


def reverse_kl(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Reverse KL divergence, from softened student to softened teacher, times T squared.

    `L_i = T_i^2 sum_k q_ik (log q_ik - log p_ik)`.  It is mode-seeking: the student avoids classes with low
    teacher probability, while `kd` covers all classes with high teacher probability.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.reverse_kl(student, teacher).mean():.3f}")
    0.758

    Source: Gu et al. 2024 (arXiv 2306.08543), section 2, for sequences; here for each position separately.
    """
    x, tau = softened(prepare(student, teacher, axis, where, axis_name), temperature, standardize)
    log_p, log_q = x.log_softmax()
    log_p = x.infinite_where_excluded(log_p)
    return x.masked(tau**2 * x.kl(log_q, log_p))


def jensen_shannon(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    teacher_weight: float = 0.5,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Jensen-Shannon divergence of softened teacher and student, times T squared.

    `L_i = T_i^2 [w KL(p_i || m_i) + (1 - w) KL(q_i || m_i)]`, with `m = w p + (1 - w) q` and w the teacher's
    weight.  Without the factor T^2 it is bounded, by log 2 for w = 1/2.

    Args:
      teacher_weight: w, between 0 and 1, exclusive (at the ends the divergence is 0).

    Raises:
      ValueError: the weight is outside (0, 1).

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.jensen_shannon(student, teacher).mean():.3f}")
    0.193

    Source: Lin 1991, "Divergence measures based on the Shannon entropy", Eq. 4.1; Agarwal et al. 2024
    (arXiv 2306.13649), Eq. 1, for distillation.
    """
    w = teacher_weight
    if not 0 < w < 1:
        raise ValueError(
            f"teacher_weight must lie between 0 and 1, both excluded, got {w}; "
            "at the ends the loss is 0: take kd or reverse_kl there, as GKD does"
        )
    x, tau = softened(prepare(student, teacher, axis, where, axis_name), temperature, standardize)
    log_p, log_q = x.log_softmax()
    # log m from the larger of the two: exact at p = q, and without overflow for distant logits.
    difference = log_q - log_p
    other_weight = jnp.where(difference > 0, w, 1 - w)
    log_m = jnp.maximum(log_p, log_q) + jnp.log1p(other_weight * jnp.expm1(-jnp.abs(difference)))
    return x.masked(tau**2 * (w * x.kl(log_p, log_m) + (1 - w) * x.kl(log_q, log_m)))


def alpha_beta(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Alpha-beta divergence of softened teacher and student: a family with KL in both directions at its ends.

    `L_i = -1/(a b) sum_k [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]`, a and b the two options.  It is
    KL(p || q) for (1, 0), KL(q || p) for (0, 1), and 4 times the squared Hellinger distance for (1/2, 1/2).
    As in the source there is no factor T^2.

    Args:
      alpha: a, at least 0; larger values give more weight to classes with high teacher probability.
      beta: b, at least 0; larger values give more weight to classes with high student probability.

    Raises:
      ValueError: an option is negative, or both are 0.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.alpha_beta(student, teacher, temperature=1.0)[0]:.3f}")
    0.725

    Source: Wang et al. 2025, "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge
    Distillation via alpha-beta-Divergence" (ICML), and the authors' code; its default for language models is
    (0.2, 0.7).
    """
    a, b = alpha, beta
    if not (a >= 0 and b >= 0 and a + b > 0):
        raise ValueError(f"alpha and beta must be at least 0, and not both 0, got {a} and {b}")
    x, _ = softened(prepare(student, teacher, axis, where, axis_name), temperature, standardize)
    log_p, log_q = x.log_softmax()
    log_q = jnp.where(jnp.isneginf(log_q), jnp.nan, log_q)
    if a == 0:
        log_p = x.infinite_where_excluded(log_p)
    if a == 0 or b == 0:
        first, second = (log_p, log_q) if b == 0 else (log_q, log_p)
        c = a + b
        terms = jnp.exp(c * first) * (c * (first - second) - 1) + jnp.exp(c * second)
        return x.masked(x.total(terms) / c**2)
    # From the larger of the two: exact at p = q, and without overflow for distant logits.
    power = jnp.exp((a + b) * jnp.maximum(log_p, log_q))
    distance = -jnp.abs(log_q - log_p)
    of_smaller = jnp.where(log_q > log_p, a, b)
    terms = power * (of_smaller / (a + b) * jnp.expm1((a + b) * distance) - jnp.expm1(of_smaller * distance))
    return x.masked(x.total(terms) / (a * b))


def soft_cross_entropy(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Cross-entropy with the softened teacher as target, times T squared.

    `L_i = -T_i^2 sum_k p_ik log q_ik`: `kd` plus `T_i^2` times the teacher's entropy.  The gradient is that
    of `kd` unless the temperature depends on the student with a gradient.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.soft_cross_entropy(student, teacher, temperature=1.0).mean():.3f}")
    1.772

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    x, tau = softened(prepare(student, teacher, axis, where, axis_name), temperature, standardize)
    log_p, log_q = x.log_softmax()
    return x.masked(-(tau**2) * x.total(jnp.exp(log_p) * log_q))


def normkd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    scale: float = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """NormKD: KL divergence with temperatures proportional to each network's standard deviation.

    `L_i = T_i^2 KL(softmax(t_i / T_i) || softmax(s_i / T'_i))`, with `T_i = scale * std(t_i)` and
    `T'_i = scale * std(s_i)`; the gradient flows through T', as in the source.  This is `kd` on z-scores at
    temperature `scale`, with each example weighted by the variance of its teacher logits; so there is no
    `standardize` option.  Constant logits get temperature 1.  The teacher's standard deviation is over the
    classes that it does not exclude with -inf.

    Args:
      scale: the temperature of logits with a standard deviation of 1; positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.normkd(student, teacher).mean():.3f}")
    0.442

    Source: Chi et al. 2023 (arXiv 2308.00520), the authors' code.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    tau_student, tau_teacher = norm_temperatures(x, scale)
    return x.masked(tau_teacher[..., 0] ** 2 * x.divergence(tau_student, tau_teacher))


def dtkd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    alpha: float = 3.0,
    beta: float = 1.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """DTKD: KL divergence with a temperature for each network, in the ratio of their largest logits.

    `L_i = alpha T_i T'_i KL(softmax(t_i / T_i) || softmax(s_i / T'_i)) + beta kd_i(T)`, where T_i and T'_i
    are `jaxkd.temperature.max_ratio` with the reference T: they make the largest scaled logits equal.  If a
    largest logit is not positive, both temperatures are the reference.

    Args:
      temperature: the reference T, in the common forms.
      alpha: weight of the term with two temperatures.
      beta: weight of the term with one temperature.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.dtkd(student, teacher).mean():.3f}")
    3.177

    Source: Wei and Bai 2024 (arXiv 2404.12711), as in public code of the method.  The source multiplies the
    loss by min(epoch / 20, 1), which is left to the caller.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    x = x.standardized() if standardize else x
    x = x.without_infinities()  # both temperatures have a gradient, in which infinite logits would be NaN
    reference = x.temperature(temperature, standardize)
    tau_teacher, tau_student = (
        reference
        * _temperature.max_ratio(
            x.student, x.teacher, of=of, reference=1.0, where=x.classes, axis_name=x.axis_name
        )
        for of in ("teacher", "student")
    )
    own = (tau_teacher * tau_student)[..., 0] * x.divergence(tau_student, tau_teacher)
    shared = reference[..., 0] ** 2 * x.divergence(reference, reference)
    return x.masked(alpha * own + beta * shared)


def ttm(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    exponent: ArrayLike = 1.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """TTM: KL divergence at temperature 1 from the teacher's probabilities, raised to a power.

    `L_i = KL(r_i || softmax(s_i))`, with `r = p^l / sum_k p_k^l`, `p = softmax(t)` and l the exponent.  The
    transform is a temperature 1 / l on the teacher only; there is no factor T^2 and, since the student has
    no temperature, no `temperature` option.

    Args:
      exponent: l, a positive number or an array that broadcasts to `[..., 1]`; below 1 it softens.  The
        source's default, 1, is plain KL at temperature 1; its examples use 0.1 and 0.2.

    Raises:
      TypeError: the exponent is a rule.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.ttm(student, teacher, exponent=0.1).mean():.3f}")
    0.344

    Source: Zheng and Yang 2024 (arXiv 2402.11148), section 3, and the authors' code.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    log_r, log_q = x._replace(teacher=_exponent(exponent, x) * x.teacher).log_softmax()
    return x.masked(x.kl(log_r, log_q))


def wttm(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    exponent: ArrayLike = 1.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """WTTM: TTM with a weight for each example, larger for a less certain teacher.

    `L_i = U_i KL(r_i || softmax(s_i))`, with r, p and l as in `ttm` and `U = sum_k p_k^l`, which is between 1
    (a certain teacher) and K^(1 - l) (a uniform one) for l below 1.

    Args:
      exponent: l, as in `ttm`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.wttm(student, teacher, exponent=0.1).mean():.3f}")
    0.915

    Source: Zheng and Yang 2024 (arXiv 2402.11148), section 4, and the authors' code.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    power = _exponent(exponent, x)
    log_r, log_q = x._replace(teacher=power * x.teacher).log_softmax()
    log_powers = power * _logits.log_softmax(x.teacher, x.classes, axis_name=x.axis_name)
    if x.classes is not None:
        log_powers = jnp.where(x.classes, log_powers, _logits.MASKED_LOGIT)
    return x.masked(jnp.exp(_classes.log_sum_exp(log_powers, x.axis_name)) * x.kl(log_r, log_q))


def entropy_weights(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 3.0,
    scale: float = 100.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """EA-KD's weight of each example: large if the softened teacher is uncertain, and the student too.

    `w_i = (H_i + H_i H'_i / c) / 2`, with H and H' the entropies of p and q, in nats.  No gradient flows
    through it.  Multiply any loss by it; weights of examples are given to that loss, as this one only masks.

    Args:
      scale: c, positive; the source's constant for 100 classes.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> weights = losses.entropy_weights(student, teacher)
    >>> print(f"{weights[0]:.3f} {(weights * losses.kd(student, teacher))[0]:.3f}")
    0.549 0.436

    Source: Su et al. 2023, EA-KD (arXiv 2311.13621), the authors' code.
    """
    _logits.positive("scale", scale)
    x, _ = softened(prepare(student, teacher, axis, where, axis_name), temperature, False)
    of_teacher, of_student = (-x.total(jnp.exp(log_p) * log_p) for log_p in x.log_softmax())
    weights = x._replace(weights=None).masked((of_teacher + of_teacher * of_student / scale) / 2)
    return jax.lax.stop_gradient(weights)


def mse(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    over_classes: Literal["mean", "sum"] = "mean",
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Mean squared difference of the raw logits.

    `L_i = mean_k (s_ik - t_ik)^2`, in squared logit units.  The source uses it alone, without cross-entropy.
    On z-scores it would be twice `correlation`, so it has no `standardize` option.

    Args:
      over_classes: "mean" (the source's code), or "sum", K times as much.

    Raises:
      ValueError: `over_classes` is unknown.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
    >>> print(losses.mse(student, teacher, over_classes="sum"))
    [8.]

    Source: Kim et al. 2021 (arXiv 2105.08919), section 3.3, and the authors' code.
    """
    if over_classes not in ("mean", "sum"):
        raise ValueError(f'over_classes must be "mean" or "sum", got {over_classes!r}')
    x = prepare(student, teacher, axis, where, axis_name)
    total = x.total((x.student - x.teacher) ** 2)
    return x.masked(total / x.num_classes() if over_classes == "mean" else total)


def correlation(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """One minus the correlation of the logits, times (K-1)/K: the limit of `kd` on z-scores for large T.

    `L_i = (K-1)/K (1 - rho_i)`, between 0 and 2, with rho the Pearson correlation over the classes.  It is
    computed as `sum_k (z_ik - z'_ik)^2 / (2K)` with the z-scores of both, which is equivalent and exactly 0
    for equal inputs.  `kd` approaches it as `kd(T) = correlation + c / T`, with c constant for the two
    vectors.  Constant logits have z = 0, so the loss is (K-1)/(2K) with a gradient of 0.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
    >>> print(f"{losses.correlation(student, teacher).mean():.4f}")  # rho = -1
    1.3333

    Source: the limit is ours; Matsuyama et al. 2025 (arXiv 2503.09030) state the convergence of the KL to a
    correlation.  Cf. Huang et al. 2022 (arXiv 2205.10536): their `dist` correlates probabilities.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    z = x.standardized(eps=0.0)
    return x.masked(x.total((z.student - z.teacher) ** 2) / (2 * x.num_classes()))


def softened(x: Pair, temperature: _temperature.Temperature, standardize: bool) -> tuple[Pair, jax.Array]:
    """Logits (z-scores if asked) over their temperature, and the temperature, `[...]`."""
    x = x.standardized() if standardize else x
    tau = x.temperature(temperature, standardize)
    return x.over(tau, tau), tau[..., 0]


def norm_temperatures(x: Pair, scale: float) -> tuple[jax.Array, jax.Array]:
    """NormKD's temperatures of student and teacher, `[..., 1]`."""
    rule = functools.partial(_temperature.standard_deviation, scale=scale, axis_name=x.axis_name)
    possible = ~jnp.isneginf(x.teacher)
    possible = possible if x.classes is None else possible & x.classes
    return (
        rule(x.student, x.teacher, of="student", where=x.classes),
        rule(x.student, x.teacher, of="teacher", where=possible),
    )


def _exponent(exponent: ArrayLike, x: Pair) -> jax.Array:
    if callable(exponent):
        raise TypeError(
            "exponent must be a number or an array, got a rule; a temperature T is the exponent 1 / T"
        )
    return _logits.per_example("exponent", exponent, x.student)
