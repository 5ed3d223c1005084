"""What a user writes, to be checked by mypy --strict and pyright."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses, standardize, temperature


def loss(student: jax.Array, teacher: jax.Array, labels: jax.Array) -> jax.Array:
    adaptive = losses.kd(student, teacher, temperature=temperature.max_logit, standardize=True)
    rule = functools.partial(temperature.max_logit, of="teacher")
    decoupled = losses.dkd(standardize(student), teacher, labels, temperature=rule, ignore_index=-100)
    plain = losses.kd(student, np.ones((2, 3)), temperature=np.float32(2.0), where=labels > 0)
    return jnp.mean(adaptive + decoupled + plain)


def tokens(student: jax.Array, teacher: jax.Array, head: jax.Array) -> jax.Array:
    def one(head: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        return losses.reverse_kl(s @ head, t @ head)

    return losses.in_chunks(one, student, teacher, shared=head, chunk_size=8)
