"""One step of training and one of evaluation, as pure functions.

They run under `jax.pmap` with the axis `AXIS` (the same bodies work under `jax.shard_map`), see only the
examples of their own device, and return what is equal on all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxkd.data import View, normalize, stream_key, take_views, view_images
from jaxkd.methods import Method, Progress
from jaxkd.models import Outputs
from jaxkd.training.loss_scale import skip_unless
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
      teacher_logits: on the views that are trained on, `[B, K]`, from a cache; None to run the teacher.
    """

    ids: Any
    images: Any = None
    labels: Any = None
    teacher_logits: Any = None

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

    `teacher` and `method` are both None for training on labels alone.  Each device's share of a batch goes
    through the networks in `accumulate` parts, one after the other, for one update; batch norm and losses
    that are defined on a batch see a part.  With `batch_norm` "device" each device normalises by its own
    examples alone (the student has no `axis_name`), and the running statistics are averaged by number of
    examples.
    """

    student: Network
    teacher: Network | None
    method: Method | None
    optimizer: optax.GradientTransformation
    view: View
    seed: int
    num_epochs: int
    steps_per_epoch: int
    accumulate: int = 1
    batch_norm: Literal["global", "device"] = "global"

    def __post_init__(self) -> None:
        if (self.teacher is None) != (self.method is None):
            raise ValueError("a task has both a teacher and a method, or neither")


def train_step(
    task: Task, state: TrainState, teacher_variables: Any, batch: Batch, *, unroll: bool = False
) -> TrainState:
    """One update of the student.

    Args:
      task: the run's constants.
      state: before the step; equal on all devices.
      teacher_variables: the teacher's; None without one.
      batch: this device's share.
      unroll: whether the parts of a batch (`task.accumulate`) are written out instead of looped over.

    Returns:
      The state after the step; equal on all devices.
    """
    progress = Progress(state.step // task.steps_per_epoch + 1, task.num_epochs)
    examples = jnp.sum(batch.real, dtype=jnp.float32)
    num_real = jax.lax.psum(examples, AXIS)
    scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
    key = jax.random.fold_in(stream_key(task.seed, "dropout"), state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

    def on_part(carried: tuple[Any, Any], part: Batch, index: jax.Array) -> tuple[Any, tuple[Any, Any]]:
        """The part's gradient of the batch's mean loss, and its sums; what it carries on to the next part."""
        batch_stats, method_state = carried
        rngs = {"dropout": jax.random.fold_in(key, index)}
        ids = jnp.maximum(part.ids, 0)
        views = view_images(part.images, ids, seed=task.seed, epoch=progress.epoch, view=task.view)
        teacher = None
        if part.teacher_logits is not None:
            teacher = Outputs(part.teacher_logits.astype(jnp.float32), {})
        elif task.teacher is not None:
            teacher = jax.lax.stop_gradient(task.teacher.apply(teacher_variables, views))

        def objective(params: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], tuple[Any, Any]]]:
            variables = {"params": params["student"], "batch_stats": batch_stats}
            student, updates = task.student.apply(
                variables, views, train=True, where=part.real, mutable=["batch_stats"], rngs=rngs
            )
            ce = optax.softmax_cross_entropy_with_integer_labels(student.logits, part.labels)
            ce_weight = 1.0 if task.method is None else task.method.ce_weight
            loss, metrics, new_method_state = ce_weight * _total(ce, part.real), {}, method_state
            if task.method is not None:
                (term, metrics), new_method_state = task.method.apply(
                    {"params": params["method"], **method_state},
                    student,
                    teacher,
                    part.labels,
                    progress,
                    mutable=list(method_state),
                    rngs=rngs,
                )
                loss += _total(term, part.real)
            correct = jnp.argmax(student.logits, -1) == part.labels
            metrics = {"ce": ce, "correct": correct.astype(jnp.float32), **metrics}
            sums = {"loss": loss, **_sums(metrics, teacher, part.real)}
            return loss / num_real * scale, (sums, (updates["batch_stats"], new_method_state))

        gradients, (sums, carried) = jax.grad(objective, has_aux=True)(state.params)
        return (gradients, sums), carried

    (gradients, sums), (batch_stats, method_state) = _accumulate(
        on_part, (state.batch_stats, state.method_state), batch, task.accumulate, unroll
    )
    gradients = jax.tree.map(lambda leaf: leaf / scale, jax.lax.psum(gradients, AXIS))
    sums = jax.lax.psum(sums, AXIS)
    if task.batch_norm == "device":
        share = examples / num_real
        batch_stats = jax.lax.psum(jax.tree.map(lambda leaf: leaf * share, batch_stats), AXIS)
    # Equal already where batch statistics are taken over all devices; this states it for the rest.
    method_state = jax.lax.pmean(method_state, AXIS)
    updates, opt_state = task.optimizer.update(gradients, state.opt_state, state.params)
    loss_scale = state.loss_scale
    if loss_scale is not None:
        finite = jnp.isfinite(optax.tree.norm(gradients))
        updates, opt_state = skip_unless(finite, (updates, opt_state), state.opt_state)
        # Overflow is what the scale is there for, until it cannot become smaller.
        exhausted = loss_scale.is_exhausted(finite)
        updates = jax.tree.map(lambda leaf: jnp.where(exhausted, jnp.nan, leaf), updates)
        loss_scale = loss_scale.adjust(finite)
    # Covers the gradient, and statistics that overflow while the loss is still finite.
    changes_finite = jnp.isfinite(optax.tree.norm((updates, batch_stats)))
    return TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        method_state=method_state,
        opt_state=opt_state,
        tally=_add_to_tally(state, task.steps_per_epoch, sums, num_real, changes_finite),
        loss_scale=loss_scale,
    )


def _total(values: jax.Array, real: jax.Array) -> jax.Array:
    """The sum over the examples that count; a value of the whole batch counts once for each of them."""
    if values.ndim:
        return jnp.sum(jnp.where(real, values, 0.0))
    return values * jnp.sum(real, dtype=jnp.float32)


def _sums(metrics: dict[str, jax.Array], teacher: Outputs | None, real: jax.Array) -> dict[str, jax.Array]:
    """What a part of a batch adds to the tally."""
    sums = {name: _total(value, real) for name, value in metrics.items()}
    sums["nonfinite_teacher"] = jnp.zeros(())
    if teacher is not None:
        broken = ~jnp.all(jnp.isfinite(teacher.logits), axis=-1)
        sums["nonfinite_teacher"] = _total(broken.astype(jnp.float32), real)
    if "temperature" in metrics:
        # Counts by comparison rather than by scatter: as fast, and the same on every platform.
        bins = jnp.searchsorted(jnp.asarray(TEMPERATURE_EDGES, jnp.float32), metrics["temperature"])
        slots = jnp.arange(len(TEMPERATURE_EDGES) + 1)
        hits = (bins[:, None] == slots) & real[:, None]
        sums["temperature_histogram"] = jnp.sum(hits, axis=0, dtype=jnp.float32)
    return sums


def _accumulate(
    on_part: Callable[[Any, Batch, jax.Array], tuple[Any, Any]],
    carried: Any,
    batch: Batch,
    num_parts: int,
    unroll: bool,
) -> tuple[Any, Any]:
    """Adds up `on_part(carried, part, index) -> (summands, carried)` over the parts of a batch, in turn.

    Every `num_parts`-th example makes a part, so that one which is not full is spread over all of them.
    """
    if num_parts == 1:
        return on_part(carried, batch, jnp.int32(0))
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, num_parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    indices = jnp.arange(num_parts, dtype=jnp.int32)
    first = jax.tree.map(lambda leaf: leaf[0], (parts, indices))
    shapes, _ = jax.eval_shape(on_part, carried, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(before: tuple[Any, Any], part: tuple[Batch, jax.Array]) -> tuple[tuple[Any, Any], None]:
        total, carried = before
        summands, carried = on_part(carried, *part)
        return (jax.tree.map(jnp.add, total, summands), carried), None

    return jax.lax.scan(add, (zeros, carried), (parts, indices), unroll=num_parts if unroll else 1)[0]


def _add_to_tally(
    state: TrainState,
    steps_per_epoch: int,
    sums: dict[str, jax.Array],
    num_real: jax.Array,
    changes_finite: jax.Array,
) -> dict[str, jax.Array]:
    starts = state.step % steps_per_epoch == 0
    own = ("loss", "ce", "correct", "nonfinite_teacher", "temperature_histogram")
    fresh = empty_tally(tuple(name for name in sums if name not in own))
    tally = {name: jnp.where(starts, fresh[name], state.tally[name]) for name in fresh}
    finite = jnp.isfinite(sums["loss"]) & (sums["nonfinite_teacher"] == 0) & changes_finite
    first = tally["nonfinite_step"]
    tally["nonfinite_step"] = jnp.where((first < 0) & ~finite, state.step, first)
    tally["examples"] += num_real
    return {name: value + sums[name] if name in sums else value for name, value in tally.items()}


def teacher_logits(
    teacher: Network, view: View, variables: Any, batch: Batch, numbers: jax.Array
) -> jax.Array:
    """The teacher's logits `[B, K]` on views that are given by number, `[B]`: what a cache holds."""
    outputs: Outputs = teacher.apply(variables, take_views(batch.images, numbers, view))
    return outputs.logits


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
