"""The identity of a run: everything that determines its result, with defaults resolved.

A user's object is identified by its name, its options and the shapes of its variables, not by its code: a
changed function, or an optimiser with another learning rate, counts as the same.  `sources` records a hash of
the code, so that a change is at least reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, methods, models, storage
from jaxkd._names import describe_object
from jaxkd.runs.config import RunConfig
from jaxkd.teachers import Teacher
from jaxkd.training import Frozen, Named, Recipe, Task, TrainState

# Told by the digests of the data and the teacher, and by the augmentation.
_OF_DATA = ("data", "image_size", "resized_crop", "crop_padding", "flip", "teacher_size")
OF_RECIPE = ("optimizer", "learning_rate", "schedule", "warmup_epochs", "momentum", "weight_decay")


def identify(
    config: RunConfig,
    task: Task,
    dataset: data.Dataset,
    student: Any,
    optimizer: Any,
    teacher: Teacher | None,
    *,
    teacher_logits: str,
    num_devices: int,
) -> dict[str, Any]:
    """The identity of a run, ready for JSON.

    Args:
      config: the run's options.
      task: the run's constants.
      dataset: the run's data.
      student: the student's variables, or their shapes.
      optimizer: a recipe, or a user's own optimiser.
      teacher: the run's teacher.
      teacher_logits: the source of the teacher's logits: "live", or the precision of a cache.
      num_devices: matters only if batch norm is per device.
    """
    decisive = config.decisive()
    for name in (*_OF_DATA, "method", "method_options", "model", "student", *OF_RECIPE):
        decisive.pop(name, None)
    identity = {
        **decisive,
        **_prefixed("student", task.student.describe(student)),
        **_own_beginning(task.student, dataset),
        "data": dataset.name,
        "data_digest": dataset.digest,
        **{f"augmentation.{view}": describe_object(shown) for view, shown in task.augmentations},
        "method": methods.title(task.method),
        **{f"method.{key}": as_json(value) for key, value in methods.options(task.method).items()},
        **_describe_optimizer(optimizer, task, student),
    }
    if config.batch_norm == "device":  # then, and only then, the number of devices decides on the result
        identity["batch_norm_devices"] = num_devices
    if teacher is not None:
        known = teacher.description
        identity |= {"teacher_digest": teacher.digest, "teacher_mean": known.mean, "teacher_std": known.std}
        if teacher.module:
            identity["teacher_module"] = teacher.module
        # The precision of a cache changes every bit that follows, and so does the cache itself.
        identity["teacher_logits"] = teacher_logits
    return identity


def _own_beginning(student: models.Network, dataset: data.Dataset) -> dict[str, Any]:
    """What a user's network has of its own besides code and shapes: normalisation, initial values."""
    found: dict[str, Any] = {}
    if (student.mean, student.std) != (tuple(dataset.mean), tuple(dataset.std)):
        found |= {"student_mean": student.mean, "student_std": student.std}
    values = student.forward.given
    return found if values is None else {**found, "student_values": storage.tree_digest(values)}


def _prefixed(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    rest = {f"{name}.{key}": value for key, value in about.items() if key != "name"}
    return {name: about["name"], **rest}


def _describe_optimizer(optimizer: Any, task: Task, student: Any) -> dict[str, Any]:
    if isinstance(optimizer, Named):
        return {"optimizer": optimizer.name}
    if isinstance(optimizer, Recipe):
        return {key: value for key, value in dataclasses.asdict(optimizer).items() if key != "total_steps"}
    _, state = _shapes_for_optimizer(task, student)
    structure = hashlib.sha256(repr(jax.tree.structure(state)).encode()).hexdigest()[:16]
    return {"optimizer": "own", "optimizer.state": structure}


def _shapes_for_optimizer(task: Task, student: Any) -> tuple[Any, Any]:
    """The shapes of a student's parameters, and of the optimiser's state for them."""
    params = {"student": student.get("params", {}), "method": {}}
    return params, jax.eval_shape(task.optimizer.init, params)


def as_json(value: Any) -> Any:
    """A method's option as JSON; functions and other objects as text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else describe_object(value)


def sources(task: Task, student: Any, optimizer: Any) -> dict[str, str]:
    """Hashes of the source code of users' methods, networks and augmentations, if it can be read.

    An optimiser's code is optax, and its numbers are in closures: so its hash is of what it traces to.
    """
    things: dict[str, Any] = {"method": task.method, "student": task.student.forward}
    things |= {f"augmentation of view {view}": shown for view, shown in task.augmentations}
    texts = {name: "".join(_sources(thing)).encode() for name, thing in things.items()}
    if not isinstance(optimizer, Recipe):
        # One that cannot be called so is refused later, with its reason.
        with contextlib.suppress(TypeError, AttributeError, ValueError, KeyError):
            params, state = _shapes_for_optimizer(task, student)
            name = f"optimizer, as jax {jax.__version__} traces it,"
            texts[name] = _traced(task.optimizer.update, params, state, params)
    return {name: hashlib.sha256(text).hexdigest()[:16] for name, text in texts.items() if text}


def _sources(thing: Any) -> Iterator[str]:
    """The source code that the user wrote of an object: of its class, and of functions in it."""
    if isinstance(thing, functools.partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _sources(part)
        return
    code = thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)
    if not (getattr(code, "__module__", None) or "").startswith(("jaxkd.", "jax.", "flax.")):
        with contextlib.suppress(OSError, TypeError):  # no source
            yield inspect.getsource(code)
        closed = inspect.getclosurevars(code).nonlocals.values() if inspect.isfunction(code) else ()
        yield from (describe_object(value) for value in closed if isinstance(value, str | int | float))
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name, None)
            for part in value if isinstance(value, tuple) else (value,):
                if callable(part) and field.name != "parent":
                    yield from _sources(part)


def fingerprint(
    task: Task,
    state: TrainState,
    constants: Mapping[str, Any],
    teacher: Any,
    image_shape: tuple[int, int, int],
    *,
    own_teacher: bool,
) -> str:
    """A hash of what a run's functions compute, as they are traced now.

    Compiled programs are kept by their tasks.  Two tasks may be equal though a user's function has changed:
    it may read a global value, or call another function.

    Args:
      task: the run's constants.
      state: the state at step 0; only its shapes matter.
      constants: the method's, by name.
      teacher: the teacher's variables.
      image_shape: height, width, channels.
      own_teacher: whether the teacher is a user's, and runs in the step.

    Raises:
      TypeError: the optimizer cannot be called as the step calls it.
    """
    key, where = jax.random.key(0), jax.ShapeDtypeStruct((2,), jnp.bool_)
    image = jax.ShapeDtypeStruct(image_shape, jnp.uint8)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    student = {"params": state.params["student"], **state.network}
    method = {"params": state.params["method"], **state.method, **Frozen(constants=constants).collections}
    inputs = task.example_inputs(student, teacher, image_shape)
    digest = hashlib.sha256()

    def add(function: Callable[..., Any], *arguments: Any) -> None:
        digest.update(_traced(function, *arguments))

    def step_of_method(v: Any, x: Any, key: jax.Array) -> Any:
        return task.method.apply(v, x, mutable=list(state.method), rngs={"sample": key, "dropout": key})

    def step_of_student(v: Any, x: Any, where: Any, key: jax.Array) -> Any:
        return task.student.on_axis(None).apply(v, x, train=True, where=where, rngs={"dropout": key})

    add(step_of_method, method, inputs, key)
    for _, shown in task.augmentations:
        add(lambda key, image, one=shown: one(key, image), key, image)
    if task.student.forward.describe():  # not one of the package's
        add(step_of_student, student, images, where, key)
        add(lambda v, x: task.student.apply(v, x), student, images)
    if own_teacher and task.teacher is not None:
        add(task.teacher.apply, teacher, images)
    try:
        add(lambda *step: task.optimizer.update(*step), state.params, state.opt_state, state.params)
    except (TypeError, AttributeError) as error:
        raise TypeError(
            "the optimizer must be called as update(gradients, state, params), with params a dictionary of "
            f"arrays like those that init got; {type(error).__name__}: {error}"
        ) from error
    return digest.hexdigest()


def _traced(function: Callable[..., Any], *arguments: Any) -> bytes:
    """What a function computes, as it is traced for arguments of these shapes: its text and its constants."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    made = jax.make_jaxpr(function)(*shapes)
    parts = [describe_object(made.jaxpr).encode()]
    for constant in made.consts:
        is_key = jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
        parts.append(np.asarray(jax.random.key_data(constant) if is_key else constant).tobytes())
    return b"".join(parts)


def require_logits(network: models.Network, variables: Any, dataset: data.Dataset) -> None:
    """Raises ValueError unless a student returns one logit for each class of a dataset.

    Args:
      network: the student.
      variables: its variables, or their shapes.
      dataset: the run's data.
    """
    outputs = network.output_shapes(variables, dataset.image_shape, 2)
    if outputs.logits.shape != (2, dataset.num_classes):
        raise ValueError(
            f"student {network.name} must return logits [B, {dataset.num_classes}] for {dataset.name}, "
            f"got [B, {', '.join(map(str, outputs.logits.shape[1:]))}]"
        )
