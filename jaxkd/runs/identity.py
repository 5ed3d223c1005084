"""The identity of a run: everything that determines its result, with defaults resolved.

A user's object is identified by its name, its options and the shapes of its variables, not by its code: a
changed function with the same name counts as the same.  `sources` records a hash of the code, so that a
change is at least reported.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import jax

from jaxkd import data, methods, models
from jaxkd._names import describe_object
from jaxkd.runs.config import RunConfig
from jaxkd.teachers import Teacher
from jaxkd.training import Named, Recipe, Task

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


def _prefixed(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    rest = {f"{name}.{key}": value for key, value in about.items() if key != "name"}
    return {name: about["name"], **rest}


def _describe_optimizer(optimizer: Any, task: Task, student: Any) -> dict[str, Any]:
    if isinstance(optimizer, Named):
        return {"optimizer": optimizer.name}
    if isinstance(optimizer, Recipe):
        return {key: value for key, value in dataclasses.asdict(optimizer).items() if key != "total_steps"}
    state = jax.eval_shape(task.optimizer.init, {"student": student.get("params", {}), "method": {}})
    structure = hashlib.sha256(repr(jax.tree.structure(state)).encode()).hexdigest()[:16]
    return {"optimizer": "own", "optimizer.state": structure}


def as_json(value: Any) -> Any:
    """A method's option as JSON; functions and other objects as text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else describe_object(value)


def sources(task: Task) -> dict[str, str]:
    """Hashes of the source code of user methods and networks, if it can be read."""
    found = {}
    things: dict[str, Any] = {"method": task.method, "student": task.student.forward}
    for name, thing in things.items():
        code = _code(thing)
        if code is not None and not (getattr(code, "__module__", None) or "").startswith("jaxkd."):
            text = _source(code)
            if text:
                found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def _code(thing: Any) -> Any:
    """The class or function that the user wrote."""
    for attribute in ("function", "make"):
        if hasattr(thing, attribute):
            return getattr(thing, attribute)
    module = getattr(thing, "module", None)
    return type(thing if module is None else module)


def _source(code: Any) -> str:
    while isinstance(code, functools.partial):
        code = code.func
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return ""


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
