"""Mistakes that a type checker must find, each on a line that says so."""

import flax.linen as nn
import jax

import jaxkd
from jaxkd import config, losses, methods, temperature


def loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    losses.kdd(student, teacher)  # wrong
    losses.kd(student, teacher, temprature=4.0)  # wrong
    losses.kd(student, teacher, standardize="kd")  # wrong
    temperature.max_logit(student, teacher, of="student")  # wrong
    losses.kd_top_k(student, teacher, teacher, rest="drop")  # wrong
    x: int = losses.kd(student, teacher)  # wrong
    return losses.kd(student, teacher, chunk_size=x / 2)  # wrong


def soft(x: methods.Inputs) -> jax.Array:
    return losses.kd(x.student_logits, x.techer_logits)  # wrong


def train() -> None:
    config.TrainConfig(modle="resnet8")  # wrong
    config.DistillConfig(method="kd")  # wrong
    config.DistillConfig(teacher="digits-resnet20", precision="float16")  # wrong
    jaxkd.distill(teacher="digits-resnet20", method=soft)  # wrong
    jaxkd.distill(teacher="digits-resnet20", student=nn.Dense)  # wrong
    jaxkd.train(model=3)  # wrong
