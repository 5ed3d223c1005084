"""What the commands `train`, `distill` and `evaluate` do: from a configuration to a result."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import data, methods, models, teachers
from jaxkd.config import DistillConfig, RunConfig, TrainConfig
from jaxkd.methods import Method, Progress
from jaxkd.signals import Stopped, StopRequest
from jaxkd.training import distributed
from jaxkd.training.announce import announce, cost
from jaxkd.training.cached import LIVE, CachedLogits, find_cache
from jaxkd.training.checkpoint import describe_newest, saved_steps
from jaxkd.training.fork import graft, open_fork
from jaxkd.training.loop import Evaluator, Loop, Say, summarize
from jaxkd.training.loss_scale import LossScale
from jaxkd.training.optimizer import learning_rate_schedule, sgd
from jaxkd.training.parallel import choose_devices, share
from jaxkd.training.precompute import Filler, FillProgress, cacheable_split
from jaxkd.training.side_by_side import choose_places, side_by_side
from jaxkd.training.state import TEMPERATURE_EDGES, TrainState, empty_tally
from jaxkd.training.step import AXIS, Network, Task
from jaxkd.training.watching import log_to_wandb

Run = TrainConfig | DistillConfig


def print_line(text: str) -> None:
    """Where progress goes unless told otherwise."""
    print(text, flush=True)


def train(
    config: TrainConfig, dataset: data.Dataset | None = None, *, say: Say = print_line
) -> dict[str, Any]:
    """Trains a network on labels alone.

    Args:
      config: what to do.
      dataset: instead of loading `config.data`, which then says nothing but the default number of epochs and
        the default folder's name.
      say: where progress goes, a line at a time.

    Returns:
      What `result.json` holds; the trained network lies in the run's folder `model`, ready to be a teacher.
      Of several seeds, mean and deviation, and the results in `runs`.

    Raises:
      Stopped: a signal came; a checkpoint was saved, and the same call goes on.
      ValueError: the configuration contradicts itself, the data, or the run that is there.
    """
    distributed.join(config, say)
    return _run(config, config.model, None, None, dataset, say)


def distill(
    config: DistillConfig,
    dataset: data.Dataset | None = None,
    *,
    teacher: teachers.Teacher | None = None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Distils a teacher into a student.

    Args and errors are those of `train`; besides, `teacher` may be given instead of loading `config.teacher`
    (see `teachers.from_function`), and ValueError is raised if the teacher does not fit the data.

    Returns:
      What `result.json` holds; the student lies in the run's folder `model`. Of several seeds, mean and
      deviation, and the results in `runs`.
    """
    distributed.join(config, say)
    teacher = teacher or teachers.load(config.teacher)
    method = methods.create(config.method, **config.method_options())
    return _run(config, config.student, teacher, method, dataset, say)


def evaluate(
    teacher: teachers.Teacher,
    dataset: data.Dataset,
    *,
    split: str = "test",
    batch_size: int = 256,
    devices: int | None = None,
) -> dict[str, float]:
    """Evaluates a network on exactly all examples of a split.

    Args:
      teacher: what `teachers.load` returned.
      dataset: with that split.
      split: its name.
      batch_size: over all devices.
      devices: how many local devices to use; all by default.

    Returns:
      `accuracy` and `accuracy_top5` in percent, `ce` (cross-entropy) in nats.

    Raises:
      ValueError: the network does not fit the data.
    """
    require_fit(teacher, dataset)
    evaluator = Evaluator(frozen_network(teacher), dataset.splits[split], batch_size, choose_devices(devices))
    return evaluator(teacher.frozen[1])


def _run(
    config: Run,
    model_name: str,
    teacher: teachers.Teacher | None,
    method: Method | None,
    dataset: data.Dataset | None,
    say: Say,
) -> dict[str, Any]:
    """One run or several, after a look at what all of them need."""
    if not distributed.is_first():
        say = lambda _: None  # noqa: E731
    with distributed.peers_needed():
        # Before anything else: it decides on which messages follow.  Besides, Gloo waits for the first of all
        # messages for no more than 30 seconds, and reading the data may take one process longer.
        distributed.require_same({"command": type(config).__name__, "seeds": config.seeds})
    places = choose_places(config)
    share(np.zeros(config.batch_size, np.int32), len(places[0]), config.accumulate)
    models.create(model_name)  # an unknown name is told before the data are read
    dataset = dataset or data.load(config.data, data_dir=config.data_dir)
    if teacher is not None:
        require_fit(teacher, dataset)

    def fit(
        each: Run, devices: list[jax.Device], say: Say = say, stop: StopRequest | None = None
    ) -> dict[str, Any]:
        return _fit(each, model_name, teacher, method, dataset, devices, say, stop)

    configs: list[Run] = [*config.each_seed()]
    if len(places) == 1:
        runs = [fit(each, places[0]) for each in configs]
    else:
        # Both are worked out at their first use: that is here, and not in several threads at once.
        _ = dataset.digest, teacher and teacher.frozen
        runs = side_by_side(fit, configs, places, say)
    return runs[0] if config.seeds == 1 else _of_seeds(runs, say)


def _of_seeds(runs: list[dict[str, Any]], say: Say) -> dict[str, Any]:
    """The result of several runs that differ in the seed."""
    accuracies = [run["last_accuracy"] for run in runs]
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    say(f"{len(runs)} seeds: last accuracy {mean:.2f} +- {deviation:.2f} % (mean and standard deviation)")
    return {
        "seeds": [run["seed"] for run in runs],
        "last_accuracy": mean,
        "last_accuracy_deviation": deviation,
        "runs": runs,
    }


def _fit(
    config: Run,
    model_name: str,
    teacher: teachers.Teacher | None,
    method: Method | None,
    dataset: data.Dataset,
    devices: list[jax.Device],
    say: Say,
    stop: StopRequest | None,
) -> dict[str, Any]:
    """One run on `devices`; `stop` is that of several runs, whose caller looks at it; by default its own."""
    folder = config.folder
    task = _task(config, model_name, dataset, teacher, method)
    teacher_variables = teacher.frozen[1] if teacher else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.peers_needed())
        record = stack.enter_context(contextlib.closing(distributed.open_record(folder)))
        before = (record.identity() or {}).get("teacher_logits")
        cached, logits_from = None, before or LIVE
        if isinstance(config, DistillConfig) and teacher is not None and record.result() is None:
            cached = _cached_logits(config, task, dataset, teacher, devices, before, say)
            logits_from = LIVE if cached is None else cached.cache.dtype
        identity = _identity(config, task, dataset, teacher, logits_from, len(devices))
        forked = None
        if config.fork is not None:
            identity["forked_from"], found = open_fork(config.fork, folder)
            if found is not None:
                forked = graft(found, initial_state(task, dataset, teacher_variables), identity, task)
        record.open(config.as_dict(), identity, devices)
        if (result := record.result()) is not None:
            say(f"{folder} is done already: last accuracy {result['last_accuracy']:.2f} %")
            return result
        checkpoints = distributed.open_checkpoints(folder / "checkpoints", identity)
        state = initial_state(task, dataset, teacher_variables)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params["student"]))
        size = dataset.num_classes, dataset.image_shape
        learned_from = f" from {teacher.name}, {cost(teacher.description.model, *size)}," if teacher else ""
        if cached is not None:
            learned_from += f" its logits from {cached.cache.folder} ({cached.cache.dtype}),"
        say(
            f"{folder}: {cost(model_name, *size)}{learned_from} on {dataset.name}, "
            f"{len(dataset.splits['train']):,} images; {task.num_epochs} epochs of "
            f"{task.steps_per_epoch} steps"
        )
        placed = None if cached else teacher_variables
        for line in announce(task, dataset, state, placed, config=config, devices=devices):
            say(line)
        if config.wandb is not None and distributed.is_first():
            record.also(log_to_wandb(config.wandb, folder, config.as_dict()))
        if forked is not None:
            say(f"starting from step {checkpoints.save(forked)} of {config.fork}")
        asked = stop or stack.enter_context(StopRequest())
        stack.enter_context(_saying_what_is_saved(folder / "checkpoints"))
        loop = Loop(
            task,
            dataset,
            config=config,
            devices=devices,
            record=record,
            checkpoints=checkpoints,
            schedule=_schedule(config, task.steps_per_epoch),
            stop=asked,
            cached=cached,
            say=say,
        )
        stack.callback(loop.close)
        state = loop.run(state, placed)

        tests = record.lines("test")
        if distributed.is_first():
            accuracy = tests[-1]["accuracy"]
            _save_student(folder / "model", state, task, model_name, dataset, teacher, accuracy)
        best = max(tests, key=lambda line: line["accuracy"])
        result = {
            "model": model_name,
            "parameters": parameters,
            "data": dataset.name,
            "test_examples": len(dataset.splits["test"]),
            "epochs": task.num_epochs,
            "seed": task.seed,
            "last_accuracy": tests[-1]["accuracy"],
            "best_accuracy": best["accuracy"],
            "best_epoch": best["epoch"],
            "last_ce": tests[-1]["ce"],
            **_method_result(teacher, method, state.tally),
            # Of this process alone, if the run was resumed; None if nothing was left to train.
            "images_per_second": round(loop.stopwatch.images_per_second(), 1) or None,
            "seconds": {name: round(value, 2) for name, value in loop.stopwatch.seconds.items()},
        }
        record.finish(result)
    say(f"{folder}: done, last accuracy {tests[-1]['accuracy']:.2f} % (best {best['accuracy']:.2f} %)")
    if stop is None:
        with distributed.peers_needed():
            signal_name = distributed.agreed_signal(asked.signal_name)
        if signal_name:
            raise Stopped(f"{signal_name} came while {folder} was finishing; it is done")
    return result


@contextlib.contextmanager
def _saying_what_is_saved(checkpoints: Path) -> Iterator[None]:
    """Adds to a failure of the disk what it has not taken."""
    try:
        yield
    except OSError as error:
        newest = max(saved_steps(checkpoints), default=None)
        raise OSError(
            f"{error}; {describe_newest(newest)}. When that is mended, the same command goes on"
        ) from error


def _task(
    config: RunConfig,
    model_name: str,
    dataset: data.Dataset,
    teacher: teachers.Teacher | None,
    method: Method | None,
) -> Task:
    student = models.create(
        model_name,
        dataset.num_classes,
        jnp.dtype(config.precision),
        axis_name=AXIS if config.batch_norm == "global" else None,
    )
    steps_per_epoch = -(-len(dataset.splits["train"]) // config.batch_size)
    return Task(
        student=Network(student, dataset.mean, dataset.std),
        teacher=frozen_network(teacher) if teacher else None,
        method=method,
        optimizer=sgd(
            _schedule(config, steps_per_epoch), momentum=config.momentum, weight_decay=config.weight_decay
        ),
        view=dataset.view.changed(config.crop_padding, config.flip),
        seed=config.seed,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        accumulate=config.accumulate,
        batch_norm=config.batch_norm,
    )


def _schedule(config: RunConfig, steps_per_epoch: int) -> optax.Schedule:
    return learning_rate_schedule(config.learning_rate, config.num_epochs, steps_per_epoch)


def _cached_logits(
    config: DistillConfig,
    task: Task,
    dataset: data.Dataset,
    teacher: teachers.Teacher,
    devices: list[jax.Device],
    before: str | None,
    say: Say,
) -> CachedLogits | None:
    """The teacher's logits from a cache, if there is one for this run and it is wanted."""
    if config.cache == "fill" and jax.process_count() > 1:
        raise ValueError("--cache fill is for one process; make the cache with `jaxkd cache` first")
    cache = find_cache(
        config.cache,
        teacher,
        dataset,
        task.view,
        seed=task.seed,
        num_epochs=task.num_epochs,
        before=before,
        say=say,
    )
    if cache is None:
        return None
    split, fill = cacheable_split(dataset), None
    if config.cache == "fill":
        filler = Filler(cache, frozen_network(teacher), teacher.frozen[1], split, task.view, devices=devices)
        fill = functools.partial(filler, progress=FillProgress(say))
    return CachedLogits(cache, len(split), task.view, seed=task.seed, fill=fill)


def _identity(
    config: RunConfig,
    task: Task,
    dataset: data.Dataset,
    teacher: teachers.Teacher | None,
    logits_from: str,
    num_devices: int,
) -> dict[str, Any]:
    """What decides on the result, resolved: neither a default that changes nor another spelling matters."""
    identity = {
        **config.identity(),
        "data": dataset.name,
        "data_digest": dataset.digest,
        "crop_padding": task.view.padding,
        "flip": task.view.flip,
    }
    if task.batch_norm == "device":  # then, and only then, the number of devices decides on the result
        identity["batch_norm_devices"] = num_devices
    if teacher is not None and task.method is not None:
        known = teacher.description
        identity |= {"teacher_digest": teacher.digest, "teacher_mean": known.mean, "teacher_std": known.std}
        identity |= {"kd_weight": task.method.weight, **methods.options(task.method)}
        # The precision of a cache changes every bit that follows, and so does the cache itself.
        identity["teacher_logits"] = logits_from
    return identity


def _save_student(
    folder: Path,
    state: TrainState,
    task: Task,
    model_name: str,
    dataset: data.Dataset,
    teacher: teachers.Teacher | None,
    accuracy: float,
) -> None:
    """Saves the trained network as a teacher for other runs."""
    source = "trained on labels"
    if teacher is not None and task.method is not None:
        about = f"{type(task.method).__name__} {methods.options(task.method)}"
        source = f"distilled from {teacher.name} with {about}"
    source += f", {task.num_epochs} epochs, seed {task.seed}"
    description = teachers.Description(
        model=model_name,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        data=dataset.name,
        test_accuracy=accuracy,
        source=source,
    )
    variables = {"params": state.params["student"], "batch_stats": state.batch_stats}
    teachers.save(folder, variables, description)


def initial_state(task: Task, dataset: data.Dataset, teacher_variables: Any = None) -> TrainState:
    """The state at step 0: a function of the task's seed; of the teacher, only shapes matter."""
    student = models.initialize(task.student.module, seed=task.seed, image_shape=dataset.image_shape)
    method_variables: dict[str, Any] = {}
    metrics: tuple[str, ...] = ()
    if task.method is not None and task.teacher is not None:
        images = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
        example = (
            jax.eval_shape(task.student.module.apply, student, images),
            jax.eval_shape(task.teacher.module.apply, teacher_variables, images),
            jax.ShapeDtypeStruct((2,), jnp.int32),
        )
        method, progress = task.method, Progress(jnp.ones((), jnp.int32), task.num_epochs)
        key = data.stream_key(task.seed, "method")
        if jax.eval_shape(lambda *seen: method.init(key, *seen, progress), *example):
            # Most methods learn nothing, and this compiles a program for every constant.
            method_variables = dict(method.lazy_init(key, *example, progress))
        _, reported = jax.eval_shape(lambda *seen: method.apply(method_variables, *seen, progress), *example)
        metrics = tuple(reported)
    student_dtype = getattr(task.student.module, "dtype", None)
    params = {"student": student["params"], "method": method_variables.pop("params", {})}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=student["batch_stats"],
        method_state=method_variables,
        opt_state=jax.jit(task.optimizer.init)(params),  # one program, not one for every shape
        tally=empty_tally(metrics),
        loss_scale=LossScale.initial() if student_dtype == jnp.float16 else None,
    )


def frozen_network(teacher: teachers.Teacher) -> Network:
    """A teacher as the steps take it; `teacher.frozen` holds its variables."""
    return Network(teacher.frozen[0], teacher.description.mean, teacher.description.std)


def require_fit(teacher: teachers.Teacher, dataset: data.Dataset) -> None:
    """Raises ValueError, saying what differs, unless a network fits a data set."""
    if teacher.num_classes != dataset.num_classes:
        raise ValueError(
            f"teacher {teacher.name} has {teacher.num_classes} classes and {dataset.name} has "
            f"{dataset.num_classes}; they must be the same: choose a teacher trained on {dataset.name}"
        )
    channels = teacher.description.image_shape[-1]
    if channels != dataset.image_shape[-1]:
        raise ValueError(
            f"teacher {teacher.name} takes images with {channels} channels, and those of {dataset.name} have "
            f"{dataset.image_shape[-1]}; choose a teacher trained on {dataset.name}"
        )


def _method_result(
    teacher: teachers.Teacher | None, method: Method | None, tally: dict[str, Any]
) -> dict[str, Any]:
    """What a result says of the distillation; the temperatures are those of the last epoch's training."""
    if teacher is None or method is None:
        return {"method": "labels only"}
    averages = summarize(tally)
    about: dict[str, Any] = {
        "method": type(method).__name__,
        "teacher": teacher.name,
        "teacher_model": teacher.description.model,
        "teacher_accuracy": teacher.description.test_accuracy,
        "weight": method.weight,
        "ce_weight": method.ce_weight,
        "correlation": averages.get("correlation"),
    }
    if "temperature" in averages:
        histogram = tally["temperature_histogram"]
        used = np.flatnonzero(histogram[1:-1])
        bins = slice(used[0], used[-1] + 1) if used.size else slice(0, 0)
        about["temperature"] = {
            "mean": averages["temperature"],
            **{name: averages[f"temperature_{name}"] for name in ("p5", "p50", "p95")},
            "counts": histogram[1:-1][bins].tolist(),
            "edges": TEMPERATURE_EDGES[bins.start : bins.stop + 1].tolist(),
        }
    return about
