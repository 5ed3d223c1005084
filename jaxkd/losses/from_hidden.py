"""Distillation of large vocabularies: from hidden states, in chunks of tokens.

The logits of all tokens at once are what fills the memory of a language model's distillation.  Here they
exist for one chunk of tokens at a time, in the forward pass as in the backward.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd.losses._inputs import boolean_mask
from jaxkd.losses.logit import kd


def kd_from_hidden(
    student_hidden: ArrayLike,
    student_head: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_head: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    where: ArrayLike | None = None,
    chunk_size: int = 128,
) -> jax.Array:
    """`kd` of the logits `hidden @ head`, which never exist for more than `chunk_size` tokens at a time.

    `L_i = kd(student_hidden_i @ student_head, teacher_hidden_i @ teacher_head)`, value and gradient.  Beside
    its arguments and their gradients it takes memory for a few arrays of `chunk_size` x K, however many
    tokens there are.  The gradient is worked out chunk by chunk in the forward pass, while the logits are
    there.  That is all the work if the loss is then summed or averaged over the tokens (of which some may be
    masked); if the tokens are weighted unevenly, the logits are computed again for the gradient of the head.

    The gradient is a custom reverse-mode rule.  `jax.jvp` and with it forward mode, `jax.linearize` and
    Hessians are not available (TypeError).  There is no mask of classes.

    Args:
      student_hidden: floating, shape `[..., D]`, what the student's output matrix is applied to.
      student_head: floating, shape `[D, K]`; for tied embeddings, their transpose.
      teacher_hidden: floating, shape `[..., E]`, the same leading axes; no gradient flows into it.
      teacher_head: floating, shape `[E, K]`; no gradient flows into it.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.  The
        gradient flows into a number or an array.  A rule must not close over a value that is being
        differentiated or traced: that raises `jax.errors.UnexpectedTracerError`.  Compute such a temperature
        outside and pass it as an array.
      standardize: whether to take z-scores of both networks' logits first.
      where: optional boolean mask of tokens, shape `[...]`; a masked token has loss 0 and gradient 0.
      chunk_size: how many tokens are worked on at a time.  More is faster where the memory allows it.

    Returns:
      One value per token, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError: an array that is not floating, a mask that is not boolean.
      ValueError: shapes that do not fit together, a temperature that is not positive or does not fit, a chunk
        size below 1.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import losses, temperature
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> shapes = [(2, 5, 8), (8, 100), (2, 5, 16), (16, 100)]
    >>> arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]
    >>> adaptive = {"temperature": temperature.max_logit, "standardize": True}
    >>> loss = losses.kd_from_hidden(*arrays, **adaptive, chunk_size=4)
    >>> naive = losses.kd(arrays[0] @ arrays[1], arrays[2] @ arrays[3], **adaptive)
    >>> print(loss.shape, bool(jnp.allclose(loss, naive, rtol=1e-4)))
    (2, 5) True

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2, for the loss; the arrangement is that of
    memory-saving cross-entropies.
    """
    h_s, w_s = _network("student", student_hidden, student_head)
    h_t, w_t = _network("teacher", teacher_hidden, teacher_head)
    if h_s.shape[:-1] != h_t.shape[:-1] or w_s.shape[1] != w_t.shape[1]:
        raise ValueError(
            "student and teacher must share tokens and classes, got hidden states "
            f"{h_s.shape} and {h_t.shape}, output matrices {w_s.shape} and {w_t.shape}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    shape = h_s.shape[:-1]
    keep = jnp.ones(shape, bool) if where is None else boolean_mask(where)
    if keep.shape != shape:
        raise ValueError(f"where must have shape {shape}, one entry per token, got {keep.shape}")
    rule, given = (temperature, 1.0) if callable(temperature) else (None, temperature)
    dtype = jnp.promote_types(jnp.float32, jnp.promote_types(h_s.dtype, h_t.dtype))
    tau = _logits.per_example("temperature", given, jax.ShapeDtypeStruct((*shape, w_s.shape[1]), dtype))

    num_tokens = keep.size
    chunk_size = min(chunk_size, max(num_tokens, 1))
    num_chunks = -(-num_tokens // chunk_size)

    def chunks(x: jax.Array, trailing: tuple[int, ...], fill: float) -> jax.Array:
        x = x.reshape(num_tokens, *trailing)
        missing = num_chunks * chunk_size - num_tokens
        x = jnp.pad(x, [(0, missing), *((0, 0) for _ in trailing)], constant_values=fill)
        return x.reshape(num_chunks, chunk_size, *trailing)

    # What is masked may hold anything: nothing of it may reach a product.
    h_s, h_t = (jnp.where(keep[..., None], h, 0) for h in (h_s, jax.lax.stop_gradient(h_t)))
    losses = _chunked(rule, standardize)(
        chunks(h_s, h_s.shape[-1:], 0),
        w_s,
        chunks(h_t, h_t.shape[-1:], 0),
        jax.lax.stop_gradient(w_t),
        chunks(tau, (1,), 1.0),
        chunks(keep, (), False),
    )
    return losses.reshape(-1)[:num_tokens].reshape(shape)


def _network(name: str, hidden: ArrayLike, head: ArrayLike) -> tuple[jax.Array, jax.Array]:
    h, w = jnp.asarray(hidden), jnp.asarray(head)
    for what, array in (("hidden", h), ("head", w)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name}_{what} must be floating, got dtype {array.dtype}")
    if h.ndim == 0 or w.ndim != 2 or h.shape[-1] != w.shape[0] or w.shape[1] < 2:
        raise ValueError(
            f"{name}_hidden must have shape [..., D] and {name}_head [D, K] with at least 2 classes, got "
            f"{h.shape} and {w.shape}; tied embeddings are to be transposed"
        )
    dtype = jnp.promote_types(h.dtype, w.dtype)
    return h.astype(dtype), w.astype(dtype)


def _chunked(rule: _temperature.Rule | None, standardize: bool):  # type: ignore[no-untyped-def]
    """The loss on chunked arrays, `[chunks, tokens, ...]`, as a function with a custom gradient."""

    def logits(h: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.matmul(h, w, preferred_element_type=jnp.promote_types(jnp.float32, h.dtype))

    def of_logits(z_s: jax.Array, z_t: jax.Array, tau: jax.Array, keep: jax.Array) -> jax.Array:
        return kd(z_s, z_t, temperature=tau if rule is None else rule, standardize=standardize, where=keep)

    @jax.custom_vjp
    def run(
        h_s: jax.Array, w_s: jax.Array, h_t: jax.Array, w_t: jax.Array, tau: jax.Array, keep: jax.Array
    ) -> jax.Array:
        def one(chunk: tuple) -> jax.Array:
            s, t, tau, keep = chunk
            return of_logits(logits(s, w_s), logits(t, w_t), tau, keep)

        return jax.lax.map(one, (h_s, h_t, tau, keep))

    def gradients(w_s: jax.Array, w_t: jax.Array, chunk: tuple) -> tuple[jax.Array, ...]:
        """Losses, and the gradients of each token's loss: of its logits and of its temperature."""
        s, t, tau, keep = chunk
        z_t = logits(t, w_t)
        value, pullback = jax.vjp(lambda z, tau: of_logits(z, z_t, tau, keep), logits(s, w_s), tau)
        return value, *pullback(jnp.ones_like(value))

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.promote_types(jnp.float32, a.dtype))

    def head_gradient(
        w_s: jax.Array, w_t: jax.Array, chunks: tuple, weights: jax.Array
    ) -> tuple[jax.Array, tuple]:
        """The head's gradient for the given weights of the tokens; losses, and the other gradients."""

        def step(total: jax.Array, xs: tuple) -> tuple[jax.Array, tuple]:
            chunk, weight = xs
            value, of_z, of_tau = gradients(w_s, w_t, chunk)
            of_z = of_z.astype(w_s.dtype)
            of_h = product(of_z, w_s.T)
            # The small factor takes the weight.
            weighted = (chunk[0].astype(weight.dtype) * weight[:, None]).astype(w_s.dtype)
            return total + product(weighted.T, of_z), (value, of_h, of_tau)

        start = jnp.zeros(w_s.shape, jnp.promote_types(jnp.float32, w_s.dtype))
        return jax.lax.scan(step, start, (chunks, weights))

    def forward(h_s, w_s, h_t, w_t, tau, keep):  # type: ignore[no-untyped-def]
        chunks = (h_s, h_t, tau, keep)
        of_w, (values, of_h, of_tau) = head_gradient(w_s, w_t, chunks, jnp.ones(keep.shape, tau.dtype))
        return values, (chunks, w_s, w_t, of_w, of_h, of_tau)

    def backward(residuals, weights):  # type: ignore[no-untyped-def]
        chunks, w_s, w_t, of_w, of_h, of_tau = residuals
        keep = chunks[3]
        highest = jnp.max(weights, where=keep, initial=-jnp.inf)
        lowest = jnp.min(weights, where=keep, initial=jnp.inf)
        of_w = jax.lax.cond(
            highest <= lowest,  # one weight for all tokens, or no token
            lambda: of_w * jnp.where(jnp.isfinite(highest), highest, 0.0),
            lambda: head_gradient(w_s, w_t, chunks, weights)[0],
        )
        of_h = of_h * weights[..., None]
        return of_h.astype(w_s.dtype), of_w.astype(w_s.dtype), None, None, of_tau * weights[..., None], None

    run.defvjp(forward, backward)
    return run
