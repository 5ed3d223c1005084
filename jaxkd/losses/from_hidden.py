"""Distillation of large vocabularies: from hidden states, in chunks of tokens.

The logits of all tokens at once are what fills the memory of a language model's distillation.  Here they
exist for one chunk of tokens at a time, in the forward pass as in the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxkd import _meshes
from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd._classes import AxisName
from jaxkd.losses._chunks import cut
from jaxkd.losses._inputs import mask_of_examples
from jaxkd.losses.logit import kd

TokenLoss = Callable[..., jax.Array]


def in_chunks(
    loss: TokenLoss,
    *arrays: ArrayLike,
    shared: Any = None,
    chunk_size: int = 128,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Any loss per token, worked out for `chunk_size` tokens at a time.

    `L = loss(*arrays)`, value and gradient.  What the loss makes on its way, such as logits, exists for one
    chunk at a time: beside its arguments and their gradients it takes memory for a few arrays of
    `chunk_size` x K, however many tokens there are.  The gradient is worked out in the forward pass, while
    the logits are there.  That is all the work if the losses are then summed or averaged (some may be
    masked); if they are weighted unevenly afterwards, it is computed again for what the tokens share.  So
    give weights as `where`.

    The loss takes what all tokens share (output matrices, biases, a learned temperature) from its closure, or
    as `shared`.  The gradient flows there, and into the arrays.  It is a custom reverse-mode rule: `jax.jvp`
    and with it forward mode, `jax.linearize` and Hessians are not available (TypeError).

    Sharded tokens: a chunk takes a part of every device's tokens, under `jax.jit` (where `chunk_size` counts
    the tokens of all devices) and inside `jax.shard_map` (those of one).  There, what is given as `shared`
    has its gradient summed over the devices once, what comes from the closure for each chunk.

    Args:
      loss: called with a chunk of every array, after `shared` if that is given; gives one value per token,
        floating, and treats each token by itself.  A chunk has one or several axes of tokens in front, which
        the loss must not count.
      arrays: shape `[tokens..., ...]`, of any number of token axes and of anything behind them: hidden
        states, labels, temperatures.
      shared: any tree of arrays.
      chunk_size: how many tokens are worked on at a time.  More is faster where the memory allows it.
      where: optional mask of tokens, or their weights, as in `jaxkd.losses`; shape `[tokens...]`.  What the
        arrays hold in a masked token is replaced by 1 before the loss sees it.

    Returns:
      One value per token, shape `[tokens...]`.

    Raises:
      ValueError: there is no array, one does not begin with the token axes, or the chunk size is below 1.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import losses
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> shapes = [(2, 5, 8), (8, 100), (2, 5, 16), (16, 100)]
    >>> student, head, teacher, teacher_head = (jax.random.normal(k, s) for k, s in zip(keys, shapes))
    >>> labels = jnp.zeros((2, 5), int)
    >>> def loss(student, teacher, labels):
    ...     s, t = 30 * jnp.tanh(student @ head / 30), teacher @ teacher_head
    ...     log_q = jax.nn.log_softmax(s)
    ...     cross_entropy = -jnp.take_along_axis(log_q, labels[..., None], axis=-1)[..., 0]
    ...     return 0.5 * cross_entropy + 0.5 * losses.reverse_kl(s, t)
    >>> print(losses.in_chunks(loss, student, teacher, labels, chunk_size=4).shape)
    (2, 5)

    Source: the arrangement is that of memory-saving cross-entropies.
    """
    inputs = [jnp.asarray(a) for a in arrays]
    if not inputs:
        raise ValueError("in_chunks needs at least one array of tokens")
    common = () if shared is None else (shared,)
    result = jax.eval_shape(loss, *common, *inputs)
    tokens = result.shape
    for index, a in enumerate(inputs):
        if a.shape[: len(tokens)] != tokens:
            raise ValueError(
                f"array {index} must begin with the axes of the tokens, {tokens}, got shape {a.shape}; take "
                "what all tokens share from the loss's closure"
            )
    plan = cut(inputs[0], tokens, chunk_size)
    keep, weights = jnp.ones(tokens, bool), None
    if where is not None:
        if jnp.shape(where) != tokens:
            raise ValueError(f"where must have shape {tokens}, one entry per token, got {jnp.shape(where)}")
        keep, weights = mask_of_examples(where, tokens)
        # What is masked may hold anything, and nothing of it may reach a product.
        inputs = [jnp.where(keep.reshape(*tokens, *[1] * (a.ndim - len(tokens))), a, 1) for a in inputs]
    if 0 in tokens:
        return loss(*common, *inputs)

    def of_chunk(chunk: Sequence[jax.Array], common: tuple) -> jax.Array:
        keep, weight, *arrays = chunk
        return jnp.where(keep, loss(*common, *arrays) * weight, 0.0)

    weights = jnp.ones(tokens, result.dtype) if weights is None else weights.astype(result.dtype)
    chunks = (plan.split(keep), plan.split(weights), *(plan.split(a, fill=1) for a in inputs))
    # Inside shard_map, every device sums up its own tokens' gradients.
    axes = frozenset().union(*(_meshes.varying_axes(x) or () for x in chunks))
    common = jax.tree.map(lambda x: _meshes.vary(jnp.asarray(x), axes), common)
    converted, closed_over = jax.closure_convert(of_chunk, [a[0] for a in chunks], common)
    leaves, structure = jax.tree.flatten(common)

    def of_leaves(chunk: Sequence[jax.Array], *shared: jax.Array) -> jax.Array:
        common = jax.tree.unflatten(structure, shared[: len(leaves)])
        return converted(chunk, common, *shared[len(leaves) :])

    return plan.join(_with_gradients(of_leaves)(chunks, (*leaves, *closed_over)))


def _with_gradients(of_chunk: Callable[..., jax.Array]) -> Callable[[tuple, tuple], jax.Array]:
    """The losses of all chunks, `[chunks, ...]`, with gradients that are worked out in the forward pass.

    `of_chunk(chunk, *shared)` gives the losses of a chunk, whose first array is the mask.
    """

    @jax.custom_vjp
    def run(chunks: tuple, shared: tuple) -> jax.Array:
        return jax.lax.map(lambda chunk: of_chunk(list(chunk), *shared), chunks)

    def derive(chunks: tuple, shared: tuple, wanted: tuple, weights: jax.Array | None) -> tuple:
        """Losses, each token's gradients, and the gradients of what is shared, summed with the weights."""
        of_tokens, of_shared = wanted

        def step(total: list, xs: tuple) -> tuple[list, tuple]:
            chunk, weight = xs

            def losses(some: list, others: list) -> jax.Array:
                return of_chunk(_put(some, of_tokens, chunk), *_put(others, of_shared, shared))

            value, pullback = jax.vjp(losses, _take(chunk, of_tokens), _take(shared, of_shared))
            own, common = pullback(jnp.ones_like(value) if weight is None else weight)
            return [t + g.astype(t.dtype) for t, g in zip(total, common, strict=True)], (value, own)

        start = [
            jnp.zeros_like(x, dtype=jnp.promote_types(jnp.float32, x.dtype)) for x in _take(shared, of_shared)
        ]
        total, (values, own) = jax.lax.scan(step, start, (chunks, weights))
        return values, own, total

    def forward(chunks: tuple, shared: tuple) -> tuple[jax.Array, tuple]:
        wanted = tuple(tuple(x.perturbed and _is_floating(x.value) for x in xs) for xs in (chunks, shared))
        chunks, shared = (tuple(x.value for x in xs) for xs in (chunks, shared))
        values, own, total = derive(chunks, shared, wanted, None)
        own, total = _put(own, wanted[0], [None] * len(chunks)), _put(total, wanted[1], [None] * len(shared))
        return values, (chunks, shared, own, total)

    def backward(residuals: tuple, weights: Any) -> tuple[tuple, tuple]:
        chunks, shared, own, total = residuals
        if isinstance(weights, SymbolicZero):
            return (None,) * len(chunks), (None,) * len(shared)
        wanted = tuple(tuple(x is not None for x in xs) for xs in (own, total))
        highest = jnp.max(weights, where=chunks[0], initial=-jnp.inf)
        lowest = jnp.min(weights, where=chunks[0], initial=jnp.inf)
        if axes := _meshes.varying_axes(highest):  # the same branch on all devices, which meet in its sums
            highest, lowest = jax.lax.pmax(highest, tuple(axes)), jax.lax.pmin(lowest, tuple(axes))
        scale = jnp.where(jnp.isfinite(highest), highest, 0.0)
        sums = jax.lax.cond(
            highest <= lowest,  # one weight for all tokens, or no token
            lambda: [x * scale.astype(x.dtype) for x in _take(total, wanted[1])],
            lambda: derive(chunks, shared, ((False,) * len(chunks), wanted[1]), weights)[2],
        )
        sums = [x.astype(like.dtype) for x, like in zip(sums, _take(shared, wanted[1]), strict=True)]
        of_tokens = [x if x is None else x * _like(weights, x) for x in own]
        return tuple(of_tokens), tuple(_put(sums, wanted[1], [None] * len(shared)))

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run


def _take(xs: Sequence, wanted: Sequence[bool]) -> list:
    return [x for x, is_wanted in zip(xs, wanted, strict=True) if is_wanted]


def _put(some: Sequence, wanted: Sequence[bool], xs: Sequence) -> list:
    """The inverse of `_take`: `xs`, with `some` in the wanted places."""
    rest = iter(some)
    return [next(rest) if is_wanted else x for x, is_wanted in zip(xs, wanted, strict=True)]


def _is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _like(weights: jax.Array, x: jax.Array) -> jax.Array:
    return weights.reshape(*weights.shape, *[1] * (x.ndim - weights.ndim)).astype(x.dtype)


def kd_from_hidden(
    student_hidden: ArrayLike,
    student_head: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_head: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    student_soft_cap: float | None = None,
    teacher_soft_cap: float | None = None,
    classes: ArrayLike | None = None,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    chunk_size: int = 128,
) -> jax.Array:
    """`kd` of the logits `hidden @ head`, which never exist for more than `chunk_size` tokens at a time.

    `L_i = kd(s_i, t_i)`, value and gradient, with the logits of `jaxkd.logits.from_hidden`.  This is
    `in_chunks` with `kd` as its loss: for memory, gradients and sharding see there, and for another loss, or
    for the cross-entropy in the same pass, call it.

    Args:
      student_hidden: floating, shape `[..., D]`, what the student's output matrix is applied to.
      student_head: floating, shape `[D, K]`; for tied embeddings, their transpose.
      teacher_hidden: floating, shape `[..., E]`, the same leading axes; no gradient flows into it.
      teacher_head: floating, shape `[E, K]`; no gradient flows into it.  A padded vocabulary is cut to the
        other one's size first, `teacher_head[:, :K]`.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.  The
        gradient flows into a number, an array, and what a rule takes from its closure.
      standardize: whether to take z-scores of both networks' logits first.
      student_bias: floating, shape `[K]`.
      teacher_bias: floating, shape `[K]`; no gradient flows into it.
      student_soft_cap: bound of the student's logits, as in `jaxkd.logits.from_hidden`.
      teacher_soft_cap: the same for the teacher.
      classes: optional mask of classes, shape `[K]`, for the padding of a vocabulary.
      where: optional mask of tokens, or their weights, shape `[...]`.
      axis_name: where `jax.shard_map` shards the heads' classes, the mesh axis over which it does.
      chunk_size: how many tokens are worked on at a time.

    Returns:
      One value per token, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError: an array that is not floating, a mask that is not boolean, of integers or of weights.
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

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2, for the loss.
    """
    h_s, w_s = _logits.hidden_and_head("student", student_hidden, student_head)
    h_t, w_t = _logits.hidden_and_head("teacher", teacher_hidden, teacher_head)
    if h_s.shape[:-1] != h_t.shape[:-1] or w_s.shape[1] != w_t.shape[1]:
        raise ValueError(
            "student and teacher must share tokens and classes, got hidden states "
            f"{h_s.shape} and {h_t.shape}, output matrices {w_s.shape} and {w_t.shape}; a padded vocabulary "
            "is cut to size with head[:, :num_classes]"
        )
    h_t, w_t, teacher_bias = jax.lax.stop_gradient((h_t, w_t, teacher_bias))
    mask = None if classes is None else jnp.asarray(classes)
    if mask is not None and mask.shape != w_s.shape[1:]:
        raise ValueError(f"classes must have shape {w_s.shape[1:]}, one entry per class, got {mask.shape}")
    dtype = jnp.promote_types(jnp.float32, jnp.promote_types(h_s.dtype, h_t.dtype))
    like = jax.ShapeDtypeStruct((*h_s.shape[:-1], w_s.shape[1]), dtype)
    taus = () if callable(temperature) else (_logits.per_example("temperature", temperature, like),)

    def loss(shared: tuple, h_s: jax.Array, h_t: jax.Array, *tau: jax.Array) -> jax.Array:
        w_s, b_s, w_t, b_t = shared
        s = _logits.from_hidden(h_s, w_s, bias=b_s, soft_cap=student_soft_cap)
        t = _logits.from_hidden(h_t, w_t, bias=b_t, soft_cap=teacher_soft_cap)
        return kd(
            s,
            t,
            temperature=tau[0] if tau else temperature,
            standardize=standardize,
            where=None if mask is None else mask.reshape(*[1] * (s.ndim - 1), -1),
            axis_name=axis_name,
        )

    shared = (w_s, student_bias, w_t, teacher_bias)
    return in_chunks(loss, h_s, h_t, *taus, shared=shared, chunk_size=chunk_size, where=where)
