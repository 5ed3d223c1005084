"""The losses once more, in plain NumPy float64: formulas as printed, with no care for overflow or speed."""

import numpy as np

MAX_LOGIT = (1 + np.sqrt(3)) / 2


def relative(actual, expected):
    """The largest deviation, relative to the largest entry of what was expected."""
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def zscore(x):
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-7)


def kl(p, q):
    return np.sum(p * np.log(p / q), -1)


def adaptive(s, t):
    return MAX_LOGIT * np.maximum(np.abs(s), np.abs(t)).max(-1, keepdims=True)


def _temperature(s, t, tau):
    return tau(s, t) if callable(tau) else np.full((*s.shape[:-1], 1), float(tau))


def _soft(s, t, tau, standardize):
    if standardize:
        s, t = zscore(s), zscore(t)
    tau = _temperature(s, t, tau)
    return softmax(t / tau), softmax(s / tau), tau[..., 0]


def kd(s, t, tau=4.0, standardize=False):
    p, q, tau = _soft(s, t, tau, standardize)
    return tau**2 * kl(p, q)


def reverse_kl(s, t, tau=4.0, standardize=False):
    p, q, tau = _soft(s, t, tau, standardize)
    return tau**2 * kl(q, p)


def jensen_shannon(s, t, tau=4.0, standardize=False, w=0.5):
    p, q, tau = _soft(s, t, tau, standardize)
    m = w * p + (1 - w) * q
    return tau**2 * (w * kl(p, m) + (1 - w) * kl(q, m))


def soft_cross_entropy(s, t, tau=4.0, standardize=False):
    p, q, tau = _soft(s, t, tau, standardize)
    return -(tau**2) * np.sum(p * np.log(q), -1)


def normkd(s, t, scale=2.0):
    tau_t, tau_s = scale * t.std(-1, ddof=1, keepdims=True), scale * s.std(-1, ddof=1, keepdims=True)
    return tau_t[..., 0] ** 2 * kl(softmax(t / tau_t), softmax(s / tau_s))


def dtkd(s, t, tau=4.0, alpha=3.0, beta=1.0):
    top_s, top_t = s.max(-1, keepdims=True), t.max(-1, keepdims=True)
    usual = (top_s > 0) & (top_t > 0)
    tau_s = np.where(usual, 2 * tau * top_s / (top_s + top_t), tau)
    tau_t = np.where(usual, 2 * tau * top_t / (top_s + top_t), tau)
    own = (tau_s * tau_t)[..., 0] * kl(softmax(t / tau_t), softmax(s / tau_s))
    return alpha * own + beta * kd(s, t, tau)


def _decoupled(s, t, y, alpha, beta):
    """TCKD and NCKD of logits that are already divided by their temperatures."""
    out = []
    for s_i, t_i, y_i in zip(s.reshape(-1, s.shape[-1]), t.reshape(-1, s.shape[-1]), y.ravel(), strict=True):
        p, q, rest = softmax(t_i), softmax(s_i), np.arange(s.shape[-1]) != y_i
        b, c = np.array([p[y_i], p[rest].sum()]), np.array([q[y_i], q[rest].sum()])
        out.append(alpha * kl(b, c) + beta * kl(p[rest] / p[rest].sum(), q[rest] / q[rest].sum()))
    return np.reshape(out, y.shape)


def dkd(s, t, y, tau=4.0, standardize=False, alpha=1.0, beta=8.0):
    if standardize:
        s, t = zscore(s), zscore(t)
    tau = _temperature(s, t, tau)
    return tau[..., 0] ** 2 * _decoupled(s / tau, t / tau, y, alpha, beta)


def gdkd(s, t, tau=4.0, standardize=False, top_k=5, alpha=1.0, beta=8.0, gamma=8.0):
    if standardize:
        s, t = zscore(s), zscore(t)
    tau, rows = _temperature(s, t, tau), []
    for s_i, t_i, tau_i in zip(s, t, tau[..., 0], strict=True):
        p, q = softmax(t_i / tau_i), softmax(s_i / tau_i)
        top = np.isin(np.arange(len(t_i)), np.argsort(-t_i, kind="stable")[:top_k])
        ends = [np.array([a[top].sum(), a[~top].sum()]) for a in (p, q)]
        inside, outside = (kl(p[k] / p[k].sum(), q[k] / q[k].sum()) for k in (top, ~top))
        rows.append(tau_i**2 * (alpha * kl(*ends) + beta * inside + gamma * outside))
    return np.array(rows)


def normdkd(s, t, y, scale=2.0, alpha=1.0, beta=8.0):
    tau_t, tau_s = scale * t.std(-1, ddof=1, keepdims=True), scale * s.std(-1, ddof=1, keepdims=True)
    return tau_t[..., 0] ** 2 * _decoupled(s / tau_s, t / tau_t, y, alpha, beta)


def alpha_beta(s, t, a, b, tau=4.0):
    p, q = softmax(t / tau), softmax(s / tau)
    if a == 0 and b == 1:
        return kl(q, p)
    terms = p**a * q**b - (a * p ** (a + b) + b * q ** (a + b)) / (a + b)
    return -terms.sum(-1) / (a * b)


def rld(s, t, y, tau=4.0, standardize=False, alpha=1.0, beta=8.0):
    if standardize:
        s, t = zscore(s), zscore(t)
    tau, rows = _temperature(s, t, tau), []
    for s_i, t_i, y_i, tau_i in zip(s, t, y, tau[..., 0], strict=True):
        p, q = softmax(t_i).max(), softmax(s_i)[y_i]
        below = t_i < t_i[y_i]
        order = kl(softmax(t_i[below] / tau_i), softmax(s_i[below] / tau_i)) if below.any() else 0.0
        confidence = kl(np.array([p, 1 - p]), np.array([q, 1 - q]))
        rows.append(alpha * confidence + beta * tau_i**2 * order)
    return np.array(rows)


def _power(t, exponent):
    p = softmax(t) ** exponent
    return p, p.sum(-1)


def ttm(s, t, exponent=1.0):
    p, total = _power(t, exponent)
    return kl(p / total[..., None], softmax(s))


def wttm(s, t, exponent=1.0):
    return _power(t, exponent)[1] * ttm(s, t, exponent)


def mse(s, t):
    return np.mean((s - t) ** 2, -1)


def _pearson(a, b, axis, eps=0.0):
    a, b = a - a.mean(axis, keepdims=True), b - b.mean(axis, keepdims=True)
    return (a * b).sum(axis) / (np.linalg.norm(a, axis=axis) * np.linalg.norm(b, axis=axis) + eps)


def correlation(s, t):
    k = s.shape[-1]
    return (k - 1) / k * (1 - _pearson(s, t, -1))


def dist_inter(s, t, tau=4.0, standardize=False):
    p, q, tau = _soft(s, t, tau, standardize)
    return tau**2 * (1 - _pearson(p, q, -1, 1e-8))


def dist_intra(s, t, tau=4.0, standardize=False):
    p, q, tau = _soft(s, t, tau, standardize)
    return np.mean(tau**2) * (1 - np.mean(_pearson(p, q, 0, 1e-8)))


def dist(s, t, tau=4.0, beta=1.0, gamma=1.0, standardize=False):
    return beta * dist_inter(s, t, tau, standardize).mean() + gamma * dist_intra(s, t, tau, standardize)


def class_correlation(s, t, tau=4.0, standardize=False):
    p, q, _ = _soft(s, t, tau, standardize)
    return np.sum((p.T @ p - q.T @ q) ** 2) / p.shape[1]


def batch_correlation(s, t, tau=4.0, standardize=False):
    p, q, _ = _soft(s, t, tau, standardize)
    return np.sum((p @ p.T - q @ q.T) ** 2) / p.shape[0]


def skd(s, t, tau=4.0, standardize=False, ridge=0.1):
    if standardize:
        s, t = zscore(s), zscore(t)
    p = softmax(t)
    examples = p.max(1) <= np.percentile(p.max(1), 50)
    classes = p.sum(0) <= np.percentile(p.sum(0), 50)
    s_unit, t_unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
    d = (s_unit @ s_unit.T - t_unit @ t_unit.T) / s.shape[1]
    inverse = np.linalg.inv(np.cov(d.T) + ridge * np.eye(len(d)))
    distance = np.sqrt(np.einsum("bi,ij,bj->b", d, inverse, d))
    return examples.mean() * kd(s, t, tau).mean() + classes.mean() * distance.mean()


def mlkd(s, t, s_strong, t_strong, tau=4.0, standardize=False, true_mask=False):
    if standardize is True:
        s, t, s_strong, t_strong = (zscore(x) for x in (s, t, s_strong, t_strong))
    z = standardize == "kd"
    p = softmax(t)
    examples = p.max(1) <= np.percentile(p.max(1), 50)
    classes = p.sum(0) <= np.percentile(p.sum(0), 50)
    total = 0.0
    base_weak = tau(zscore(s), zscore(t)) if callable(tau) and z else _temperature(s, t, tau)
    for x in (lambda *_: base_weak, 3, 5, 2, 6):
        per_example = kd(s, t, x, z)
        p, q, _ = _soft(s, t, x, False)
        rows_bc = np.sum((p @ p.T - q @ q.T) ** 2, 1) / len(s)
        rows_cc = np.sum((p.T @ p - q.T @ q) ** 2, 1) / s.shape[1]
        if true_mask:
            total += np.mean(per_example * examples) + rows_bc[examples].sum() + rows_cc[classes].sum()
        else:
            total += examples.mean() * (per_example.mean() + rows_bc.sum()) + classes.mean() * rows_cc.sum()
    for x in (tau, 3, 5):
        total += kd(s_strong, t_strong, x, z).mean()
    return total + kd(s, t, 2, z).mean() + kd(s, t, 6, z).mean()
