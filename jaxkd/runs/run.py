"""The functions `jaxkd.train` and `jaxkd.distill`: from names or objects to a result."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import data, methods, metrics, models, teachers
from jaxkd._names import kind
from jaxkd.cache.compute import Filler, FillProgress, cacheable_split
from jaxkd.cache.source import LIVE, CachedLogits, find_cache, why_not
from jaxkd.cpu import release_memory
from jaxkd.data.augment import MAIN, Augmentation, as_views
from jaxkd.data.collection import HELD_OUT
from jaxkd.devices import choose_devices, share
from jaxkd.files.places import is_remote
from jaxkd.methods import Method
from jaxkd.models.network import AXIS
from jaxkd.progress import Lasting, Say, print_line
from jaxkd.runs import processes
from jaxkd.runs.announce import announce, cost
from jaxkd.runs.checkpoint import describe_newest, saved_steps
from jaxkd.runs.config import DistillConfig, RunConfig, TrainConfig
from jaxkd.runs.fork import graft, open_fork
from jaxkd.runs.identity import OF_RECIPE, as_json, fingerprint, identify, require_logits, sources
from jaxkd.runs.loop import Evaluator, Loop
from jaxkd.runs.record import Result
from jaxkd.runs.watching import Log, log_to_wandb
from jaxkd.signals import Stopped, StopRequest
from jaxkd.training import Frozen, Named, Recipe, Task, TrainState, initial_state
from jaxkd.training.optimizers import as_transformation

Optimizer: TypeAlias = optax.GradientTransformation | Mapping[str, optax.GradientTransformation] | Named


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a run, with names resolved.

    Attributes:
      network: the student, before its normalisation is set.
      method: defines the loss.
      dataset: with the splits "train" and "test".
      teacher: None for a method that reads nothing.
      optimizer: a user's own; None for the one in the options.
      augmentation: a user's own, or a mapping by view; None for the dataset's.
      on_log: called at each log point with the named values and the step.
      objects: the arguments that were passed as objects.
    """

    network: models.Network
    method: Method
    dataset: data.Dataset
    teacher: teachers.Teacher | None = None
    optimizer: Optimizer | None = None
    augmentation: Any = None
    on_log: Log | None = None
    objects: tuple[str, ...] = ()


def train(
    config: TrainConfig | None = None,
    data: str | Path | data.Dataset | None = None,
    *,
    model: models.Like | None = None,
    optimizer: str | Optimizer | None = None,
    augmentation: Augmentation | None = None,
    on_log: Log | None = None,
    say: Say = print_line,
    **options: Any,
) -> Result:
    """Trains a network on labels only.

    Args:
      config: the options; or pass them by keyword.
      data: the name of a dataset, the path of an `.npz` file, or a `Dataset`.
      model: the name of a model, a Flax Linen module, an NNX module (or a function that creates one), or a
        `Network`.
      optimizer: the name of an optimiser, an optax transformation, several by label (see
        `training.by_label`), or one of these with its own name (`training.Named`).
      augmentation: for training images; by default the dataset's.
      on_log: called at each log point with the named values ("train/loss") and the step.
      say: callback for progress, one line at a time.
      **options: the fields of `TrainConfig`: epochs, batch_size, seed, run, ...

    Returns:
      The contents of `result.json`.  The network is in the run's folder `model`, ready to be a teacher.  For
      several seeds: mean and standard deviation, and the results in `runs`.

    Raises:
      Stopped: a signal arrived; a checkpoint was saved, and the same call resumes.
      ValueError: the options contradict each other, the data, or the existing run.
      NonFiniteError: a loss, an update or the teacher's output was NaN or infinite.
    """
    named, objects = names_and_objects(model=model, data=data, optimizer=optimizer)
    config = options_of_call(TrainConfig, config, {**named, **options}, objects)
    return _run(
        config,
        network=objects.get("model", config.model),
        method=methods.create("labels"),
        teacher=None,
        objects=objects,
        augmentation=augmentation,
        on_log=on_log,
        say=say,
    )


def distill(
    config: DistillConfig | None = None,
    data: str | Path | data.Dataset | None = None,
    *,
    teacher: str | Path | teachers.Teacher | None = None,
    student: models.Like | None = None,
    method: str | Method | None = None,
    optimizer: str | Optimizer | None = None,
    augmentation: Augmentation | Mapping[str, Augmentation] | None = None,
    on_log: Log | None = None,
    say: Say = print_line,
    **options: Any,
) -> Result:
    """Distils a teacher into a student.

    Args:
      config: the options; or pass them by keyword.
      data: as for `train`.
      teacher: a name, a folder, or a `Teacher` (see `teachers.from_function`).
      student: like `model` of `train`.
      method: a name, or a `Method`; see `methods.from_function` for plain functions.
      optimizer: as for `train`; the labels are "student" and "method".
      augmentation: for the view "main", or a mapping from the method's views to augmentations.
      on_log: as for `train`.
      say: callback for progress, one line at a time.
      **options: the fields of `DistillConfig`: epochs, batch_size, seed, run, ...

    Returns:
      As for `train`.

    Raises:
      Stopped, ValueError, NonFiniteError: as for `train`; ValueError also if the teacher does not fit the
        data.
    """
    named, objects = names_and_objects(
        teacher=teacher, student=student, data=data, method=method, optimizer=optimizer
    )
    config = options_of_call(DistillConfig, config, {**named, **options}, objects)
    if "method" in objects and config.method_options:
        raise ValueError(
            f"method_options={config.method_options} would have no effect beside a method that is made; give "
            "them to methods.create"
        )
    processes.join(config, say)
    made = objects.get("method") or methods.create(config.method, **config.method_options)
    known = objects.get("teacher") or (teachers.load(config.teacher) if made.reads else None)
    if known is not None and config.teacher_size is not None:
        known = known.at_size(config.teacher_size)
    return _run(
        config,
        network=objects.get("student", config.student),
        method=made,
        teacher=known,
        objects=objects,
        augmentation=augmentation,
        on_log=on_log,
        say=say,
    )


def evaluate(
    teacher: teachers.Teacher | str | Path,
    dataset: data.Dataset,
    *,
    split: str = "test",
    batch_size: int = 256,
    devices: int | None = None,
) -> dict[str, float]:
    """Evaluates a network on exactly all examples of a split.

    Args:
      teacher: a teacher, or its name or folder.
      dataset: with that split (see `data.load`).
      split: the split's name.
      batch_size: over all devices.
      devices: number of local devices; all by default.

    Returns:
      `accuracy` and `accuracy_top5` in percent, `ce` (cross-entropy) in nats.

    Raises:
      ValueError: the network does not fit the data.
      TypeError: an argument is something else.
    """
    given: Any = dataset
    if not isinstance(given, data.Dataset):
        raise TypeError(f"dataset must be a Dataset, as from data.load(name), got {kind(given)}")
    if not isinstance(teacher, teachers.Teacher):
        teacher = teachers.load(teacher)
    if split not in dataset.splits:
        raise ValueError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    teacher.require_fit(dataset)
    network, variables = teacher.frozen
    evaluator = Evaluator(network, None, dataset.splits[split], batch_size, choose_devices(devices))
    return evaluator((variables, {}))


def names_and_objects(**arguments: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Separates arguments that are names, or paths of data and teachers, from those that are objects.

    Raises:
      TypeError: an object is of a type that the argument does not accept.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in given.keys() & {"data", "teacher"}:
        given[name] = str(given[name]) if isinstance(given[name], Path) else given[name]
    named = {name: value for name, value in given.items() if isinstance(value, str)}
    objects = {name: value for name, value in given.items() if name not in named}
    for name, (wanted, maker) in _MAKERS.items():
        if name in objects and not isinstance(objects[name], wanted):
            raise TypeError(
                f"{name} must be a name or a {wanted.__name__}, got {kind(objects[name])}; {maker} makes one"
            )
    return named, objects


_MAKERS: dict[str, tuple[type, str]] = {
    "data": (data.Dataset, "data.from_arrays"),
    "method": (Method, "methods.from_function"),
    "teacher": (teachers.Teacher, "teachers.from_network or teachers.from_function"),
}


def options_of_call(command: Any, config: Any, named: dict[str, Any], objects: Mapping[str, Any]) -> Any:
    """The options of a call; objects are represented by their names."""
    known = {field.name for field in dataclasses.fields(command)}
    if unknown := sorted(named.keys() - known):
        raise TypeError(f"unknown options: {', '.join(unknown)}; accepted: {', '.join(sorted(known))}")
    names = {name: _name(thing) for name, thing in objects.items() if name in known and name != "optimizer"}
    both = {**names, **named}
    if config is None:
        if command is DistillConfig and "teacher" not in both:
            method = objects.get("method")
            if method is None or method.reads:
                raise TypeError("distill needs teacher=: a name, a folder, or a Teacher")
            both["teacher"] = "none"
        return command(**both)
    if not isinstance(config, command):
        raise TypeError(
            f"the first argument must be a {command.__name__}, got {type(config).__name__}; "
            "other things are given by keyword, such as data="
        )
    return dataclasses.replace(config, **both)


def _name(thing: Any) -> str:
    if isinstance(thing, Method):
        return methods.title(thing)
    name = getattr(thing, "name", None)
    return name if isinstance(name, str) else getattr(thing, "__name__", type(thing).__name__)


def _run(
    config: RunConfig,
    *,
    network: Any,
    method: Method,
    teacher: teachers.Teacher | None,
    objects: Mapping[str, Any],
    augmentation: Any,
    on_log: Log | None,
    say: Say,
) -> Result:
    """One run or several, after checking what all of them need."""
    for name, called in {"on_log": on_log, "say": say}.items():
        if not (callable(called) or (called is None and name == "on_log")):
            raise TypeError(f"{name} must be a function, got {kind(called)}")
    processes.join(config, say)
    if not processes.is_first():
        say = lambda _: None  # noqa: E731
    with processes.peers_needed():
        # Before anything else, since it determines the messages that follow.  Also, Gloo waits for the very
        # first message for at most 30 seconds, and reading the data may take one process longer.
        processes.require_same({"command": type(config).__name__, "seeds": config.seeds})
    devices = devices_of(config)
    if objects.get("optimizer") is None:
        config.recipe(1, 1).transformation()  # reports unknown names before the data are read
    elif unused := sorted(name for name in OF_RECIPE if getattr(config, name) != getattr(type(config), name)):
        raise ValueError(
            f"{', '.join(unused)} would have no effect beside an own optimizer; put it into that, and "
            "leave the option out"
        )
    own = augmentation is not None and (not isinstance(augmentation, Mapping) or MAIN in augmentation)
    changes = [name for name in ("crop_padding", "flip") if getattr(config, name) is not None]
    if changes and (own or MAIN not in method.views):
        raise ValueError(
            f"{', '.join(changes)} would have no effect, since the data's own augmentation is not used; "
            "leave it out"
        )
    if isinstance(network, str):
        models.create(network)
    dataset = config.load(given=objects.get("data"))
    if config.workers and not config.stream and isinstance(dataset.splits["train"], data.Split):
        raise ValueError(
            f"--workers {config.workers} read images that are streamed, and those of {dataset.name} are in "
            "memory; leave it out, or stream them with --stream"
        )
    if teacher is not None:
        teacher.require_fit(dataset)
    passed = (*objects, *(["augmentation"] if augmentation is not None else []))
    parts = Parts(
        network=models.as_network(network, dataset.num_classes, dtype=jnp.dtype(config.precision)),
        method=method,
        dataset=dataset,
        teacher=teacher,
        optimizer=objects.get("optimizer"),
        augmentation=augmentation,
        on_log=on_log,
        objects=passed,
    )
    runs = []
    for each in config.each_seed():
        try:
            runs.append(_fit(each, parts, devices, say))
        except Exception as error:
            if config.seeds > 1:
                error.add_note(f"in the run of seed {each.seed}, {each.folder}")
            raise
    return runs[0] if config.seeds == 1 else _of_seeds(runs, say)


def devices_of(config: RunConfig) -> list[jax.Device]:
    """A run's devices.

    Raises:
      ValueError: they cannot share its batches equally.
    """
    devices = choose_devices(config.devices)
    share(np.zeros(config.batch_size, np.int32), len(devices), config.accumulate)
    return devices


def _of_seeds(runs: list[Result], say: Say) -> Result:
    """The result of several runs that differ only in the seed."""
    accuracies = [run["last_accuracy"] for run in runs]
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    about = f"last accuracy {mean:.2f} +- {deviation:.2f} % (mean and standard deviation)"
    say(Lasting(f"{len(runs)} seeds: {about}"))
    return Result(
        {
            "seeds": [run["seed"] for run in runs],
            "last_accuracy": mean,
            "last_accuracy_deviation": deviation,
            "runs": runs,
        }
    )


def _fit(config: RunConfig, parts: Parts, devices: list[jax.Device], say: Say) -> Result:
    """One run."""
    folder, dataset, teacher = config.folder, parts.dataset, parts.teacher
    task, recipe = make_task(config, parts)
    student = jax.eval_shape(lambda: task.student.init(0, dataset.image_shape))
    require_logits(task.student, student, dataset)
    saved_as = _describe_student(task, parts)  # now, since hours later would be too late
    with contextlib.ExitStack() as stack:
        stack.callback(release_memory)
        stack.enter_context(processes.peers_needed())
        record = stack.enter_context(contextlib.closing(processes.open_record(folder)))
        before = (record.identity() or {}).get("teacher_logits")
        cached, logits_from = None, before or LIVE
        if isinstance(config, DistillConfig) and teacher is not None and record.result() is None:
            cached = _cached_logits(config, task, dataset, teacher, devices, before, say)
            logits_from = LIVE if cached is None else cached.cache.dtype
        identity = identify(
            config,
            task,
            dataset,
            student,
            recipe or parts.optimizer,
            teacher,
            teacher_logits=logits_from,
            num_devices=len(devices),
        )
        variables = teacher.frozen[1] if teacher else None
        constants = dict(parts.method.constants(teacher, task.student, dataset)) if teacher else {}
        start = functools.partial(
            initial_state, task, dataset.image_shape, teacher=variables, constants=constants
        )
        forked = None
        if config.fork is not None:
            identity["forked_from"], found = open_fork(config.fork, folder)
            if found is not None:
                forked = graft(found, start(), identity, task)
        codes = sources(task, student, recipe or parts.optimizer)
        notes = record.open(config.as_dict(), identity, devices, objects=list(parts.objects), sources=codes)
        for note in notes:
            say(f"note: {note}")
        if (done := record.result()) is not None:
            say(Lasting(f"{folder} is done already: last accuracy {done['last_accuracy']:.2f} %"))
            return Result(done)
        checkpoints = processes.open_checkpoints(folder / "checkpoints", identity, record.config)
        state = start()
        size = dataset.num_classes, dataset.image_shape
        learned_from = ""
        if teacher is not None:
            seen = teacher.input_shape if teacher.resize else dataset.image_shape
            learned_from = f" from {teacher.name}, {cost(teacher.description.model, size[0], seen)},"
        if cached is not None:
            learned_from += f" its logits from {cached.cache.folder} ({cached.cache.dtype}),"
        say(
            f"{folder}: {cost(task.student.name, *size)}{learned_from} on {dataset.name}, "
            f"{len(dataset.splits['train']):,} images; {task.num_epochs} epochs of "
            f"{task.steps_per_epoch} steps"
        )
        frozen = Frozen(None if cached else variables, constants)
        about: dict[str, Any] = {"recipe": recipe, "config": config, "devices": devices}
        for line in announce(task, dataset, state, frozen.teacher, **about):
            say(line)
        if processes.is_first():
            if config.wandb is not None:
                record.also(log_to_wandb(config.wandb, folder, config.as_dict(), local=record.local))
            if parts.on_log is not None:
                record.also(parts.on_log)
        if parts.objects:
            own = teacher is not None and teacher.forward is not None and cached is None
            code = fingerprint(task, state, constants, variables, dataset.image_shape, own_teacher=own)
            task = dataclasses.replace(task, code=code)
        if forked is not None:
            say(f"starting from step {checkpoints.save(forked)} of {config.fork}")
        stop = stack.enter_context(StopRequest())
        stack.enter_context(_saying_what_is_saved(folder / "checkpoints"))
        loop = Loop(
            task,
            dataset,
            config=config,
            devices=devices,
            record=record,
            checkpoints=checkpoints,
            rate=recipe.rate if recipe else None,
            stop=stop,
            cached=cached,
            say=say,
        )
        stack.callback(loop.close)
        state = loop.run(state, frozen)

        tests = record.lines("test")
        if processes.is_first():
            if config.holdout is None:  # otherwise it is not that of the test split
                saved_as = dataclasses.replace(saved_as, test_accuracy=tests[-1]["accuracy"])
            _save_student(folder / "model", state, frozen, task, saved_as)
        best = max(tests, key=lambda line: line["accuracy"])
        result = Result(
            {
                "model": task.student.name,
                "parameters": _parameters(state, task.method),
                "data": dataset.name,
                "test_examples": len(dataset.splits["test"]),
                "epochs": task.num_epochs,
                "seed": task.seed,
                "last_accuracy": tests[-1]["accuracy"],
                "best_accuracy": best["accuracy"],
                "best_epoch": best["epoch"],
                "last_ce": tests[-1]["ce"],
                "method": methods.title(task.method),
                **_about(teacher),
                # Both of the last epoch's training.
                "losses": metrics.numbers(state.tally.losses),
                "metrics": {name: metric.describe() for name, metric in state.tally.metrics.items()},
                # Of this process alone, if the run was resumed; None if nothing was left to train.
                "images_per_second": round(loop.stopwatch.images_per_second(), 1) or None,
                "seconds": {name: round(value, 2) for name, value in loop.stopwatch.seconds.items()},
            }
        )
        record.finish(result)
    last = f"last accuracy {tests[-1]['accuracy']:.2f} % (best {best['accuracy']:.2f} %)"
    say(Lasting(f"{folder}: done, {last}"))
    with processes.peers_needed():
        signal_name = processes.agreed_signal(stop.signal_name)
    if signal_name:
        raise Stopped(f"{signal_name} came while {folder} was finishing; it is done")
    return result


def _parameters(state: TrainState, method: Method) -> int:
    """Number of parameters used for predictions: the student's, and the method's if it predicts itself."""
    answering = state.params if methods.predicts_itself(method) else state.params["student"]
    return sum(leaf.size for leaf in jax.tree.leaves(answering))


def _about(teacher: teachers.Teacher | None) -> dict[str, Any]:
    """A result's entries about the teacher."""
    if teacher is None:
        return {}
    known = teacher.description
    return {
        "teacher": teacher.name,
        "teacher_model": known.model,
        "teacher_accuracy": known.test_accuracy,
    }


@contextlib.contextmanager
def _saying_what_is_saved(checkpoints: Path) -> Iterator[None]:
    """Adds the newest checkpoint to the message of a disk failure."""
    try:
        yield
    except OSError as error:
        saved = "earlier checkpoints are intact"  # a failing store is not queried
        if not is_remote(checkpoints):
            saved = describe_newest(max(saved_steps(checkpoints), default=None))
        raise OSError(f"{error}; {saved}. When that is fixed, the same command resumes") from error


def make_task(config: RunConfig, parts: Parts) -> tuple[Task, Recipe | None]:
    """The constants of a run, and its optimiser's recipe; None for a user's own optimiser.

    Raises:
      ValueError: an augmentation is for a view that the method does not have.
    """
    dataset, teacher, method = parts.dataset, parts.teacher, parts.method
    steps_per_epoch = -(-len(dataset.splits["train"]) // config.batch_size)
    recipe = None
    if parts.optimizer is None:
        recipe = config.recipe(config.num_epochs, steps_per_epoch)
        optimizer = recipe.transformation()
    else:
        optimizer = as_transformation(parts.optimizer)
    own = config.augmentation(dataset)
    views = as_views(parts.augmentation, method.views, own, dataset.image_shape, method.augmentation)
    network = parts.network.normalized(dataset.mean, dataset.std)
    task = Task(
        student=network.on_axis(AXIS if config.batch_norm == "global" else None),
        teacher=teacher.frozen[0] if teacher and method.reads else None,
        method=method,
        optimizer=optimizer,
        augmentations=tuple(views.items()),
        seed=config.seed,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        accumulate=config.accumulate,
        # A user's network may keep any collections: their values may differ between devices.
        average=config.batch_norm == "device" or bool({"model", "student"} & set(parts.objects)),
        ema=config.ema,
    )
    return task, recipe


def _cached_logits(
    config: DistillConfig,
    task: Task,
    dataset: data.Dataset,
    teacher: teachers.Teacher,
    devices: list[jax.Device],
    before: str | None,
    say: Say,
) -> CachedLogits | None:
    """The teacher's logits from a cache, if there is one for this run and it should be used."""
    if (reason := why_not(task, dataset)) is not None:
        if config.cache not in ("auto", "off"):
            raise ValueError(f"--cache {config.cache} cannot be used: {reason}; train with --cache off")
        return None
    augmentation: Any = dict(task.augmentations)["main"]
    pooled = "pooled" in task.method.reads
    cache = find_cache(
        config.cache,
        teacher,
        dataset,
        augmentation,
        seed=task.seed,
        num_epochs=task.num_epochs,
        before=before,
        pooled=pooled,
        say=say,
    )
    if cache is None:
        return None
    split, fill = cacheable_split(dataset), None
    if config.cache == "fill":
        filler = Filler(cache, *teacher.frozen, split, augmentation, devices=devices, patient=True)
        fill = functools.partial(filler, progress=FillProgress(say))
    return CachedLogits(cache, len(split), augmentation, seed=task.seed, pooled=pooled, fill=fill)


def _save_student(
    folder: Path, state: TrainState, frozen: Frozen, task: Task, about: teachers.Description
) -> None:
    """Saves the trained network, and the method if it predicts itself, as a teacher for other runs."""
    variables: dict[str, Any] = state.student
    if methods.predicts_itself(task.method):
        _, own = methods.answering_part(task.method, {**state.method_variables, **frozen.collections})
        variables = {"student": variables, "method": own}
    teachers.save(folder, jax.device_get(variables), about)


def _describe_student(task: Task, parts: Parts) -> teachers.Description:
    """The description of the network that a run saves, without its accuracy.

    Raises:
      ValueError: it cannot be saved: the normalisation has another number of channels than the images, or a
        method that predicts has an option that is no JSON.
    """
    answers: dict[str, Any] = {}
    if methods.predicts_itself(task.method):
        part, _ = methods.answering_part(task.method, {})
        options = {name: as_json(value) for name, value in methods.options(part).items()}
        answers = {"name": methods.title(part), "options": options}
    source = "trained on labels"
    if parts.teacher is not None:
        about = f"{methods.title(task.method)} {methods.options(task.method)}"
        source = f"distilled from {parts.teacher.name} with {about}"
    source += f", {task.num_epochs} epochs, seed {task.seed}"
    mean, std = task.student.mean, task.student.std
    assert mean is not None, "`normalized` gives it"
    assert std is not None
    described = teachers.Description(
        model=task.student.name,
        num_classes=parts.dataset.num_classes,
        image_shape=parts.dataset.image_shape,
        mean=mean,
        std=std,
        data=parts.dataset.name.removesuffix(HELD_OUT),
        source=source,
        own=bool({"model", "student"} & set(parts.objects)),
        method=answers,
    )
    plain = json.dumps(dataclasses.asdict(described), default=float)  # NumPy's numbers are Python's there
    return teachers.Description.from_json(json.loads(plain))
