"""What a user of the trainer writes: own networks, losses, optimisers, data and augmentations."""

from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped, unused-ignore]  # installed without types for mypy

import jaxkd
from jaxkd import config, data, losses, methods, models, teachers, training


class Student(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(hidden))


class Pooled(methods.Method):
    reads = ("logits", "pooled")
    weight: float = 1.0

    @nn.compact
    def __call__(self, x: methods.Inputs) -> methods.Terms:
        student, teacher = x.student["main"].features["pooled"], x.teacher["main"].features["pooled"]
        distance = jnp.mean((nn.Dense(teacher.shape[-1])(student) - teacher) ** 2, axis=-1)
        ce = methods.cross_entropy(x.student_logits, x.labels)
        return methods.Terms({"ce": (ce, 1.0), "pooled": (distance, self.weight)})


def soft(x: methods.Inputs) -> Mapping[str, tuple[jax.Array, float]]:
    kd = losses.kd(x.student_logits, x.teacher_logits, temperature=3.0)
    return {"ce": (methods.cross_entropy(x.student_logits, x.labels), 0.1), "kd": (kd, 0.9)}


def noisy(key: jax.Array, image: jax.Array) -> jax.Array:
    noise = jax.random.normal(key, image.shape) * 16
    return jnp.clip(image + noise, 0, 255).astype(jnp.uint8)


def log(values: Mapping[str, float], step: int) -> None:
    print(step, values["train/loss"])


def run(images: np.ndarray, labels: np.ndarray) -> float:
    options = config.TrainConfig(model="resnet8", epochs=1, batch_size=32)
    config.DistillConfig(teacher="digits-resnet20", method="kd", run=Path("runs/kd"))
    mine = data.from_arrays((images, labels), (images, labels), name="mine")
    jaxkd.train(options, mine, augmentation=data.Compose((data.CropFlip(padding=1, flip=False), noisy)))
    network = models.from_linen(Student(), name="student-8")
    result = jaxkd.distill(
        teacher=teachers.load("digits-resnet20"),
        student=network,
        method=methods.from_function(soft, name="soft-3"),
        optimizer={"student": optax.adamw(1e-3), "method": optax.sgd(0.1)},
        data=mine,
        on_log=log,
        epochs=2,
    )
    jaxkd.distill(teacher="digits-resnet20", student=Student(), method=Pooled(weight=2.0))
    jaxkd.train(model=Student(), optimizer=training.Named("own", optax.adamw(1e-3)), seeds=3)
    jaxkd.report([result["run"]], Path("runs/report"))
    return float(result["last_accuracy"])
