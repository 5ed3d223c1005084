"""One step of training and one of evaluation, as pure functions.

They run under `jax.pmap` with the axis `AXIS` (the same bodies work under `jax.shard_map`), see only the
examples of their own device, and return what is equal on all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxkd.data import View, normalize, stream_key, view_images
from jaxkd.methods import Method, Progress
from jaxkd.models import Outputs
from jaxkd.training.state import TEMPERATURE_EDGES, TrainState, empty_tally

AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with the normalisation of its inputs.

    `module` is a Flax module or, for a teacher, anything with `apply(variables, images) -> Outputs`.
    """

    module: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        """Normalises uint8 images `[B, H, W, C]` and runs the network."""
        return self.module.apply(variables, normalize(images, self.mean, self.std), **options)


@flax.struct.dataclass
class Batch:
    """One device's share of a batch.

    Attributes:
      ids: int32 `[B]`; -1 stands for no example.
      images: uint8 `[B, H, W, C]`; None until `gather` fetches them from where they lie on the device.
      labels: int32 `[B]`, likewise.
    """

    ids: Any
    images: Any = None
    labels: Any = None

    @property
    def real(self) -> jax.Array:
        """Which places hold an example, bool `[B]`."""
        return self.ids >= 0


def gather(resident: tuple[jax.Array, jax.Array] | None, batch: Batch) -> Batch:
    """Fetches a batch's images and labels from a split that lies on the device.

    Args:
      resident: the split's images, uint8 `[N, H, W, C]`, and labels, int32 `[N]`; None if the batch brings
        its own.
      batch: with its ids.
    """
    if resident is None:
        return batch
    images, labels = resident
    ids = jnp.maximum(batch.ids, 0)
    return batch.replace(images=images[ids], labels=labels[ids])  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Task:
    """What stays the same through a run: networks, method, optimiser, views, length.

    `teacher` and `method` are both None for training on labels alone.
    """

    student: Network
    teacher: Network | None
    method: Method | None
    optimizer: optax.GradientTransformation
    view: View
    seed: int
    num_epochs: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if (self.teacher is None) != (self.method is None):
            raise ValueError("a task has both a teacher and a method, or neither")


def train_step(
    task: Task,
    state: TrainState,
    teacher_variables: Any,
    batch: Batch,
) -> TrainState:
    """One update of the student.

    Args:
      task: the run's constants.
      state: before the step; equal on all devices.
      teacher_variables: the teacher's; None without one.
      batch: this device's share.

    Returns:
      The state after the step; equal on all devices.
    """
    epoch = state.step // task.steps_per_epoch + 1
    real, labels = batch.real, batch.labels
    views = view_images(batch.images, jnp.maximum(batch.ids, 0), seed=task.seed, epoch=epoch, view=task.view)
    rngs = {"dropout": jax.random.fold_in(stream_key(task.seed, "dropout"), state.step)}
    rngs = {name: jax.random.fold_in(key, jax.lax.axis_index(AXIS)) for name, key in rngs.items()}
    num_real = jax.lax.psum(jnp.sum(real, dtype=jnp.float32), AXIS)

    def average(values: jax.Array) -> jax.Array:
        """This device's part of the average over the global batch; the parts are summed by psum."""
        if values.ndim:
            return jnp.sum(jnp.where(real, values, 0.0)) / num_real
        return values / jax.lax.psum(1, AXIS)

    teacher_outputs = None
    if task.teacher is not None:
        teacher_outputs = jax.lax.stop_gradient(task.teacher.apply(teacher_variables, views))

    def objective(params: Any) -> tuple[jax.Array, tuple[Any, Any, dict[str, jax.Array]]]:
        variables = {"params": params["student"], "batch_stats": state.batch_stats}
        student, updates = task.student.apply(
            variables, views, train=True, where=real, mutable=["batch_stats"], rngs=rngs
        )
        ce = optax.softmax_cross_entropy_with_integer_labels(student.logits, labels)
        ce_weight = 1.0 if task.method is None else task.method.ce_weight
        loss, metrics, method_state = ce_weight * average(ce), {}, state.method_state
        if task.method is not None:
            (term, metrics), method_state = task.method.apply(
                {"params": params["method"], **state.method_state},
                student,
                teacher_outputs,
                labels,
                Progress(epoch, task.num_epochs),
                mutable=list(state.method_state),
                rngs=rngs,
            )
            loss += average(term)
        correct = jnp.argmax(student.logits, -1) == labels
        metrics = {"ce": ce, "correct": correct.astype(jnp.float32), **metrics}
        return loss, (updates["batch_stats"], method_state, metrics)

    (loss, (batch_stats, method_state, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(
        state.params
    )
    gradients = jax.lax.psum(gradients, AXIS)
    # Equal already where batch statistics are taken over all devices; this states it for the rest.
    method_state = jax.lax.pmean(method_state, AXIS)
    updates, opt_state = task.optimizer.update(gradients, state.opt_state, state.params)
    sums = {
        "loss": loss * num_real,
        **{name: average(value) * num_real for name, value in metrics.items()},
    }
    teacher_logits = None if teacher_outputs is None else teacher_outputs.logits
    # Covers the gradient, and statistics that overflow while the loss is still finite.
    changes_finite = jnp.isfinite(optax.tree.norm((updates, batch_stats)))
    return TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        method_state=method_state,
        opt_state=opt_state,
        tally=_add_to_tally(
            state, task.steps_per_epoch, sums, metrics, num_real, real, teacher_logits, changes_finite
        ),
    )


def _add_to_tally(
    state: TrainState,
    steps_per_epoch: int,
    sums: dict[str, jax.Array],
    metrics: dict[str, jax.Array],
    num_real: jax.Array,
    real: jax.Array,
    teacher_logits: jax.Array | None,
    changes_finite: jax.Array,
) -> dict[str, jax.Array]:
    starts = state.step % steps_per_epoch == 0
    fresh = empty_tally(tuple(name for name in sums if name not in ("loss", "ce", "correct")))
    tally = {name: jnp.where(starts, fresh[name], state.tally[name]) for name in fresh}
    added = {**sums, "nonfinite_teacher": jnp.zeros(())}
    if teacher_logits is not None:
        broken = ~jnp.all(jnp.isfinite(teacher_logits), axis=-1)
        added["nonfinite_teacher"] = jnp.sum(jnp.where(real, broken, False), dtype=jnp.float32)
    if "temperature" in metrics:
        # Counts by comparison rather than by scatter: as fast, and the same on every platform.
        bins = jnp.searchsorted(jnp.asarray(TEMPERATURE_EDGES, jnp.float32), metrics["temperature"])
        slots = jnp.arange(len(TEMPERATURE_EDGES) + 1)
        hits = (bins[:, None] == slots) & real[:, None]
        added["temperature_histogram"] = jnp.sum(hits, axis=0, dtype=jnp.float32)
    added = jax.lax.psum(added, AXIS)
    finite = jnp.isfinite(added["loss"]) & (added["nonfinite_teacher"] == 0) & changes_finite
    first = tally["nonfinite_step"]
    tally["nonfinite_step"] = jnp.where((first < 0) & ~finite, state.step, first)
    tally["examples"] += num_real
    return {name: value + added[name] if name in added else value for name, value in tally.items()}


def eval_step(network: Network, variables: Any, batch: Batch) -> dict[str, jax.Array]:
    """Sums over a batch of the test split: examples, correct (top 1), correct_top5, cross-entropy.

    `batch` is this device's share; the network runs in evaluation mode.
    """
    outputs: Outputs = network.apply(variables, batch.images)
    logits, targets = outputs.logits, batch.labels
    own = jnp.take_along_axis(logits, targets[:, None], axis=-1)
    # How many classes come before the label; a tie counts against the network, and so does a NaN.
    rank = logits.shape[-1] - 1 - jnp.sum(logits < own, axis=-1)
    values = {
        "examples": jnp.ones_like(rank),
        "correct": rank < 1,
        "correct_top5": rank < 5,
        "ce": optax.softmax_cross_entropy_with_integer_labels(logits, targets),
    }
    sums = {name: jnp.sum(jnp.where(batch.real, v, 0), dtype=jnp.float32) for name, v in values.items()}
    return jax.lax.psum(sums, AXIS)
