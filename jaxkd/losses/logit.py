"""Losses on logits that look at one example at a time.

Every function takes student logits first, teacher logits second, hyper-parameters by keyword, and returns
one value per example; the caller reduces (the published numbers use the mean over the batch).  The
teacher's logits never receive a gradient.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd.losses import _blocks, _inputs


def kd(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Knowledge distillation: the KL divergence between softened teacher and student, times T squared.

    `L_i = T_i^2 sum_k p_ik (log p_ik - log q_ik)`, with `p = softmax(t / T)` and `q = softmax(s / T)`.  The
    factor T^2 keeps the size of the gradient independent of T; it is inside.  With `standardize=True` s and t
    are z-scores (logit standardisation), and with `temperature=jaxkd.temperature.max_logit` besides, this is
    the adaptive temperature's loss, which is close to one minus the correlation of the two.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape; no gradient flows into them.  With one axis more in front they are
        an ensemble of teachers.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, called with the
        logits that the softmax sees (after `standardize`), the classes on the last axis.  For an ensemble it
        is the largest of the temperatures that the rule gives for each teacher.
      standardize: whether to take z-scores of both first.
      ensemble: how several teachers are averaged: "probabilities", the mean of their softmaxes at the
        temperature, or "logits", the mean of their logits before anything else.
      axis: the class axis.
      where: optional boolean mask.  With the rank of the logits it must broadcast to them and masks classes
        (masked logits may be -inf); with one axis fewer it masks examples.  An example that is masked, or has
        no class left, has loss 0 and gradient 0.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError: logits that are not floating, a mask that is not boolean.
      ValueError: shapes that differ, fewer than two classes, a temperature that is not positive or does not
        fit, a mask that does not fit, a rule that `standardize` makes meaningless.

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
    x = _inputs.prepare(student, teacher, axis, where, ensemble)
    if x.classes is None and x.teacher.ndim == x.student.ndim:
        rows = _blocks.rows_per_block(x.student.shape, temperature)
        if rows:
            loss = functools.partial(_kd_of_rows, temperature=temperature, standardize=standardize)
            return _inputs.mask_examples(_blocks.by_blocks(loss, rows, x.student, x.teacher), x.examples)
    return _kd(x, temperature, standardize)


def _kd(x: _inputs.Inputs, temperature: _temperature.Temperature, standardize: bool) -> jax.Array:
    x, tau = _softened(x, temperature, standardize)
    log_p, log_q = _inputs.log_probabilities(x)
    return _inputs.mask_examples(_squared(tau) * _inputs.expectation(log_p, log_p - log_q), x.examples)


def _kd_of_rows(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: _temperature.Temperature,
    standardize: bool,
) -> jax.Array:
    return _kd(_inputs.Inputs(student, teacher, None, None), temperature, standardize)


def reverse_kl(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The KL divergence the other way round, from softened student to teacher, times T squared.

    `L_i = T_i^2 sum_k q_ik (log q_ik - log p_ik)`, with p and q as in `kd`.  It makes the student avoid what
    the teacher finds improbable, where `kd` makes it cover all that the teacher finds probable.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.
      standardize: whether to take z-scores of both first.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.reverse_kl(student, teacher).mean():.3f}")
    0.758

    Source: Gu et al. 2024 (arXiv 2306.08543), section 2, for sequences; here for each position by itself.
    """
    x, tau = soften(student, teacher, temperature, standardize, ensemble, axis, where)
    log_p, log_q = _inputs.log_probabilities(x)
    return _inputs.mask_examples(_squared(tau) * _inputs.expectation(log_q, log_q - log_p), x.examples)


def jensen_shannon(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    teacher_weight: float = 0.5,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Jensen-Shannon divergence of softened teacher and student, times T squared.

    `L_i = T_i^2 [w KL(p_i || m_i) + (1 - w) KL(q_i || m_i)]` with `m = w p + (1 - w) q`, p and q as in `kd`
    and w the teacher's weight.  Without the factor it is bounded, by log 2 for w = 1/2.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.
      standardize: whether to take z-scores of both first.
      teacher_weight: w, between 0 and 1, both excluded (there the divergence is 0).
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`; ValueError also for a weight outside (0, 1).

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.jensen_shannon(student, teacher).mean():.3f}")
    0.193

    Source: Lin 1991, "Divergence measures based on the Shannon entropy", Eq. 4.1; Agarwal et al. 2024
    (arXiv 2306.13649), Eq. 1, for distillation.
    """
    if not 0 < teacher_weight < 1:
        raise ValueError(
            f"teacher_weight must lie between 0 and 1, both excluded, got {teacher_weight}; "
            "kd and reverse_kl are what it tends to at the ends"
        )
    x, tau = soften(student, teacher, temperature, standardize, ensemble, axis, where)
    log_p, log_q = _inputs.log_probabilities(x)
    # log m from the larger of the two: exact at p = q, and without overflow for distant logits.
    difference = log_q - log_p
    other_weight = jnp.where(difference > 0, teacher_weight, 1 - teacher_weight)
    log_m = jnp.maximum(log_p, log_q) + jnp.log1p(other_weight * jnp.expm1(-jnp.abs(difference)))
    divergence = teacher_weight * _inputs.expectation(log_p, log_p - log_m)
    divergence += (1 - teacher_weight) * _inputs.expectation(log_q, log_q - log_m)
    return _inputs.mask_examples(_squared(tau) * divergence, x.examples)


def soft_cross_entropy(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy with the softened teacher as target, times T squared.

    `L_i = -T_i^2 sum_k p_ik log q_ik`, with p and q as in `kd`: that loss plus `T_i^2` times the teacher's
    entropy.  The gradient is that of `kd` unless the temperature depends on the student with a gradient.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.
      standardize: whether to take z-scores of both first.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.soft_cross_entropy(student, teacher, temperature=1.0).mean():.3f}")
    1.772

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    x, tau = soften(student, teacher, temperature, standardize, ensemble, axis, where)
    log_p, log_q = _inputs.log_probabilities(x)
    return _inputs.mask_examples(-_squared(tau) * _inputs.expectation(log_p, log_q), x.examples)


def normkd(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    scale: float = 2.0,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """NormKD: KL divergence with a temperature for each network, a multiple of its logits' deviation.

    `L_i = T_i^2 KL(softmax(t_i / T_i) || softmax(s_i / T'_i))`, with `T_i = scale * std(t_i)` and
    `T'_i = scale * std(s_i)`; the gradient flows through T', as in the source.  It equals `kd` on z-scores at
    temperature `scale`, each example weighted by the variance of its teacher's logits.  There is no
    `standardize` option, because dividing by the deviation is what this loss does.  Constant logits get
    temperature 1.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      scale: the temperature of logits with a standard deviation of 1; positive.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`; ValueError also for a scale that is not positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.normkd(student, teacher).mean():.3f}")
    0.442

    Source: Chi et al. 2023 (arXiv 2308.00520), the authors' code.
    """
    x = _inputs.prepare(student, teacher, axis, where, ensemble)
    x, tau = norm_scaled(x, scale)
    log_p, log_q = _inputs.log_probabilities(x)
    return _inputs.mask_examples(_squared(tau) * _inputs.expectation(log_p, log_p - log_q), x.examples)


def dtkd(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    alpha: float = 3.0,
    beta: float = 1.0,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """DTKD: KL divergence with a temperature for each network, in the ratio of their largest logits.

    `L_i = alpha T_i T'_i KL(softmax(t_i / T_i) || softmax(s_i / T'_i)) + beta kd_i(T)`, where T_i and T'_i
    are `jaxkd.temperature.max_ratio` with the reference T.  It tells the networks' overall sharpness apart
    from their opinion.  Where a largest logit is not positive, both temperatures are the reference.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      temperature: the reference T, a positive number, an array that broadcasts to `[..., 1]`, or a rule.
      standardize: whether to take z-scores of both first.
      alpha: weight of the term with two temperatures.
      beta: weight of the term with one.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.dtkd(student, teacher).mean():.3f}")
    3.177

    Source: Wei and Bai 2024 (arXiv 2404.12711), as in public code of the method.  The source multiplies the
    loss by min(epoch / 20, 1), which is left to the caller.
    """
    x = _inputs.prepare(student, teacher, axis, where, ensemble)
    if standardize:
        x = _inputs.standardize_both(x)
    reference = _inputs.resolve_temperature(temperature, x, standardize)
    # An ensemble has one largest logit: that of its mean logits, as for any one network.
    mean_teacher = jnp.mean(x.teacher, axis=0) if x.teacher.ndim > x.student.ndim else x.teacher
    tau_teacher, tau_student = (
        reference * _temperature.max_ratio(x.student, mean_teacher, of=of, reference=1.0, where=x.classes)
        for of in ("teacher", "student")
    )
    own = _inputs.scaled(x, tau_student, tau_teacher)
    log_p, log_q = _inputs.log_probabilities(own)
    loss = alpha * jnp.squeeze(tau_teacher * tau_student, -1) * _inputs.expectation(log_p, log_p - log_q)
    log_p, log_q = _inputs.log_probabilities(_inputs.scaled(x, reference, reference))
    loss += beta * _squared(reference) * _inputs.expectation(log_p, log_p - log_q)
    return _inputs.mask_examples(loss, x.examples)


def ttm(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    exponent: jax.typing.ArrayLike = 1.0,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """TTM: the student, at temperature 1, learns the teacher's probabilities raised to a power.

    `L_i = KL(r_i || softmax(s_i))`, with `r = p^l / sum_k p_k^l`, `p = softmax(t)` and l the exponent.  The
    transform is a temperature 1 / l on the teacher's side alone; there is no factor T^2 and, since the
    student has none, no `temperature` option.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      exponent: l, a positive number or an array that broadcasts to `[..., 1]`; below 1 it softens.  The
        source's default, 1, is plain KL at temperature 1; its examples use 0.1 and 0.2.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`; TypeError also for a rule as exponent, ValueError for one not positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.ttm(student, teacher, exponent=0.1).mean():.3f}")
    0.344

    Source: Zheng and Yang 2024 (arXiv 2402.11148), section 3, and the authors' code.
    """
    x, log_r, log_q, _ = _power_transform(student, teacher, exponent, ensemble, axis, where)
    return _inputs.mask_examples(_inputs.expectation(log_r, log_r - log_q), x.examples)


def wttm(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    exponent: jax.typing.ArrayLike = 1.0,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """WTTM: TTM with each example weighted by how soft its teacher is.

    `L_i = U_i KL(r_i || softmax(s_i))`, with r, p and l as in `ttm` and `U = sum_k p_k^l`, which lies between
    1 (a certain teacher) and K^(1 - l) (a uniform one) for l below 1.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      exponent: l, a positive number or an array that broadcasts to `[..., 1]`, as in `ttm`.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `ttm`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.wttm(student, teacher, exponent=0.1).mean():.3f}")
    0.915

    Source: Zheng and Yang 2024 (arXiv 2402.11148), section 4, and the authors' code.
    """
    x, log_r, log_q, weight = _power_transform(student, teacher, exponent, ensemble, axis, where)
    return _inputs.mask_examples(weight * _inputs.expectation(log_r, log_r - log_q), x.examples)


def mse(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    over_classes: Literal["mean", "sum"] = "mean",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Mean squared difference of the raw logits.

    `L_i = mean_k (s_ik - t_ik)^2`.  The source uses it alone, without cross-entropy.  An ensemble of teachers
    is averaged as logits; on z-scores it would be twice `correlation`, so it has no `standardize` option.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      over_classes: "mean" (the source's code), or "sum", K times as much.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in squared logit units; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`; ValueError also for another word in `over_classes`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
    >>> print(losses.mse(student, teacher, over_classes="sum"))
    [8.]

    Source: Kim et al. 2021 (arXiv 2105.08919), section 3.3, and the authors' code.
    """
    if over_classes not in ("mean", "sum"):
        raise ValueError(f'over_classes must be "mean" or "sum", got {over_classes!r}')
    x = _inputs.prepare(student, teacher, axis, where, "logits")
    total = jnp.sum((x.student - x.teacher) ** 2, axis=-1)
    return _inputs.mask_examples(total / _num_classes(x) if over_classes == "mean" else total, x.examples)


def correlation(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """One minus the correlation of the logits, times (K-1)/K: the limit of `kd` on z-scores for large T.

    `L_i = (K-1)/K (1 - rho_i)`, with rho the Pearson correlation over the classes.  It is computed as
    `sum_k (z_ik - z'_ik)^2 / (2K)` with the z-scores of both, which is the same and exactly 0 at equality.
    `kd` approaches it as `kd(T) = correlation + c / T`, c a constant of the two vectors.  Constant logits
    have z = 0, so that the loss is (K-1)/(2K) with a gradient of 0.  An ensemble of teachers is averaged as
    logits.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, between 0 and 2; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
    >>> print(f"{losses.correlation(student, teacher).mean():.4f}")  # rho = -1
    1.3333

    Source: the limit is ours; Matsuyama et al. 2025 (arXiv 2503.09030) state the convergence of the KL to a
    correlation.  Cf. Huang et al. 2022 (arXiv 2205.10536), whose `dist` correlates probabilities.
    """
    x = _inputs.prepare(student, teacher, axis, where, "logits")
    z_s = _logits.standardize(x.student, eps=0.0, where=x.classes)
    z_t = _logits.standardize(x.teacher, eps=0.0, where=x.classes)
    half_mean = jnp.sum((z_s - z_t) ** 2, axis=-1) / (2 * _num_classes(x))
    return _inputs.mask_examples(half_mean, x.examples)


def norm_scaled(x: _inputs.Inputs, scale: float) -> tuple[_inputs.Inputs, jax.Array]:
    """Logits over NormKD's temperatures, and the teacher's temperature, which weighs the loss."""
    _temperature.require_positive("scale", scale)
    # The rule looks at one network only, so that it may be asked with that one in both places.
    tau_student = _temperature.standard_deviation(
        x.student, x.student, of="student", scale=scale, where=x.classes
    )
    tau_teacher = _temperature.standard_deviation(x.teacher, x.teacher, scale=scale, where=x.classes)
    mean_tau = jnp.mean(tau_teacher, axis=0) if x.teacher.ndim > x.student.ndim else tau_teacher
    return _inputs.scaled(x, tau_student, tau_teacher), mean_tau


def soften(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    temperature: _temperature.Temperature,
    standardize: bool,
    ensemble: _inputs.Ensemble,
    axis: int,
    where: jax.typing.ArrayLike | None,
) -> tuple[_inputs.Inputs, jax.Array]:
    """Checked logits over their temperature, and the temperature."""
    return _softened(_inputs.prepare(student, teacher, axis, where, ensemble), temperature, standardize)


def _softened(
    x: _inputs.Inputs, temperature: _temperature.Temperature, standardize: bool
) -> tuple[_inputs.Inputs, jax.Array]:
    if standardize:
        x = _inputs.standardize_both(x)
    tau = _inputs.resolve_temperature(temperature, x, standardize)
    return _inputs.scaled(x, tau, tau), tau


def _power_transform(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    exponent: jax.typing.ArrayLike,
    ensemble: _inputs.Ensemble,
    axis: int,
    where: jax.typing.ArrayLike | None,
) -> tuple[_inputs.Inputs, jax.Array, jax.Array, jax.Array]:
    """Inputs, log r, log q and U of the two losses with a power transform."""
    if callable(exponent):
        raise TypeError(
            "exponent must be a number or an array, got a rule; a temperature T is the exponent 1 / T"
        )
    x = _inputs.prepare(student, teacher, axis, where, ensemble)
    power = _temperature.per_example("exponent", exponent, x.student)
    logits = _inputs.merge(x.teacher, x.student, x.classes)
    log_u = power * _logits.log_softmax(logits, x.classes)
    if x.classes is not None:
        log_u = jnp.where(x.classes, log_u, _logits.MASKED_LOGIT)
    log_r = _logits.log_softmax(power * logits, x.classes)
    log_q = _logits.log_softmax(x.student, x.classes)
    return x, log_r, log_q, jnp.exp(jax.nn.logsumexp(log_u, axis=-1))


def _num_classes(x: _inputs.Inputs) -> jax.typing.ArrayLike:
    """How many classes count, for each example (at least 1, for examples that are masked altogether)."""
    if x.classes is None:
        return x.student.shape[-1]
    return jnp.maximum(jnp.sum(x.classes, axis=-1), 1).astype(x.student.dtype)


def _squared(tau: jax.Array) -> jax.Array:
    return jnp.squeeze(tau**2, -1)
