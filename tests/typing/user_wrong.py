"""Mistakes that a type checker must find, each on a line that says so."""

import jax

from jaxkd import losses, temperature


def loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    losses.kdd(student, teacher)  # wrong
    losses.kd(student, teacher, temprature=4.0)  # wrong
    losses.kd(student, teacher, standardize="kd")  # wrong
    temperature.max_logit(student, teacher, of="student")  # wrong
    losses.kd_top_k(student, teacher, teacher, rest="drop")  # wrong
    x: int = losses.kd(student, teacher)  # wrong
    return losses.kd(student, teacher, chunk_size=x / 2)  # wrong
