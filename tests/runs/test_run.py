"""Whole runs in this process: evaluation, records, resumption, and what is refused."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import silent

import jaxkd
from jaxkd import data, methods, teachers
from jaxkd.config import DistillConfig, TrainConfig
from jaxkd.files import records
from jaxkd.progress import ProgressLines
from jaxkd.runs import NonFiniteError, Stopped, evaluate
from jaxkd.runs.checkpoint import saved_steps
from jaxkd.runs.config import GeneratorConfig
from jaxkd.runs.loop import _chunks, _pieces
from jaxkd.runs.record import CONFIG
from jaxkd.training.mapped import mapped_train_step


def config(folder: Path, teacher: Path | None = None, **changes: Any) -> Any:
    common = {"run": folder, "epochs": 3, "batch_size": 16, "devices": 1, "log_every": 2, **changes}
    if teacher is None:
        return TrainConfig(model="resnet8", **common)
    return DistillConfig(teacher=str(teacher), student="resnet8", **common)


def lines(folder: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in read]


class StopAt:
    """Says nothing; asks for a stop when a line about a step after `step` would be said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        def trained(_: ProgressLines, __: str, now: int, *___: object) -> None:
            if now == step:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(ProgressLines, "trained", trained)

    def __call__(self, _: str) -> None:
        pass


def test_two_lengths_of_call_are_compiled_at_most() -> None:
    """782 steps an epoch, 25 in a call, from the beginning and resumed anywhere."""
    lengths = {
        len(piece)
        for done in range(782)
        for chunk in _chunks(np.zeros((782 - done, 1)), done, 100)
        for piece in _pieces(chunk, 25)
    }
    assert lengths == {1, 25}
    assert sum(len(chunk) for chunk in _chunks(np.zeros((700, 1)), 82, 100)) == 700


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, dict[str, Any]]]:
    """The folder with a run that was not stopped, and its result, by the steps in a call."""

    @functools.cache
    def run(steps_per_call: int) -> tuple[Path, dict[str, Any]]:
        folder, dataset = tmp_path_factory.mktemp("whole"), helpers.tiny_dataset()
        teacher = helpers.untrained_teacher(folder / "teacher", dataset)
        options = {"steps_per_call": steps_per_call}
        return folder, jaxkd.distill(config(folder / "whole", teacher, **options), dataset, say=silent)

    return run


def test_on_a_cpu_a_step_starts_when_the_one_before_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step that is under way holds memory for its activations."""
    ended = []

    def mapped(*arguments: Any) -> Callable[..., Any]:
        step = mapped_train_step(*arguments)

        def call(state: Any, *rest: Any) -> Any:
            ended.append(state.step.is_ready())
            return step(state, *rest)

        return call

    monkeypatch.setattr("jaxkd.runs.loop.mapped_train_step", mapped)
    jaxkd.train(config(tmp_path / "run"), helpers.tiny_dataset(), say=silent)
    assert ended == 9 * [True]


@pytest.mark.parametrize(
    ("stop_step", "steps_per_call"),
    [(2, 1), (3, 1), (5, 1), (5, 2)],  # inside an epoch, at its end, after it; several steps in a call
)
def test_a_stopped_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_run: Any, stop_step: int, steps_per_call: int
) -> None:
    options = {"steps_per_call": steps_per_call}
    dataset = helpers.tiny_dataset()
    folder, whole = whole_run(steps_per_call)
    teacher = folder / "teacher"
    with (
        monkeypatch.context() as patch,
        pytest.raises(Stopped, match=f"stopped by SIGINT after step {stop_step} of 9"),
    ):
        jaxkd.distill(config(tmp_path / "cut", teacher, **options), dataset, say=StopAt(patch, stop_step))
    assert not (tmp_path / "cut" / "result.json").exists()
    said: list[str] = []
    resumed = jaxkd.distill(config(tmp_path / "cut", teacher, **options), dataset, say=said.append)
    assert f"resuming at step {stop_step} of 9" in said

    digests = [teachers.load(run).digest for run in (folder / "whole", tmp_path / "cut")]
    assert digests[0] == digests[1]
    assert lines(tmp_path / "cut")[-2:] == lines(folder / "whole")[-2:]
    assert [line["step"] for line in lines(tmp_path / "cut") if line["kind"] == "test"] == [3, 6, 9]
    one, other = (
        {name: value for name, value in result.items() if name not in ("images_per_second", "seconds")}
        for result in (whole, resumed)
    )
    assert one == other


@pytest.mark.parametrize("agreed", [True, False])
def test_a_signal_at_the_end_of_a_run_counts_if_all_processes_know_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreed: bool
) -> None:
    save = teachers.save

    def saving(*args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        save(*args)

    monkeypatch.setattr(teachers, "save", saving)
    if not agreed:
        monkeypatch.setattr("jaxkd.runs.processes.agreed_signal", lambda _: None)
    dataset = helpers.tiny_dataset()
    stopped = pytest.raises(Stopped, match=r"SIGTERM came while .*run was finishing; it is done")
    with stopped if agreed else contextlib.nullcontext():
        jaxkd.train(config(tmp_path / "run", epochs=1), dataset, say=silent)
    assert (tmp_path / "run" / "result.json").exists()


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()
    first = jaxkd.train(config(tmp_path / "run", epochs=1), dataset, say=silent)
    said: list[str] = []
    assert jaxkd.train(config(tmp_path / "run", epochs=1), dataset, say=said.append) == first
    assert len(said) == 1
    assert "is done already" in said[0]


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    result = jaxkd.distill(config(tmp_path / "run", teacher), dataset, say=silent)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.json", "config.json.sha256", "metrics.jsonl", "result.json", "result.json.sha256",
        "checkpoints", "tensorboard", "model",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result
    stored = json.loads((folder / "config.json").read_text())
    assert stored["config"]["method"] == "atkd"
    assert stored["environment"]["jax"] == jax.__version__
    assert stored["identity"]["data_digest"] == dataset.digest
    train = [line for line in lines(folder) if line["kind"] == "train"]
    assert [line["step"] for line in train] == [2, 3, 5, 6, 8, 9]
    named = {"loss", "ce", "kd", "temperature", "temperature_p95", "correlation", "learning_rate"}
    assert named <= train[0].keys()
    # The bounds of the adaptive temperature for three classes, from the sum of squares of z-scores.
    spread = result["metrics"]["temperature"]
    assert (
        1.366 * (2 / 3) ** 0.5 - 1e-3
        <= spread["p5"]
        <= spread["mean"]
        <= spread["p95"]
        <= 1.366 * 2 / 3**0.5 + 0.02
    )
    assert sum(spread["counts"]) == len(dataset.splits["train"])
    assert len(spread["edges"]) == len(spread["counts"]) + 1


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [5, 16, 1000])
def test_evaluation_counts_every_example_once(tmp_path: Path, devices: int, batch_size: int) -> None:
    dataset = helpers.tiny_dataset(num_test=29)
    teacher = teachers.load(helpers.untrained_teacher(tmp_path / "teacher", dataset))
    test = dataset.splits["test"]
    logits = np.asarray(teacher.logits(test.images), np.float64)
    scores = evaluate(teacher, dataset, batch_size=batch_size, devices=devices)
    assert scores["accuracy"] == pytest.approx(100 * (logits.argmax(1) == test.labels).mean(), abs=1e-9)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert scores["ce"] == pytest.approx(-log_p[np.arange(29), test.labels].mean(), rel=1e-5)


def test_resuming_with_another_seed_teacher_or_data_is_refused(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    other = helpers.untrained_teacher(tmp_path / "other", dataset, model="resnet14")
    jaxkd.distill(config(tmp_path / "run", teacher, epochs=1), dataset, say=silent)
    for changed, arguments, keys in (
        (config(tmp_path / "run", teacher, epochs=1, seed=1), dataset, r"seed \(there 0, here 1\)"),
        (config(tmp_path / "run", other, epochs=1), dataset, r"teacher_digest"),
        (config(tmp_path / "run", teacher, epochs=1), helpers.tiny_dataset(seed=1), "data_digest"),
        (config(tmp_path / "run", teacher, epochs=2, method="kd"), dataset, "epochs .*method "),
        (config(tmp_path / "run", teacher, epochs=1, flip=False), dataset, r"augmentation\.main"),
    ):
        with pytest.raises(ValueError, match=f"holds another run; different: {keys}.*--run"):
            jaxkd.distill(changed, arguments, say=silent)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """Its checkpoints say of what they are, though the folder has no config.json, or that of another run."""
    dataset = helpers.tiny_dataset()
    jaxkd.train(config(tmp_path / "one", epochs=1), dataset, say=silent)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "two" / "checkpoints")
    with pytest.raises(ValueError, match=r"holds another run; different: seed \(there 0, here 1\)"):
        jaxkd.train(config(tmp_path / "two", epochs=1, seed=1), dataset, say=silent)
    stored = records.read(tmp_path / "one" / "config.json", CONFIG)
    stored["identity"]["seed"] = 1
    records.write(tmp_path / "two" / "config.json", CONFIG, stored)
    with pytest.raises(
        ValueError, match=r"checkpoint .*/3 is of another run; different: seed \(there 0, here 1\)"
    ):
        jaxkd.train(config(tmp_path / "two", epochs=1, seed=1), dataset, say=silent)


def test_nan_in_the_teacher_stops_at_its_step_and_says_so(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()

    def poison(variables: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.nan), variables)

    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset, change=poison)
    with pytest.raises(
        NonFiniteError, match=r"step 0: the teacher's logits are NaN or infinite for 16 examples"
    ):
        jaxkd.distill(config(tmp_path / "run", teacher), dataset, say=silent)
    assert not saved_steps(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize("learning_rate", [1e18, 1e39])  # the loss overflows first, or the update does
def test_divergence_names_the_step_and_leaves_good_checkpoints_only(
    tmp_path: Path, learning_rate: float
) -> None:
    dataset = helpers.tiny_dataset()
    options = {"learning_rate": learning_rate, "epochs": 50, "log_every": 1, "checkpoint_seconds": 0}
    with pytest.raises(NonFiniteError, match=r"^step \d+: the (loss|update) .*is NaN or infinite") as caught:
        jaxkd.train(config(tmp_path / "run", **options), dataset, say=silent)
    saved = saved_steps(tmp_path / "run" / "checkpoints")
    last = f"the last good checkpoint is step {max(saved)}" if saved else "there is no checkpoint yet"
    assert last in str(caught.value)
    for step in saved:
        restored = ocp.StandardCheckpointer().restore(tmp_path / "run" / "checkpoints" / str(step) / "state")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored["params"]))


def test_a_call_is_no_longer_than_the_way_to_a_log_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxkd.runs.loop.default_steps_per_call", lambda _: 25)
    said: list[str] = []
    jaxkd.train(config(tmp_path / "run", epochs=1), helpers.tiny_dataset(), say=said.append)
    assert "compiling the training step (2 per call) ..." in said


@pytest.mark.parametrize(
    ("argument", "thing", "message"),
    [
        ("data", (np.zeros(3), np.zeros(3)), "data must be a name or a Dataset, got tuple; data.from_arrays"),
        ("method", len, "method must be a name or a Method, got the function len; methods.from_function"),
        ("method", methods.Method, r"got the class Method instead of an instance, Method\(...\); methods"),
        ("teacher", helpers.Tiny(), "teacher must be a name or a Teacher, got Tiny; teachers.from_network"),
        ("student", 3, "a student must be the name of a model, a Flax Linen module, an NNX .* got int"),
        ("student", helpers.Tiny, "or a Network, got the class Tiny instead of an instance"),
        ("student", lambda rngs: rngs, "is called with nnx.Rngs and makes an NNX module, got Rngs"),
        ("optimizer", optax.adamw, r"such as optax.adamw\(1e-3\), got the function adamw"),
        ("optimizer", {"student": 3}, r"such as optax.adamw\(1e-3\), got int"),
        ("augmentation", data.CropFlip, r"called as augmentation\(key, image\), got the class CropFlip"),
        ("augmentation", 3, r"called as augmentation\(key, image\), got int"),
        ("on_log", 3, "on_log must be a function, got int"),
        ("say", "log.txt", "say must be a function, got str"),
        ("say", None, "say must be a function, got NoneType"),
    ],
)
def test_an_object_of_another_type_is_refused_by_name(
    tmp_path: Path, argument: str, thing: Any, message: str
) -> None:
    options = {"teacher": "digits-resnet20", "run": tmp_path / "run", argument: thing}
    with pytest.raises(TypeError, match=message):
        jaxkd.distill(**options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "thing", "message"),
    [
        ("augmentation", lambda image: image, r"called as augmentation\(key, image\)"),
        ("student", lambda: None, "called with nnx.Rngs and makes an NNX module"),
    ],
)
def test_a_function_that_takes_something_else_is_told_what_it_gets(
    tmp_path: Path, argument: str, thing: Any, message: str
) -> None:
    with pytest.raises(TypeError, match="positional argument") as caught:
        jaxkd.distill(**{"teacher": "digits-resnet20", "run": tmp_path / "run", argument: thing})
    assert re.search(message, "".join(caught.value.__notes__))


def test_a_run_at_or_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            OSError, match=rf"nothing can be written in {run} .*{tmp_path}/file is a file: move"
        ):
            jaxkd.train(config(run), helpers.tiny_dataset(), say=silent)


def test_evaluation_takes_a_teacher_by_its_folder(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()
    folder = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    assert (
        evaluate(folder, dataset)
        == evaluate(str(folder), dataset)
        == evaluate(teachers.load(folder), dataset)
    )
    with pytest.raises(TypeError, match=r"must be a Dataset, as from data.load\(name\), got str"):
        evaluate(folder, "digits")  # type: ignore[arg-type]


def test_options_that_an_own_optimizer_does_not_have_are_refused() -> None:
    with pytest.raises(
        ValueError, match="schedule, weight_decay would have no effect beside an own optimizer"
    ):
        jaxkd.train(
            model="resnet8", data="digits", optimizer=optax.adam(1e-3), schedule="cosine", weight_decay=0.1
        )


def test_a_method_that_predicts_may_have_any_number(tmp_path: Path) -> None:
    """As an option, beyond what a network's may be; a number that is no JSON is refused before training."""

    class Wide(methods.Method):
        hidden: float = 4096.0
        reads: ClassVar = ()

        def __call__(self, x: methods.Inputs) -> methods.Terms:
            return methods.Terms({"ce": (methods.cross_entropy(x.student_logits, x.labels), 1.0)})

        def predict(self, student: Any) -> jax.Array:
            return student.logits

    common = {"data": helpers.tiny_dataset(), "student": helpers.Tiny(), "epochs": 1, "say": silent}
    jaxkd.distill(method=Wide(), run=tmp_path / "run", **common)
    assert (tmp_path / "run" / "model" / "teacher.json").is_file()
    with pytest.raises(
        ValueError, match="method must be an object with the name and the options of a method"
    ):
        jaxkd.distill(method=Wide(float("inf")), run=tmp_path / "other", **common)
    assert not (tmp_path / "other").exists()


def test_a_normalisation_may_be_arrays(tmp_path: Path) -> None:
    known = helpers.tiny_dataset()
    parts = [(s.images, s.labels) for s in (known.splits["train"], known.splits["test"])]
    dataset = data.from_arrays(*parts, mean=np.array([0.4]), std=np.array([0.3], np.float32))
    jaxkd.train(model=helpers.Tiny(), data=dataset, run=tmp_path / "run", epochs=1, say=silent)
    assert teachers.describe(tmp_path / "run").description.mean == (0.4,)


def test_paths_are_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mine\.npz"):
        jaxkd.train(data=tmp_path / "mine.npz", model="resnet8")


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset, num_classes=4)
    with pytest.raises(ValueError, match="teacher teacher has 4 classes and tiny has 3"):
        jaxkd.distill(config(tmp_path / "run", teacher), dataset, say=silent)
    colour = data.from_arrays(
        *[(np.repeat(s.images, 3, -1), s.labels) for s in (dataset.splits["train"], dataset.splits["test"])]
    )
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    with pytest.raises(ValueError, match="takes images with 1 channels, but those of arrays have 3"):
        jaxkd.distill(config(tmp_path / "run", teacher), colour, say=silent)


def test_bad_configurations_are_refused() -> None:
    for changes, message in (
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": -4}, "--batch-size must be at least 1, got -4"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"weight_decay": -1.0}, "--weight-decay must be at least 0, got -1"),
        ({"momentum": 1.0}, "--momentum must be less than 1, got 1.0"),
        ({"seed": 2**32}, "--seed must be less than 2"),
        ({"crop_padding": -1}, "--crop-padding must be at least 0, got -1"),
        ({"steps_per_call": 25, "log_every": 10}, "--steps-per-call 25 would never be reached"),
        ({"data_dir": Path("tfds")}, "--data-dir is for TensorFlow Datasets, but --data digits"),
        (
            {"data": "my.npz", "data_dir": Path("tfds")},
            "--data-dir is for .* --data my.npz is not one of them",
        ),
        (
            {"debug": True, "steps_per_call": 5},
            "--debug runs one step per call; leave out --steps-per-call 5",
        ),
        ({"debug": True, "distributed": True}, "--debug is for one process; leave out --distributed"),
        ({"fork": Path("other"), "distributed": True}, "--fork is for one process"),
        # What a file or a call in Python may hold.
        ({"epochs": True}, "--epochs must be a whole number or nothing, got True"),
        ({"epochs": 2.5}, "--epochs must be a whole number or nothing, got 2.5"),
        ({"batch_norm": "Global"}, "--batch-norm must be global or device, got 'Global'"),
        ({"flip": "false"}, "--flip must be true or false or nothing, got 'false'"),
        ({"run": 7}, "--run must be a path or nothing, got 7"),
        ({"optimizer": "adam", "schedule": "step"}, "--schedule must be steps or cosine or constant"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**changes)
    with pytest.raises(ValueError, match=r"devices must be from 1 to 8 \(cpu\) on this machine, got 9"):
        jaxkd.train(TrainConfig(devices=9), helpers.tiny_dataset(), say=silent)
    with pytest.raises(ValueError, match="a batch of 12 cannot be shared equally by 8 devices"):
        jaxkd.train(TrainConfig(batch_size=12, devices=8), helpers.tiny_dataset(), say=silent)


def test_runs_leave_nothing_in_the_process(tmp_path: Path) -> None:
    """Nothing that grows with their number; experiments/memory has the megabytes."""
    dataset = helpers.tiny_dataset()
    held = []
    for seed in range(3):
        jaxkd.train(config(tmp_path / str(seed), epochs=1, seed=seed), dataset, say=silent)
        gc.collect()
        programs = jax.devices()[0].client.live_executables()
        files = list(Path("/dev/fd").iterdir())
        handlers = len(logging.getLogger("jaxkd").handlers) + len(logging.root.handlers)
        held.append((len(programs), len(jax.live_arrays()), threading.active_count(), len(files), handlers))
    assert held[1] == held[2]


def test_seeds_are_the_runs_that_each_would_be_alone(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()
    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    said: list[str] = []
    alone = jaxkd.distill(config(tmp_path / "alone", teacher, seed=4), dataset, say=silent)
    several = jaxkd.distill(config(tmp_path / "many", teacher, seed=3, seeds=2), dataset, say=said.append)
    assert several["seeds"] == [3, 4]
    accuracies = [run["last_accuracy"] for run in several["runs"]]
    assert several["last_accuracy"] == pytest.approx(np.mean(accuracies))
    assert several["last_accuracy_deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    assert "2 seeds: last accuracy" in said[-1]
    digests = [teachers.load(tmp_path / name).digest for name in ("alone", "many-seed4", "many-seed3")]
    assert digests[0] == digests[1] != digests[2]
    for result in (alone, several["runs"][1]):
        del result["images_per_second"], result["seconds"]
    assert alone == several["runs"][1]
    # The same call again, after a stop in the second run: the first is done, the second goes on.
    (tmp_path / "many-seed4" / "result.json").unlink()
    said.clear()
    again = jaxkd.distill(config(tmp_path / "many", teacher, seed=3, seeds=2), dataset, say=said.append)
    assert [line for line in said if "many-seed3" in line and "is done already" in line]
    assert "resuming at step 9 of 9" in said
    assert again["last_accuracy"] == several["last_accuracy"]
    # A failure says whose it is.
    longer = config(tmp_path / "many", teacher, seed=3, seeds=3, log_every=1)
    with pytest.raises(ZeroDivisionError) as failed:
        jaxkd.distill(longer, dataset, say=silent, on_log=lambda values, step: 1 // 0)
    assert failed.value.__notes__ == [f"in the run of seed 5, {tmp_path / 'many-seed5'}"]


def test_options_that_objects_leave_without_effect_are_refused(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()
    teacher = teachers.load(helpers.untrained_teacher(tmp_path / "teacher", dataset))
    for options, message in (
        (
            {"method": methods.create("kd"), "method_options": {"temperature": 9.0}},
            "beside a method that is made",
        ),
        ({"augmentation": data.Identity(), "flip": True}, "flip would have no effect"),
        ({"image_size": 16}, "image_size: only for data that are read by name"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxkd.distill(
                teacher=teacher,
                data=dataset,
                student=helpers.Tiny(),
                epochs=1,
                run=tmp_path / "run",
                say=silent,
                **options,
            )
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="tiny has no split 'val'; it has train, test"):
        jaxkd.evaluate(teacher, dataset, split="val")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        jaxkd.evaluate(teacher, dataset, batch_size=0)


def test_what_is_saved_does_not_call_held_out_images_a_test(tmp_path: Path) -> None:
    options = {"epochs": np.int64(1), "batch_size": 8, "devices": 1, "holdout": 0.25, "say": silent}
    jaxkd.train(data=helpers.tiny_dataset(), model=helpers.Tiny(), run=tmp_path / "run", **options)
    known = teachers.describe(tmp_path / "run" / "model").description
    assert (known.data, known.test_accuracy) == ("tiny", None)


def test_folders_are_recorded_by_their_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big").mkdir()
    recorded = GeneratorConfig(teacher="big", data="mine.npz").as_dict()
    assert [recorded[name] for name in ("teacher", "data")] == [
        str(tmp_path / "big"),
        str(tmp_path / "mine.npz"),
    ]
    assert GeneratorConfig(teacher="digits-resnet20").as_dict()["teacher"] == "digits-resnet20"
    mekd = DistillConfig(teacher="digits-resnet20", method="mekd", method_options={"generator": "big"})
    assert mekd.as_dict()["method_options"] == {"generator": str(tmp_path / "big")}
    found = methods.create("kd+mekd", mekd_generator="big")
    assert methods.options(found)["mekd_generator"] == str(tmp_path / "big")
    both = DistillConfig(
        teacher="digits-resnet20", method="kd+mekd", method_options={"mekd_generator": "big"}
    )
    assert both.as_dict()["method_options"] == {"mekd_generator": str(tmp_path / "big")}
