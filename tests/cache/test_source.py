"""Training with a cache: the rows are the teacher's, and the losses those of training without."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import helpers
import jax
import numpy as np
import optax
import pytest
from helpers import silent
from steps import run, task

import jaxkd
from jaxkd import data, models, teachers
from jaxkd.cache import build_cache
from jaxkd.cache import compute as precompute
from jaxkd.cache.compute import epoch_codes, wanted_codes
from jaxkd.cache.source import CachedLogits, find_cache
from jaxkd.cache.store import CacheKey, TeacherCache
from jaxkd.config import CacheConfig, DistillConfig
from jaxkd.metrics import numbers
from jaxkd.models.network import AXIS
from jaxkd.runs import Stopped
from jaxkd.training import Task
from jaxkd.training.optimizers import sgd


def small_task(dataset: data.Dataset) -> Task:
    """Of small networks, with a small rate: rounding does not grow."""
    student, teacher = (models.from_linen(helpers.Tiny(width=width)) for width in (6, 9))
    return task(
        dataset,
        optimizer=sgd(optax.constant_schedule(0.003)),
        student=student.normalized(dataset.mean, dataset.std).on_axis(AXIS),
        teacher=teacher.normalized((0.4,), (0.3,)),
    )


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, dataset: data.Dataset, teacher: Path) -> dict[str, Any]:
    """The result of a run without a cache."""
    folder = tmp_path_factory.mktemp("live") / "run"
    return distill(config(folder, teacher, cache="off"), dataset)


def config(folder: Path, teacher: Path, **changes: Any) -> DistillConfig:
    common = {"run": folder, "epochs": 2, "batch_size": 16, "devices": 1, "log_every": 2, **changes}
    return DistillConfig(teacher=str(teacher), **common)


def distill(config: DistillConfig, dataset: data.Dataset, say: Any = silent) -> dict[str, Any]:
    return jaxkd.distill(config, dataset, student=helpers.Tiny(), say=say)


def test_codes_tell_what_an_epoch_shows(dataset: data.Dataset) -> None:
    images = dataset.splits["train"].images
    for seed, epoch in ((0, 1), (5, 3), (2**40 + 3, 2)):
        ids, numbers = np.divmod(
            epoch_codes(40, dataset.augmentation, seed=seed, epoch=epoch), dataset.augmentation.count
        )
        assert ids.tolist() == list(range(40))
        expected = data.augment(dataset.augmentation, images, np.arange(40), seed=seed, epoch=epoch)
        np.testing.assert_array_equal(jax.vmap(dataset.augmentation.take)(images, numbers), expected)
    some = wanted_codes(40, dataset.augmentation, seeds=[3, 4], num_epochs=2)
    seen = [
        epoch_codes(40, dataset.augmentation, seed=seed, epoch=epoch) for seed in (3, 4) for epoch in (1, 2)
    ]
    np.testing.assert_array_equal(some, np.unique(seen))
    assert len(some) < 160  # views that two epochs share are there once
    assert wanted_codes(40, dataset.augmentation, seeds=[0], num_epochs=None).tolist() == list(range(40 * 18))


@pytest.mark.parametrize("devices", [1, 8])
def test_rows_are_the_teachers_logits(
    monkeypatch: pytest.MonkeyPatch, dataset: data.Dataset, teacher: Path, devices: int
) -> None:
    monkeypatch.setattr(precompute, "_SECONDS_BETWEEN_WRITES", 0.0)
    said: list[str] = []
    options = {"teacher": str(teacher), "dtype": "float32", "batch_size": 100, "devices": devices}
    cache = build_cache(CacheConfig(**options), dataset, say=said.append)
    assert "720 of all 720 views of 40 images requested, 0 of them exist" in said[0]
    images, network = dataset.splits["train"].images, teachers.load(teacher)
    for number in (0, 7, 17):
        shown = jax.vmap(dataset.augmentation.take)(images, np.full(40, number))
        rows = cache.locate(np.arange(40) * 18 + number)
        np.testing.assert_allclose(cache.fetch(rows)[0], network.logits(shown), atol=2e-5)
    assert len((cache.folder / "segments.jsonl").read_text().splitlines()) == {1: 8, 8: 7}[devices]


def made_cache(folder: Path, dtype: str, dataset: data.Dataset, num_epochs: int) -> CachedLogits:
    """The cache of what `steps.run` trains on."""
    made = small_task(dataset)
    assert made.teacher is not None
    key = CacheKey("t", "resnet14", (0.4,), (0.3,), "train", "d", 40, 3, "crop")
    cache = TeacherCache.create(folder, key, dtype)
    split = dataset.splits["train"]
    filler = precompute.Filler(
        cache,
        made.teacher,
        made.teacher.init(9, dataset.image_shape),
        split,
        dataset.augmentation,
        devices=jax.local_devices(),
    )
    return CachedLogits(cache, 40, dataset.augmentation, seed=0, fill=filler)


class ByEpoch:
    """Starts the epochs of `steps.run` at its steps; one of three steps is one call or three."""

    def __init__(self, cached: CachedLogits) -> None:
        self._cached, self._calls = cached, 0

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        steps = ids.shape[1] if ids.ndim == 3 else 1
        if self._calls % 3 == 0:
            self._cached.start_epoch(self._calls // 3 + 1, stop=lambda: False)
        self._calls += steps
        return self._cached.of_batch(ids)["teacher_logits"]


@pytest.mark.parametrize(
    ("dtype", "first", "all_of_them"),
    [("float32", 1e-6, 1e-4), ("float16", 3e-4, 2e-3), ("bfloat16", 3e-3, 2e-2)],
)
def test_losses_are_those_of_the_live_teacher(
    tmp_path: Path, dataset: data.Dataset, dtype: str, first: float, all_of_them: float
) -> None:
    made = small_task(dataset)
    _, live = run(made, dataset, 1, 9)
    _, cached = run(made, dataset, 1, 9, cached=ByEpoch(made_cache(tmp_path, dtype, dataset, 3)))
    assert cached[0] == pytest.approx(live[0], rel=first)
    np.testing.assert_allclose(cached, live, rtol=all_of_them)


@pytest.mark.parametrize(("devices", "per_call"), [(8, 1), (1, 3)])
def test_devices_and_calls_share_the_rows_rightly(
    tmp_path: Path, dataset: data.Dataset, devices: int, per_call: int
) -> None:
    made = small_task(dataset)
    one, _ = run(made, dataset, 1, 6, cached=ByEpoch(made_cache(tmp_path, "float32", dataset, 2)))
    other, _ = run(
        made, dataset, devices, 6, per_call, cached=ByEpoch(made_cache(tmp_path, "float32", dataset, 2))
    )
    found, expected = numbers(other.tally.all), numbers(one.tally.all)
    for name in ("loss", "kd", "temperature", "correlation"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


def digest(folder: Path) -> str:
    return teachers.load(folder, network=helpers.Tiny()).digest


def source(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["identity"]["teacher_logits"]


def test_a_run_finds_its_cache_and_says_so(
    tmp_path: Path, dataset: data.Dataset, teacher: Path, live: dict[str, Any]
) -> None:
    said: list[str] = []
    cache = build_cache(CacheConfig(teacher=str(teacher), epochs=2, dtype="float32"), dataset, say=silent)
    found = distill(config(tmp_path / "found", teacher), dataset, say=said.append)
    assert f"its logits from {cache.folder} (float32)" in said[0]
    assert source(tmp_path / "found") == "float32"
    for name in ("correlation", "temperature"):
        assert found["metrics"][name]["mean"] == pytest.approx(live["metrics"][name]["mean"], rel=1e-3)
    # Once it is done, it does not matter any more whether the cache is still there.
    cache.folder.rename(tmp_path / "away")
    assert distill(config(tmp_path / "found", teacher), dataset) == found


class StopWhen:
    """Interrupts when a line with some words is said."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __call__(self, line: str) -> None:
        if self._words in line:
            signal.raise_signal(signal.SIGINT)


def test_a_cache_with_pooled_features_serves_methods_that_read_logits(
    tmp_path: Path, dataset: data.Dataset, teacher: Path
) -> None:
    cache = build_cache(CacheConfig(teacher=str(teacher), epochs=2, pooled=True), dataset, say=silent)
    for where in ("auto", "fill", str(cache.folder)):
        said: list[str] = []
        distill(config(tmp_path / f"kd {where[:4]}", teacher, cache=where), dataset, say=said.append)
        assert f"its logits from {cache.folder} (float16)" in said[0]
    # a cache in the usual folder that lacks views does not hide it
    narrow = build_cache(CacheConfig(teacher=str(teacher), epochs=1), dataset, say=silent)
    said.clear()
    distill(config(tmp_path / "kd both", teacher), dataset, say=said.append)
    assert f"its logits from {cache.folder} (float16)" in said[0]
    # the other way round it does not serve
    cache.folder.rename(tmp_path / "away")
    with pytest.raises(ValueError, match=rf"{re.escape(str(narrow.folder))} does not fit; .*pooled"):
        distill(config(tmp_path / "rkd", teacher, method="rkd", cache=str(narrow.folder)), dataset)


def test_a_run_goes_on_with_what_it_began_with(
    tmp_path: Path, dataset: data.Dataset, teacher: Path, live: dict[str, Any]
) -> None:
    begin = StopWhen("compiling")
    with pytest.raises(Stopped):
        distill(config(tmp_path / "cut", teacher), dataset, say=begin)
    build_cache(CacheConfig(teacher=str(teacher)), dataset, say=silent)
    resumed = distill(config(tmp_path / "cut", teacher), dataset)
    assert source(tmp_path / "cut") == "live"  # the cache that has come since is not used
    assert resumed["last_ce"] == live["last_ce"]

    with pytest.raises(Stopped):
        distill(config(tmp_path / "cached", teacher), dataset, say=begin)
    assert source(tmp_path / "cached") == "float16"
    with pytest.raises(ValueError, match=r"different: teacher_logits \(there float16, here live\)"):
        distill(config(tmp_path / "cached", teacher, cache="off"), dataset)
    (tmp_path / "cache" / "jaxkd" / "logits").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="no teacher cache in"):
        distill(config(tmp_path / "cached", teacher), dataset)


def test_a_cache_that_does_not_fit_is_refused(tmp_path: Path, dataset: data.Dataset, teacher: Path) -> None:
    cache = build_cache(CacheConfig(teacher=str(teacher), epochs=1), dataset, say=silent)
    named = {"cache": str(cache.folder)}
    other = helpers.untrained_teacher(tmp_path / "other", dataset, model="resnet14")
    for changed, message in (
        ({}, r"lacks \d+ of \d+ views"),
        ({"flip": False}, r"does not fit; different: augmentation \(there CropFlip\(padding=1, flip=True\)"),
        ({"crop_padding": 0}, "different: augmentation"),
        ({"teacher": str(other)}, r"different: model .*teacher"),
        ({"cache": str(tmp_path)}, "no teacher cache in"),
    ):
        refused = dataclasses.replace(config(tmp_path / "run", teacher, **named), **changed)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            distill(refused, dataset)
    with pytest.raises(ValueError, match="different: images"):
        distill(config(tmp_path / "run", teacher, **named), helpers.tiny_dataset(seed=1), say=silent)
    assert not (tmp_path / "run" / "config.json").exists()

    # Without being named, it is left aside, and that is said.
    said: list[str] = []
    options = {"seed": 0, "num_epochs": 2, "before": None, "say": said.append}
    assert find_cache("auto", teachers.load(teacher), dataset, dataset.augmentation, **options) is None
    assert "views" in said[0]
    assert said[0].endswith("Ignoring it; running the teacher in every step")
    assert find_cache("auto", teachers.load(other), dataset, dataset.augmentation, **options) is None
    assert len(said) == 1  # where there is no cache, there is nothing to say


@dataclasses.dataclass(frozen=True)
class Darker:
    """An own augmentation, whose code may change from one run to the next."""

    count: int = 2

    def index(self, key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key).astype(int)

    def take(self, image: jax.Array, index: jax.Array) -> jax.Array:
        return image // (1 + index).astype(image.dtype)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return self.take(image, self.index(key))


def test_rows_of_code_that_may_have_changed_are_not_taken_without_a_word(
    tmp_path: Path, dataset: data.Dataset, teacher: Path
) -> None:
    darker = dataclasses.replace(dataset, augmentation=Darker())
    said: list[str] = []
    for where, note in (("fill", False), ("fill", True), ("auto", False)):
        said.clear()
        distill(config(tmp_path / f"{where} {note}", teacher, cache=where), darker, say=said.append)
        assert any("if their code has changed since" in line for line in said) == note
    assert source(tmp_path / "auto False") == "live"
    options = {"seed": 0, "num_epochs": 2, "before": "float16", "say": silent}  # a run that began with it
    assert find_cache("auto", teachers.load(teacher), darker, Darker(), **options) is not None


def test_a_file_beside_the_caches_is_no_cache(tmp_path: Path, dataset: data.Dataset, teacher: Path) -> None:
    cache = build_cache(CacheConfig(teacher=str(teacher), epochs=1), dataset, say=silent)
    cache.folder.with_name(cache.folder.name[:-12] + "0123456789ab.tar.gz").write_bytes(b"")
    options = {"seed": 0, "num_epochs": 2, "before": None, "say": silent}
    assert find_cache("auto", teachers.load(teacher), dataset, dataset.augmentation, **options) is None


def test_a_run_goes_on_with_the_precision_that_it_began_with(
    tmp_path: Path, dataset: data.Dataset, teacher: Path
) -> None:
    pooled = CacheConfig(teacher=str(teacher), epochs=2, pooled=True, dtype="float32")
    build_cache(pooled, dataset, say=silent)
    with pytest.raises(Stopped):
        distill(config(tmp_path / "cut", teacher), dataset, say=StopWhen("compiling"))
    build_cache(CacheConfig(teacher=str(teacher), epochs=2), dataset, say=silent)
    distill(config(tmp_path / "cut", teacher), dataset)
    assert source(tmp_path / "cut") == "float32"


def test_filling_while_training_is_training_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: data.Dataset, teacher: Path
) -> None:
    distill(config(tmp_path / "first", teacher, cache="fill"), dataset)
    distill(config(tmp_path / "second", teacher), dataset)
    assert source(tmp_path / "second") == "float16"
    assert digest(tmp_path / "first") == digest(tmp_path / "second")

    (tmp_path / "cache" / "jaxkd" / "logits").rename(tmp_path / "away")
    monkeypatch.setattr(precompute.FillProgress, "__call__", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 0 of 6"):
        distill(config(tmp_path / "cut", teacher, cache="fill"), dataset)
    assert (next((tmp_path / "cache" / "jaxkd" / "logits").iterdir()) / "segments.jsonl").is_file()


def test_filling_while_training_waits_for_another_process(
    tmp_path: Path, dataset: data.Dataset, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = build_cache(CacheConfig(teacher=str(teacher), epochs=1), dataset, say=silent)
    with contextlib.ExitStack() as writing, concurrent.futures.ThreadPoolExecutor() as pool:
        writing.enter_context(cache.writing())
        run = pool.submit(distill, config(tmp_path / "run", teacher, cache="fill", epochs=2), dataset)
        while "waiting for another process that fills" not in caplog.text:
            assert not run.done()
            time.sleep(0.05)
        writing.close()
        assert run.result()["last_accuracy"] >= 0


def test_logits_that_the_precision_cannot_hold_are_named(tmp_path: Path, dataset: data.Dataset) -> None:
    def enlarge(variables: dict) -> dict:
        variables["params"]["fc"]["bias"] = np.array([0, 1e6, 0], np.float32)
        return variables

    loud = helpers.untrained_teacher(tmp_path / "loud", dataset, change=enlarge)
    with pytest.raises(FloatingPointError, match="view 0 of training image 0 are NaN or infinite in float16"):
        build_cache(CacheConfig(teacher=str(loud)), dataset, say=silent)
    cache = build_cache(
        CacheConfig(teacher=str(loud), dtype="float32", out=tmp_path / "own"), dataset, say=silent
    )
    assert len(cache) == 720


def test_a_build_that_another_process_has_done_meanwhile_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: data.Dataset, teacher: Path
) -> None:
    command = CacheConfig(teacher=str(teacher), epochs=1, out=tmp_path / "own")

    class Late(precompute.Filler):
        def __call__(self, *args: Any, **options: Any) -> int:
            monkeypatch.undo()
            build_cache(command, dataset, say=silent)
            return super().__call__(*args, **options)

    monkeypatch.setattr(sys.modules["jaxkd.cache.build"], "Filler", Late)
    assert len(build_cache(command, dataset, say=silent)) == 40


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_build_that_is_stopped_goes_on(tmp_path: Path, name: str) -> None:
    dataset = helpers.tiny_dataset(80)
    tiny = helpers.write_npz(tmp_path / "tiny.npz", dataset)
    teacher = helpers.untrained_teacher(tmp_path / "teacher", data.load(str(tiny)))
    options = ["cache", "--teacher", teacher, "--data", tiny, "--crop-padding", 2, "--batch-size", 32]
    options += ["--out", tmp_path / "own"]
    often = "from jaxkd.cache import compute as p; p._SECONDS_BETWEEN_WRITES = 0"
    command = f"{often}; from jaxkd.cli import main; main({list(map(str, options))})"
    segments = tmp_path / "own" / "segments.jsonl"
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None and (not segments.is_file() or segments.read_text().count("\n") < 3):
            time.sleep(0.002)
        child.send_signal(signal.Signals[name])
        output, _ = child.communicate(timeout=300)
    assert child.returncode == (75 if name == "SIGTERM" else -signal.SIGKILL), output
    code, output, errors = helpers.call_jaxkd(*options)
    assert code == 0, errors
    there = int(output.split("requested, ")[1].split(" of them exist")[0].replace(",", ""))
    assert 96 <= there < 2_000
    code, output, _ = helpers.call_jaxkd(*options)
    assert "2,000 of them exist" in output
