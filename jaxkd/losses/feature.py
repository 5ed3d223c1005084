"""Losses on features: maps `[B, H, W, C]` or vectors `[B, D]` of student and teacher.

For all of them: features are floating (or else a TypeError) and of one batch (or else a ValueError); the
teacher's get no gradient (but for `cc`); sums are float32, or float64 for float64 features.  A channel, a row
or a map of zeros (a dead ReLU) has a gradient of 0 where the formula divides by its norm.

**Losses of an example** (`hint`, `attention`, `class_activation`, `nst`, `vid`, `ofd`, `hcl`) return `[B]`;
published numbers are the mean over the batch.

**Losses of a batch** (`rkd`, `pkt`, `sp`, `cc`, `itrd_correlation`, `itrd_mutual`) return a scalar, 0 or
constant for an empty batch.  Their mask `where`, bool `[B]` (or else a TypeError), tells which examples
belong to the batch; the others may hold anything.  With data parallelism each device computes its own, unless
the caller gathers the features first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.losses._inputs import boolean_mask

__all__ = [
    "attention",
    "cc",
    "class_activation",
    "hcl",
    "hint",
    "itrd_correlation",
    "itrd_mutual",
    "nst",
    "ofd",
    "ofd_margin",
    "pkt",
    "rkd",
    "sp",
    "vid",
]

_EPS = 1e-12  # the smallest norm to divide by, and the smallest squared distance; as in torch and RKD's code
_PKT_EPS = 1e-7
_VID_EPS = 1e-5
_SMALLEST_CDF = 1e-3  # of OFD: where less than this of a channel is negative, its margin is -3 deviations


def hint(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """FitNet's loss: the mean squared error of two features of one shape, `[B]`.

    `L_b = mean_j (s_bj - t_bj)^2`, j all entries of an example.

    Raises:
      ValueError: the shapes differ.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> losses.hint(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])).tolist()
    [2.0]

    Source: Romero et al. 2015 (arXiv 1412.6550), Eq. 3, with the mean in place of half the sum, as in public
    code.
    """
    s, t = _same(student, teacher)
    return _rest(jnp.square(s - t))


def attention(student: ArrayLike, teacher: ArrayLike, *, power: float = 2.0) -> jax.Array:
    """Attention transfer on one pair of maps, `[B]`.

    `L_b = mean_p (a_s - a_t)^2`, p the H W pixels, where `a = v / |v|` and `v_p = mean_c |f_pc|^power`.  The
    larger map is pooled to the size of the smaller; widths may differ.

    Args:
      power: exponent of the activations.

    Raises:
      ValueError: the features are no maps `[B, H, W, C]` of one batch.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student = jnp.array([3.0, 1.0, 1.0, 1.0]).reshape(1, 2, 2, 1)
    >>> print(losses.attention(student, jnp.ones((1, 2, 2, 5))).round(4))
    [0.1727]

    Source: Zagoruyko & Komodakis 2017 (arXiv 1612.03928), Eq. 2, squared and with the mean over pixels, as in
    the authors' code.
    """

    def map_of(f: jax.Array) -> jax.Array:
        energy = f * f if power == 2 else jnp.abs(f) ** power
        return unit(_rows(jnp.mean(energy, axis=-1)))

    s, t = of_one_size(student, teacher)
    return _rest(jnp.square(map_of(s) - map_of(t)))


def nst(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """Neuron selectivity transfer on one pair of maps, `[B]`: a squared distance of sets of channels.

    `L_b = mean_cd k(t_c, t_d) + mean_cd k(s_c, s_d) - 2 mean_cd k(s_c, t_d)`, `k(x, y) = (x . y)^2`, s_c and
    t_c the channels as vectors of pixels of length 1.  The larger map is pooled to the size of the
    smaller; widths may differ.

    Raises:
      ValueError: the features are no maps `[B, H, W, C]` of one batch.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.eye(4).reshape(1, 2, 2, 4), jnp.ones((1, 2, 2, 3))
    >>> losses.nst(student, teacher).tolist()
    [0.75]

    Source: Huang & Wang 2017 (arXiv 1707.01219), with the polynomial kernel, as in RepDistiller's code.
    """

    def selectivity(f: jax.Array) -> jax.Array:
        return unit(jnp.swapaxes(f.reshape(len(f), math.prod(f.shape[1:-1]), f.shape[-1]), 1, 2))

    def kernel(a: jax.Array, b: jax.Array) -> jax.Array:
        pairs, pixels = a.shape[1] * b.shape[1], a.shape[2]
        if pairs <= pixels**2:
            return _rest(jnp.square(jnp.einsum("bcp,bdp->bcd", a, b, precision="highest")))
        # The same sum over pairs of pixels, of which there are fewer.
        g, h = (jnp.einsum("bcp,bcq->bpq", x, x, precision="highest") for x in (a, b))
        return jnp.sum(g * h, axis=(1, 2)) / pairs

    s, t = (selectivity(f) for f in of_one_size(student, teacher))
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def vid(student: ArrayLike, teacher: ArrayLike, log_scale: ArrayLike) -> jax.Array:
    """Variational information distillation: the negative log-likelihood of the teacher's map, `[B]`.

    `L_b = mean_j ((s_bj - t_bj)^2 / v_c + log v_c) / 2`, j all entries and c their channel, with the variance
    `v_c = log(1 + exp(r_c)) + 1e-5`; without the constant of the normal distribution.

    Args:
      student: the means that a regressor predicts from the student's map, of the teacher's shape.
      log_scale: r, `[C]`; it is learned.

    Raises:
      ValueError: the shapes differ, or `log_scale` is not of the channels.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> one = jnp.log(jnp.expm1(1.0))
    >>> losses.vid(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)), jnp.array([one])).round(3).tolist()
    [0.5]

    Source: Ahn et al. 2019 (arXiv 1904.05835), as in RepDistiller's code.
    """
    s, t = _same(student, teacher)
    variance = jax.nn.softplus(_of_channels("log_scale", log_scale, s)) + _VID_EPS
    return _rest(0.5 * (jnp.square(s - t) / variance + jnp.log(variance)))


def ofd(student: ArrayLike, teacher: ArrayLike, margin: ArrayLike) -> jax.Array:
    """OFD's partial distance of pre-activation maps, `[B]`: summed over the entries of an example.

    `L_b = sum_j (s_bj - max(t_bj, m_c))^2`, j all entries and c their channel; without those entries where
    `t_bj <= 0` and the student lies no higher than the target.

    Args:
      student: connected to the teacher's width.
      teacher: of the student's shape.
      margin: m, `[C]`, negative; see `ofd_margin`.

    Raises:
      ValueError: the shapes differ, or `margin` is not of the channels.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> losses.ofd(jnp.array([[1.0, -3.0]]), jnp.array([[2.0, -2.0]]), jnp.array([-1.0, -1.0])).tolist()
    [1.0]

    Source: Heo et al. 2019 (arXiv 1904.01866), the partial L2 distance, as in mdistiller's code.
    """
    s, t = _same(student, teacher)
    m = jax.lax.stop_gradient(_of_channels("margin", margin, s))
    target = jnp.maximum(t, m)
    left_out = (t <= 0) & (s <= target)
    return jnp.sum(_rows(jnp.where(left_out, 0.0, jnp.square(s - target))), axis=-1)


def ofd_margin(scale: ArrayLike, bias: ArrayLike) -> np.ndarray:
    """The mean of the negative values of each channel after a batch norm: OFD's margin, float32 `[C]`.

    `m = b - g phi(b / g) / Phi(-b / g)`, the mean of N(b, g^2) below 0, g the absolute scale; `-3 g` where no
    more than 0.001 of the distribution is negative, and `min(b, 0)` where g is 0.

    A function of a trained teacher's weights: it is computed on the host, in float64, once.

    Args:
      scale: of the batch norm, `[C]`.
      bias: of the batch norm, `[C]`.

    >>> from jaxkd import losses
    >>> losses.ofd_margin([1.0, -2.0, 1.0, 0.0], [0.0, 0.0, 9.0, -4.0]).round(3).tolist()
    [-0.7979999780654907, -1.5959999561309814, -3.0, -4.0]

    Source: Heo et al. 2019 (arXiv 1904.01866), the margin ReLU; 0.001 and 3 as in mdistiller's code.
    """
    g, b = np.abs(np.asarray(scale, np.float64)), np.asarray(bias, np.float64)
    ratio = b / np.where(g > 0, g, 1)
    negative = np.vectorize(math.erfc, otypes=[np.float64])(ratio / math.sqrt(2)) / 2
    density = np.exp(-np.square(ratio) / 2) / math.sqrt(2 * math.pi)
    usual = b - g * density / np.maximum(negative, _SMALLEST_CDF)
    margin = np.where(negative > _SMALLEST_CDF, usual, -3 * g)
    return np.where(g > 0, margin, np.minimum(b, 0)).astype(np.float32)


def class_activation(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    size: int = 2,
    normalize: bool = False,
    binarize: bool = False,
    top: int | None = None,
) -> jax.Array:
    """CAT-KD's loss: the mean squared error of class activation maps, pooled to a few pixels, `[B]`.

    `L_b = mean_jk (s_bjk - t_bjk)^2`, j the `size` x `size` pixels and k the classes.  The maps
    `[B, H, W, K]` of both networks may differ in height and width.

    Args:
      size: height and width of the maps that are compared.
      normalize: whether each class's pooled map is divided by its length.
      binarize: whether the teacher's map only tells where it exceeds the mean of its absolute values.
      top: compare the classes alone whose teacher score, the mean of the map, is above that of the `top`-th
        (so one class fewer than `top`, as in the authors' code); None for all.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> losses.class_activation(jnp.ones((1, 4, 4, 3)), jnp.zeros((1, 8, 8, 3))).tolist()
    [1.0]

    Source: Guo et al. 2023, "Class Attention Transfer Based Knowledge Distillation" (CVPR), the authors'
    code.
    """
    s, t = _pair(student, teacher, maps=True)
    if s.shape[-1] != t.shape[-1]:
        raise ValueError(
            f"student and teacher must have maps of the same classes, got {s.shape} and {t.shape}"
        )
    scores = jnp.mean(t, axis=(1, 2))
    if binarize:
        t = (t > jnp.mean(jnp.abs(t), axis=(1, 2), keepdims=True)).astype(t.dtype)
    s, t = (adaptive_pool(x, (size, size)).reshape(len(x), size * size, x.shape[-1]) for x in (s, t))
    if normalize:
        s, t = (unit(x.swapaxes(1, 2)) for x in (s, t))
        s, t = s.swapaxes(1, 2), t.swapaxes(1, 2)
    error = jnp.mean(jnp.square(s - t), axis=1)
    if top is None:
        return jnp.mean(error, axis=-1)
    if not 1 < top <= scores.shape[-1]:
        raise ValueError(f"top must be from 2 to the number of classes, {scores.shape[-1]}, got {top}")
    chosen = scores > jax.lax.top_k(scores, top)[0][:, -1:]
    return jnp.sum(jnp.where(chosen, error, 0.0), -1) / jnp.maximum(jnp.sum(chosen, -1), 1)


def hcl(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
    """ReviewKD's hierarchical context loss on one pair of maps of one shape, `[B]`.

    `L_b = sum_l w_l mean_j (P_l(s) - P_l(t))^2 / sum_l w_l`: P_l pools to l x l pixels, for l = H and those
    of 4, 2, 1 that are smaller than H; the weights are 1, 1/2, 1/4, ... in this order.

    Raises:
      ValueError: the features are no maps `[B, H, W, C]` of one shape.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> loss = losses.hcl(jnp.array([1.0, -1.0]).reshape(1, 2, 1, 1), jnp.zeros((1, 2, 1, 1)))
    >>> print(f"{loss[0]:.3f}")
    0.667

    Source: Chen et al. 2021 (arXiv 2104.09044), HCL, as in the authors' code.
    """
    s, t = _same(student, teacher, maps=True)
    difference = s - t  # pooling is linear
    total, weight, weights = _rest(jnp.square(difference)), 1.0, 1.0
    for size in (4, 2, 1):
        if size < s.shape[1]:
            weight /= 2
            weights += weight
            total += weight * _rest(jnp.square(adaptive_pool(difference, (size, size))))
    return total / weights


def rkd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Relational KD, a scalar of the whole batch: distances of pairs and angles of triplets.

    `L = distance_weight mean_ij h(d_s - d_t) + angle_weight mean_ijk h(a_s - a_t)`, h Huber's function:
    `d_ij = |f_i - f_j|` divided by its mean over the pairs, and a_ijk the cosine of the angle at i between j
    and k.  Widths may differ.  A batch of B examples of D numbers needs memory for several times
    B^2 (B + D) numbers.

    Args:
      distance_weight: of the distances.
      angle_weight: of the angles.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{losses.rkd(student, student[:, :1]):.3f}")
    6.338

    Source: Park et al. 2019 (arXiv 1904.05068), section 3.2.
    """
    x = _batch(*_pair(student, teacher), where)
    pairs = x.mask[:, None] & x.mask
    triplets = pairs[:, :, None] & x.mask

    def relations(f: jax.Array) -> tuple[jax.Array, jax.Array]:
        differences = f[None] - f[:, None]
        square = jnp.sum(jnp.square(differences), axis=-1)
        apart = pairs & ~jnp.eye(len(f), dtype=bool)
        distances = jnp.where(apart, jnp.sqrt(jnp.where(square > _EPS, square, _EPS)), 0.0)
        mean = jnp.sum(distances) / jnp.maximum(jnp.sum(apart), 1).astype(f.dtype)
        directions = unit(differences)
        angles = jnp.einsum("ijd,ikd->ijk", directions, directions, precision="highest")
        return distances / jnp.where(mean > 0, mean, 1.0), angles

    def huber(s: jax.Array, t: jax.Array, mask: jax.Array) -> jax.Array:
        size = jnp.abs(s - t)
        values = jnp.where(size < 1, 0.5 * jnp.square(s - t), size - 0.5)
        return jnp.sum(values, where=mask) / jnp.maximum(jnp.sum(mask), 1).astype(s.dtype)

    (d_s, a_s), (d_t, a_t) = relations(x.student), relations(x.teacher)
    return distance_weight * huber(d_s, d_t, pairs) + angle_weight * huber(a_s, a_t, triplets)


def pkt(student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Probabilistic knowledge transfer, a scalar of the whole batch: divergence of similarities.

    `L = mean_ij p_ij log(p_ij / q_ij)`: p (teacher) and q (student) are `(1 + cos(f_i, f_j)) / 2`, divided by
    their sum over j; 1e-7 is added to norms, p and q.  Widths may differ.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0], [2.0]])
    >>> print(f"{losses.pkt(student, teacher):.4f}")
    0.0294

    Source: Passalis & Tefas 2018 (arXiv 1803.10837), with the mean, as in the authors' code.
    """
    x = _batch(*_pair(student, teacher), where)

    def similarities(f: jax.Array) -> jax.Array:
        rows = f / (_norm(f) + _PKT_EPS)
        values = jnp.where(x.mask, (_gram(rows) + 1) / 2, 0.0)
        total = jnp.sum(values, axis=1, keepdims=True)
        return values / jnp.where(total > 0, total, 1.0)

    q, p = similarities(x.student), similarities(x.teacher)
    values = p * (jnp.log(p + _PKT_EPS) - jnp.log(q + _PKT_EPS))
    return jnp.sum(values, where=x.mask[:, None]) / x.size**2


def sp(student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Similarity-preserving KD, a scalar of the whole batch.

    `L = mean_ij (g_s - g_t)^2`, g the Gram matrix of the flattened features, its rows of length 1.  Shapes of
    maps may differ.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> print(f"{losses.sp(jnp.eye(2), jnp.ones((2, 3))):.3f}")
    0.293

    Source: Tung & Mori 2019 (arXiv 1907.09682), Eq. 4.
    """
    x = _batch(*_pair(student, teacher), where)
    return jnp.sum(jnp.square(unit(_gram(x.student)) - unit(_gram(x.teacher)))) / x.size**2


def cc(student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Correlation congruence as in RepDistiller, a scalar for the whole batch; the batch's order matters.

    `L = mean_b sum_d |s_bd - t_bd| |s_(b+1)d - t_(b+1)d|` over the neighbours in the batch.  Both features
    get a gradient, because both are embedded there.

    Args:
      student: embedded.
      teacher: embedded to the same width.

    Raises:
      ValueError: the shapes differ.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> print(losses.cc(jnp.array([[1.0], [2.0], [4.0]]), jnp.zeros((3, 1))))
    5.0

    Source: Peng et al. 2019 (arXiv 1904.01802); the formula is that of RepDistiller's code, not the paper's.
    """
    x = _batch(*_same(student, teacher, detached=False), where)
    distance = jnp.abs(x.student - x.teacher)
    neighbours = x.mask[:-1] & x.mask[1:]
    values = jnp.sum(distance[:-1] * distance[1:], axis=-1)
    return jnp.sum(values, where=neighbours) / jnp.maximum(jnp.sum(neighbours), 1).astype(values.dtype)


def itrd_correlation(
    student: ArrayLike, teacher: ArrayLike, *, alpha: float = 1.5, where: ArrayLike | None = None
) -> jax.Array:
    """ITRD's correlation loss, a scalar of the whole batch, in bits.

    `L = log2 sum_d |1 - c_d|^(2 alpha)`, `c_d = sum_b z_s z_t / B`, z the z-scores of a channel over the
    batch (deviation with B - 1).  A channel that is constant there counts as c = 0, with a gradient of 0.

    Args:
      student: embedded to the teacher's width.
      alpha: the order of Renyi's entropy.

    Raises:
      ValueError: the shapes differ.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> print(f"{losses.itrd_correlation(jnp.eye(3), jnp.eye(3)):.3f}")
    -3.170

    Source: Miles et al. 2022 (arXiv 2112.00459), the correlation loss, as in the authors' code.
    """
    x = _batch(*_same(student, teacher), where)
    mask = x.mask[:, None]

    def z_scores(f: jax.Array) -> jax.Array:
        # The largest entry is taken off first, so that equal entries have deviations of exactly 0.
        top = jax.lax.stop_gradient(jnp.max(f, axis=0, where=mask, initial=-jnp.inf))
        shifted = jnp.where(mask, f - top, 0.0)
        deviations = jnp.where(mask, shifted - jnp.sum(shifted, axis=0) / x.size, 0.0)
        variance = jnp.sum(jnp.square(deviations), axis=0) / jnp.maximum(x.size - 1, 1)
        return deviations * jax.lax.rsqrt(jnp.where(variance > 0, variance, 1.0))

    correlation = jnp.sum(z_scores(x.student) * z_scores(x.teacher), axis=0) / x.size
    return jnp.log2(jnp.sum(jnp.abs(correlation - 1) ** (2 * alpha)))


def itrd_mutual(student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """ITRD's mutual information loss, a scalar of the whole batch.

    `L = sum_ij G_s^2 - sum_ij (G_s G_t)^2`, G the Gram matrices of the rows of length 1; G_s and the product
    G_s G_t, entry by entry, are divided by their traces.  Widths may differ.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> print(f"{losses.itrd_mutual(jnp.ones((2, 3)), jnp.eye(2)):.3f}")
    0.500

    Source: Miles et al. 2022 (arXiv 2112.00459), the mutual information loss, as in the authors' code.
    """
    x = _batch(*_pair(student, teacher), where)
    g_s, g_t = _gram(unit(x.student)), _gram(unit(x.teacher))

    def purity(g: jax.Array) -> jax.Array:
        trace = jnp.trace(g)
        return jnp.sum(jnp.square(g / jnp.where(trace > 0, trace, 1.0)))

    return purity(g_s) - purity(g_s * g_t)


def adaptive_pool(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Averages of maps `[B, H, W, C]` over `size` areas, as torch's `adaptive_avg_pool2d`.

    Area i of m reaches from `floor(i n / m)` to `ceil((i + 1) n / m)`: a larger size replicates pixels.

    >>> adaptive_pool(jnp.arange(3.0).reshape(1, 3, 1, 1), (2, 1)).ravel().tolist()
    [0.5, 1.5]
    """
    (height, width), (rows, columns) = x.shape[1:3], size
    if (height, width) == size:
        return x
    if height % rows == 0 and width % columns == 0:
        areas = x.reshape(len(x), rows, height // rows, columns, width // columns, x.shape[-1])
        return jnp.mean(areas, axis=(2, 4))
    down, across = _areas(height, rows, x.dtype), _areas(width, columns, x.dtype)
    return jnp.einsum("ih,jw,bhwc->bijc", down, across, x, precision="highest")


def _areas(n: int, m: int, dtype: jnp.dtype) -> jax.Array:
    """The matrix `[m, n]` that averages n numbers over m areas."""
    i, j = np.arange(m)[:, None], np.arange(n)
    inside = (j >= i * n // m) & (j < -(-(i + 1) * n // m))
    return jnp.asarray(inside / inside.sum(1, keepdims=True), dtype)


class _Batch(NamedTuple):
    """Features as rows `[B, D]`, those of masked examples 0; which count, and how many (at least 1)."""

    student: jax.Array
    teacher: jax.Array
    mask: jax.Array
    size: jax.Array


def _batch(s: jax.Array, t: jax.Array, where: ArrayLike | None) -> _Batch:
    mask = jnp.ones(len(s), bool) if where is None else boolean_mask(where)
    if mask.shape != (len(s),):
        raise ValueError(f"where must have shape {(len(s),)}, one entry an example, got {mask.shape}")
    s, t = (jnp.where(mask[:, None], _rows(f), 0.0) for f in (s, t))
    return _Batch(s, t, mask, jnp.maximum(jnp.sum(mask), 1).astype(s.dtype))


def _pair(
    student: ArrayLike, teacher: ArrayLike, *, maps: bool = False, detached: bool = True
) -> tuple[jax.Array, jax.Array]:
    """The features in one dtype, the teacher's without a gradient."""
    features = {"student": jnp.asarray(student), "teacher": jnp.asarray(teacher)}
    for name, f in features.items():
        if not jnp.issubdtype(f.dtype, jnp.floating):
            raise TypeError(f"{name} must be a floating-point feature, got dtype {f.dtype}")
        if f.ndim < 2 or (maps and f.ndim != 4):
            wanted = "maps [B, H, W, C]" if maps else "a feature [B, D] or [B, H, W, C]"
            raise ValueError(f"{name} must be {wanted}, got shape {f.shape}")
    s, t = features.values()
    if len(s) != len(t):
        raise ValueError(f"student and teacher must be of one batch, got shapes {s.shape} and {t.shape}")
    dtype = jnp.promote_types(jnp.promote_types(s.dtype, t.dtype), jnp.float32)
    return s.astype(dtype), (jax.lax.stop_gradient(t) if detached else t).astype(dtype)


def _same(student: ArrayLike, teacher: ArrayLike, **options: bool) -> tuple[jax.Array, jax.Array]:
    s, t = _pair(student, teacher, **options)
    if s.shape != t.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {s.shape} and {t.shape}; bring the student's "
            "feature to the teacher's shape with a layer that is trained"
        )
    return s, t


def of_one_size(student: ArrayLike, teacher: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Maps of the height and width of the smaller one."""
    s, t = _pair(student, teacher, maps=True)
    size = min(s.shape[1], t.shape[1]), min(s.shape[2], t.shape[2])
    return adaptive_pool(s, size), adaptive_pool(t, size)


def _of_channels(name: str, values: ArrayLike, maps: jax.Array) -> jax.Array:
    """One number for each channel, in the maps' type; a scalar stands for all."""
    values = jnp.asarray(values).astype(maps.dtype)
    if values.shape not in ((), maps.shape[-1:]):
        raise ValueError(
            f"{name} must be one number for each of the {maps.shape[-1]} channels, got shape {values.shape}"
        )
    return values


def _rest(values: jax.Array) -> jax.Array:
    """The mean of each example."""
    return jnp.mean(_rows(values), axis=-1)


def _rows(values: jax.Array) -> jax.Array:
    """One row for each example; there may be none."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _gram(rows: jax.Array) -> jax.Array:
    return jnp.matmul(rows, rows.T, precision="highest")


def _norm(rows: jax.Array) -> jax.Array:
    """Lengths along the last axis, which stays; that of zeros is 0, with a gradient of 0."""
    square = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def unit(rows: jax.Array) -> jax.Array:
    """Rows of length 1 along the last axis; zeros stay, with a gradient of 0."""
    norm = _norm(rows)
    zero = norm == 0
    return jnp.where(zero, 0.0, rows) / jnp.where(zero, 1.0, jnp.maximum(norm, _EPS))
