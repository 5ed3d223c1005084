"""One step of training and one of evaluation, as pure functions.

They run under `jax.pmap` with the axis `AXIS` (the same bodies work under `jax.shard_map`), see only the
examples of their own device, and return values that are equal on all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxkd import metrics
from jaxkd.data.augment import Numbered, augment, stream_key
from jaxkd.data.batch import Batch
from jaxkd.methods import Inputs, Method, Terms, cross_entropy
from jaxkd.metrics import Mean, Percentage, total
from jaxkd.models import Network, Outputs
from jaxkd.models.network import AXIS
from jaxkd.training.state import Tally, TrainState, empty_tally, evaluated
from jaxkd.training.task import Task


@flax.struct.dataclass
class Frozen:
    """The arrays that a run reads and never changes.

    Attributes:
      teacher: the teacher's variables; None without a teacher, or if a cache replaces it.
      constants: arrays that the method uses, by name.
    """

    teacher: Any = None
    constants: Mapping[str, Any] = flax.struct.field(default_factory=dict)

    @property
    def collections(self) -> dict[str, Any]:
        """The constants as a collection of the method's module."""
        return {"constants": self.constants} if self.constants else {}


def train_step(
    task: Task, state: TrainState, frozen: Frozen, batch: Batch, *, unroll: bool = False
) -> TrainState:
    """One update of student and method.

    Args:
      task: the run's constants.
      state: the state before the step; equal on all devices.
      frozen: the arrays that do not change.
      batch: this device's shard.
      unroll: whether to unroll the loop over micro-batches.

    Returns:
      The state after the step; equal on all devices.
    """
    epoch = state.step // task.steps_per_epoch + 1
    examples = jnp.sum(batch.where, dtype=jnp.float32)
    num_examples = jax.lax.psum(examples, AXIS)
    of_step = jax.random.fold_in(stream_key(task.seed, "dropout"), state.step)
    of_device = jax.random.fold_in(of_step, jax.lax.axis_index(AXIS))

    def on_part(carried: tuple[Any, Any], part: Batch, index: jax.Array) -> tuple[Any, tuple[Any, Any]]:
        """A micro-batch's gradient of the batch's mean loss, its sums, and the updated collections."""
        views = _views(task, part, epoch)
        teacher = _teacher_outputs(task, frozen, part, views)
        # The same on all devices for "sample"; other names differ between devices.
        rngs = {"sample": jax.random.fold_in(of_step, index), "dropout": jax.random.fold_in(of_device, index)}

        def objective(params: Any) -> tuple[jax.Array, tuple[Any, tuple[Any, Any]]]:
            network, method = carried
            student = {}
            for number, (view, images) in enumerate(views.items()):
                own = {
                    "dropout": rngs["dropout"] if not number else jax.random.fold_in(rngs["dropout"], number)
                }
                variables = {"params": params["student"], **network}
                student[view], updates = task.student.apply(
                    variables, images, train=True, where=part.where, rngs=own
                )
                network = {**network, **updates}
            inputs = Inputs(student, teacher, part.labels, part.ids, part.where, epoch, task.num_epochs, AXIS)
            result, method = task.method.apply(
                {"params": params["method"], **method, **frozen.collections},
                inputs,
                mutable=list(method),
                rngs=rngs,
            )
            terms: Any = result
            loss = sum(weight * total(values, part.where) for values, weight in terms.losses.values())
            variables = {"params": params["method"], **method, **frozen.collections}
            sums = _sums(task.method, variables, inputs, terms, loss)
            broken = _nonfinite_teacher(teacher, part.where)
            return loss / num_examples, ((sums, broken), (network, dict(method)))

        gradients, (sums, after) = jax.grad(objective, has_aux=True)(state.params)
        return (gradients, sums), after

    (gradients, sums), (network, method) = _accumulate(
        on_part, (state.network, state.method), batch, task.accumulate, unroll
    )
    gradients, (sums, broken) = jax.lax.psum((gradients, sums), AXIS)
    share = examples / num_examples
    if task.average:
        network = _averaged(network, share)
    if "statistics" in method:
        method = {**method, "statistics": _averaged(method["statistics"], share)}
    updates, opt_state = task.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if task.ema is not None:
        # The first steps have a smaller decay, so that the initial values do not stay for long.
        decay = jnp.minimum(task.ema, (1 + state.step) / (10 + state.step))
        average = _moved(average, evaluated(task.method, params, network, method), 1 - decay)
    # Covers the gradient, and statistics that overflow while the loss is still finite.  What a network keeps
    # may be infinite from the beginning.
    moved = jax.tree.map(
        lambda old, new: jnp.where(jnp.isfinite(old), new, 0.0) if _is_floating(new) else new,
        state.network,
        dict(network),
    )
    leaves = jax.tree.leaves((updates, moved, method))
    finite = jnp.isfinite(optax.tree.norm([leaf for leaf in leaves if _is_floating(leaf)]))
    return TrainState(
        step=state.step + 1,
        params=params,
        network=network,
        method=method,
        opt_state=opt_state,
        tally=_add_to_tally(state, task.steps_per_epoch, sums, broken, finite),
        average=average,
    )


def _views(task: Task, batch: Batch, epoch: jax.Array) -> dict[str, jax.Array]:
    """The batch's images, by view."""
    ids = jnp.maximum(batch.ids, 0)
    return {
        view: augment(augmentation, batch.images, ids, seed=task.seed, epoch=epoch, view=view)
        for view, augmentation in task.augmentations
    }


def _teacher_outputs(
    task: Task, frozen: Frozen, batch: Batch, views: Mapping[str, jax.Array]
) -> dict[str, Outputs]:
    if batch.teacher_logits is not None:
        pooled = batch.teacher_pooled
        features = {} if pooled is None else {"pooled": pooled.astype(jnp.float32)}
        return {"main": Outputs(batch.teacher_logits.astype(jnp.float32), features)}
    if task.teacher is None:
        return {}
    outputs = {view: task.teacher.apply(frozen.teacher, images)[0] for view, images in views.items()}
    return jax.lax.stop_gradient(outputs)


def _averaged(tree: Any, share: jax.Array) -> Any:
    """The average over devices, weighted by each one's share of the examples; only for floats."""

    def average(leaf: jax.Array) -> jax.Array:
        if not _is_floating(leaf):
            return leaf
        # Infinity times 0 would be NaN: a device may have no example.
        return jax.lax.psum(jnp.where(share > 0, leaf * share, 0.0), AXIS)

    return jax.tree.map(average, tree)


def _moved(average: Any, new: Any, share: jax.Array) -> Any:
    """A moving average after one more value; what is not floating is the newest."""

    def move(old: jax.Array, leaf: jax.Array) -> jax.Array:
        return old + share.astype(leaf.dtype) * (leaf - old) if _is_floating(leaf) else leaf

    return jax.tree.map(move, average, new)


def _is_floating(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _sums(method: Method, variables: Any, x: Inputs, terms: Terms, loss: Any) -> tuple[Any, Any]:
    """A micro-batch's contribution to the tally: losses, and the method's metrics."""
    logits = _predict(method, variables, next(iter(x.student.values())))
    correct = (jnp.argmax(logits, -1) == x.labels).astype(jnp.float32)
    losses = {
        "loss": Mean(jnp.asarray(loss, jnp.float32), jnp.sum(x.where, dtype=jnp.float32)),
        "accuracy": Percentage.of(correct, x.where),
        **{name: Mean.of(values, x.where) for name, (values, _) in terms.losses.items()},
    }
    return losses, dict(terms.metrics)


def _predict(method: Method, variables: Any, student: Outputs) -> jax.Array:
    logits: Any = method.apply(variables, student, method="predict")
    return logits


def _nonfinite_teacher(teacher: Mapping[str, Outputs], where: jax.Array) -> jax.Array:
    """Number of examples with a NaN or infinite teacher logit."""
    count = jnp.zeros((), jnp.float32)
    for outputs in teacher.values():
        count += total((~jnp.all(jnp.isfinite(outputs.logits), axis=-1)).astype(jnp.float32), where)
    return count


def _accumulate(
    on_part: Callable[[Any, Batch, jax.Array], tuple[Any, Any]],
    carried: Any,
    batch: Batch,
    num_parts: int,
    unroll: bool,
) -> tuple[Any, Any]:
    """Sums `on_part(carried, part, index) -> (summands, carried)` over the micro-batches, in order.

    Every `num_parts`-th example forms a micro-batch, so that padding is spread over all of them.
    """
    if num_parts == 1:
        return on_part(carried, batch, jnp.int32(0))
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, num_parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    indices = jnp.arange(num_parts, dtype=jnp.int32)
    first = jax.tree.map(lambda leaf: leaf[0], (parts, indices))
    shapes, _ = jax.eval_shape(on_part, carried, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(before: tuple[Any, Any], part: tuple[Batch, jax.Array]) -> tuple[tuple[Any, Any], None]:
        sums, carried = before
        summands, carried = on_part(carried, *part)
        return (jax.tree.map(jnp.add, sums, summands), carried), None

    return jax.lax.scan(add, (zeros, carried), (parts, indices), unroll=num_parts if unroll else 1)[0]


def _add_to_tally(
    state: TrainState, steps_per_epoch: int, sums: tuple[Any, Any], broken: jax.Array, finite: jax.Array
) -> Tally:
    """Adds a step's sums; the first step of an epoch resets them."""
    begins = state.step % steps_per_epoch == 0
    old = state.tally
    fresh = empty_tally(old.losses, old.metrics)
    old = jax.tree.map(lambda a, b: jnp.where(begins, a, b), fresh, old)
    losses, others = sums
    finite &= jnp.isfinite(losses["loss"].total) & (broken == 0)
    first = old.nonfinite_step
    return Tally(
        metrics.merge(old.losses, losses),
        metrics.merge(old.metrics, others),
        nonfinite_step=jnp.where((first < 0) & ~finite, state.step, first),
        nonfinite_teacher=old.nonfinite_teacher + broken,
    )


def eval_step(network: Network, method: Method | None, variables: Any, batch: Batch) -> dict[str, jax.Array]:
    """Sums over a batch of the test split: examples, correct (top 1), correct_top5, cross-entropy.

    Args:
      network: runs in evaluation mode.
      method: turns its outputs into logits; None for the network's own logits.
      variables: `(the network's, the method's)`.
      batch: this device's shard.
    """
    of_network, of_method = variables
    outputs, _ = network.apply(of_network, batch.images)
    logits = outputs.logits if method is None else _predict(method, of_method, outputs)
    labels = batch.labels
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    # The number of classes ranked before the label; a tie counts against the network, and so does a NaN.
    rank = logits.shape[-1] - 1 - jnp.sum(logits < own, axis=-1)
    values = {
        "examples": jnp.ones_like(rank),
        "correct": rank < 1,
        "correct_top5": rank < 5,
        "ce": cross_entropy(logits, labels),
    }
    sums = {name: jnp.sum(jnp.where(batch.where, v, 0), dtype=jnp.float32) for name, v in values.items()}
    return jax.lax.psum(sums, AXIS)


def teacher_rows(
    teacher: Network, augmentation: Numbered, variables: Any, batch: Batch, numbers: jax.Array, pooled: bool
) -> jax.Array:
    """A cache's rows for numbered outcomes `[B]` of an augmentation: the teacher's logits `[B, K]`.

    With `pooled`, the pooled features follow them, `[B, K + D]`.
    """
    images = jax.vmap(augmentation.take)(batch.images, numbers)
    outputs, _ = teacher.apply(variables, images)
    return jnp.concatenate([outputs.logits, outputs.features["pooled"]], 1) if pooled else outputs.logits
