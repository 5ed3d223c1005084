"""Runs of several seeds at the same time: each is the run that it would be alone on its devices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from helpers import silent

import jaxkd
from jaxkd import data, teachers
from jaxkd.config import CacheConfig, CompareConfig, DistillConfig, TrainConfig
from jaxkd.signals import Stopped, StopRequest
from jaxkd.training import build_cache
from jaxkd.training.loop import Loop, ProgressLines
from jaxkd.training.record import Record, read_metrics
from jaxkd.training.side_by_side import choose_places, is_at_work, side_by_side

SEEDS = (3, 4, 5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, dataset: data.Dataset, teacher: Path) -> Path:
    """The teacher's logits, for all runs."""
    folder = tmp_path_factory.mktemp("cache")
    build_cache(CacheConfig(teacher=str(teacher), devices=1, out=folder), dataset, say=silent)
    return folder


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, dataset: data.Dataset, teacher: Path, cache: Path
) -> Path:
    """The parent of the runs of each seed for itself, on one device."""
    parent = tmp_path_factory.mktemp("alone")
    for seed in SEEDS:
        one = config(parent / f"run-seed{seed}", teacher, cache, seed=seed, seeds=1, devices=1)
        jaxkd.distill(one, dataset, say=silent)
    return parent


def config(folder: Path, teacher: Path, cache: Path, **changes: Any) -> DistillConfig:
    """Three runs, unless told otherwise."""
    options = {
        "epochs": 2,
        "batch_size": 16,
        "log_every": 2,
        "seed": SEEDS[0],
        "seeds": len(SEEDS),
        **changes,
    }
    return DistillConfig(teacher=str(teacher), cache=str(cache), student="resnet8", run=folder, **options)


def require_same_runs(parent: Path, alone: Path) -> None:
    for seed in SEEDS:
        here, there = parent / f"run-seed{seed}", alone / f"run-seed{seed}"
        assert teachers.load(here).digest == teachers.load(there).digest
        assert result(here) == result(there)
        # A run that was stopped has one more line, of where that was.
        steps = {line["step"] for line in lines(there)}
        assert [line for line in lines(here) if line["step"] in steps] == lines(there)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line if key != "images_per_second"} for line in read_metrics(folder)]


def result(folder: Path) -> dict[str, Any]:
    stored = json.loads((folder / "result.json").read_text())
    return {key: stored[key] for key in stored if key not in ("images_per_second", "seconds")}


def test_each_run_is_what_it_would_be_alone(
    tmp_path: Path, dataset: data.Dataset, teacher: Path, cache: Path, alone: Path
) -> None:
    said: list[str] = []
    command = config(tmp_path / "run", teacher, cache, devices=3)
    results = jaxkd.distill(command, dataset, say=said.append)
    require_same_runs(tmp_path, alone)
    assert results["seeds"] == list(SEEDS)
    assert [run["seed"] for run in results["runs"]] == list(SEEDS)
    assert said[0] == "3 runs, 3 at a time, each on 1 x cpu"
    assert said[-1].startswith("3 seeds: last accuracy")
    done = [line for line in said[1:-1] if "done, last accuracy" in line]
    assert sum(f"its logits from {cache} (float16)" in line for line in said) == 3
    assert sorted(line[:8] for line in done) == ["seed 3: ", "seed 4: ", "seed 5: "]
    assert all(line.startswith(("seed 3: ", "seed 4: ", "seed 5: ")) for line in said[1:-1])
    for seed in SEEDS:
        stored = json.loads((tmp_path / f"run-seed{seed}" / "config.json").read_text())
        assert stored["config"]["devices"] == stored["environment"]["num_devices"] == 1
        assert stored["config"]["seeds_at_once"] is None


@pytest.mark.slow
def test_runs_may_have_several_devices_each(tmp_path: Path, dataset: data.Dataset) -> None:
    options = {"epochs": 2, "batch_size": 16, "model": "resnet8"}  # an epoch's steps are all in flight
    said: list[str] = []
    jaxkd.train(TrainConfig(run=tmp_path / "run", seeds=2, devices=4, **options), dataset, say=said.append)
    jaxkd.train(TrainConfig(run=tmp_path / "alone", seed=1, devices=2, **options), dataset, say=silent)
    assert said[0] == "2 runs, 2 at a time, each on 2 x cpu"
    assert teachers.load(tmp_path / "run-seed1").digest == teachers.load(tmp_path / "alone").digest
    assert lines(tmp_path / "run-seed1") == lines(tmp_path / "alone")


def test_stopped_runs_go_on_and_those_that_wait_do_not_begin(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: data.Dataset,
    teacher: Path,
    cache: Path,
    alone: Path,
) -> None:
    stops: list[StopRequest] = []

    class Seen(StopRequest):
        def __enter__(self) -> StopRequest:
            stops.append(self)
            return super().__enter__()

    first = threading.Lock()

    def interrupt(_: ProgressLines, __: str, step: int, *___: object) -> None:
        if step == 3:
            if first.acquire(blocking=False):
                os.kill(os.getpid(), signal.SIGTERM)
            while not stops[0].signal_name:
                time.sleep(0.01)

    said: list[str] = []
    command = config(tmp_path / "run", teacher, cache, devices=2)
    with monkeypatch.context() as patch:
        patch.setattr("jaxkd.training.side_by_side.StopRequest", Seen)
        patch.setattr(ProgressLines, "trained", interrupt)
        with pytest.raises(
            Stopped, match="stopped by SIGTERM: 0 of 3 runs are done, and the same command goes on from"
        ):
            jaxkd.distill(command, dataset, say=said.append)
    assert len(stops) == 1
    assert any("stopped by SIGTERM after step 3 of 6; checkpoint saved in" in line for line in said)
    assert not list(tmp_path.glob("*/result.json"))
    assert not (tmp_path / "run-seed5").exists()

    said.clear()
    jaxkd.distill(command, dataset, say=said.append)
    assert any("resuming at step 3 of 6" in line for line in said)
    require_same_runs(tmp_path, alone)


def test_others_end_when_one_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: data.Dataset,
    teacher: Path,
    cache: Path,
    alone: Path,
) -> None:
    write = Record.write

    def full(self: Record, kind: str, step: int, epoch: int, **values: float) -> None:
        if self.folder.name == "run-seed3" and step == 5:
            raise OSError(28, "No space left on device")
        write(self, kind, step, epoch, **values)

    said: list[str] = []
    command = config(tmp_path / "run", teacher, cache, devices=2, checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Record, "write", full)
        with pytest.raises(OSError, match=r"No space left.*last good checkpoint is step 3"):
            jaxkd.distill(command, dataset, say=said.append)
    assert any(line.startswith("seed 3: failed: [Errno 28] No space left") for line in said)
    assert said[-1] == "1 of 3 runs failed, of seed 3"
    assert [(tmp_path / f"run-seed{seed}" / "result.json").exists() for seed in SEEDS] == [False, True, True]
    jaxkd.distill(command, dataset, say=silent)
    require_same_runs(tmp_path, alone)


class Runs:
    """Stands for runs: notes what goes on where, and holds each until it is let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.ended: list[tuple[int, int | None, jax.Device]] = []
        self.busy: Counter[jax.Device] = Counter()

    def __call__(self, config: TrainConfig, devices: list[jax.Device], say: Any, stop: StopRequest) -> int:
        self.stop = stop
        self.busy.update(devices)
        assert max(self.busy.values()) == 1, "two runs on one device"
        assert jax.numpy.zeros(()).device == devices[0]
        say("one\ntwo")
        assert self.go_on.wait(60)
        self.busy.subtract(devices)
        self.ended.append((config.seed, config.devices, devices[0]))
        return 10 * config.seed


def trainings(count: int) -> list[TrainConfig]:
    return TrainConfig(seeds=count).each_seed()


def test_runs_wait_for_a_free_place() -> None:
    runs, said = Runs(), []
    runs.go_on.set()
    places = [jax.devices()[:2], jax.devices()[2:4]]
    assert side_by_side(runs, trainings(5), places, said.append) == [0, 10, 20, 30, 40]
    assert {seed for seed, _, _ in runs.ended} == set(range(5))
    assert {count for _, count, _ in runs.ended} == {2}
    assert {device for _, _, device in runs.ended} <= {jax.devices()[0], jax.devices()[2]}
    assert sorted(said[1:]) == [f"seed {seed}: one\nseed {seed}: two" for seed in range(5)]


def test_a_failed_run_lets_go_of_its_arrays() -> None:
    held: list[weakref.ref[jax.Array]] = []

    def fails(*_: object) -> None:
        state = jax.numpy.zeros(3)
        held.append(weakref.ref(state))
        try:
            raise ValueError("first")
        except ValueError as error:
            raise OSError("full") from error

    with pytest.raises(OSError, match="full"):
        side_by_side(fails, trainings(2), [[device] for device in jax.devices()[:2]], silent)
    assert [ref() for ref in held] == [None, None]


def test_a_second_signal_does_not_wait() -> None:
    runs = Runs()

    def signals() -> None:
        while sum(runs.busy.values()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        while not runs.stop.signal_name:  # lest the two become one
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=signals)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(runs, trainings(3), [[device] for device in jax.devices()[:2]], silent)
    sender.join()
    assert is_at_work()
    runs.go_on.set()
    while is_at_work():
        time.sleep(0.01)
    assert sorted(seed for seed, _, _ in runs.ended) == [0, 1]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"seeds": 1}, [8]),
        ({"seeds": 2}, [4, 4]),
        ({"seeds": 3}, [2, 2, 2]),
        ({"seeds": 20}, [1] * 8),
        ({"seeds": 20, "devices": 3}, [1] * 3),
        ({"seeds": 20, "seeds_at_once": 1}, [8]),
        ({"seeds": 20, "seeds_at_once": 2}, [4, 4]),
        ({"seeds": 2, "batch_size": 9}, [3, 3]),  # four devices cannot share it
        ({"seeds": 2, "batch_size": 12, "accumulate": 6}, [2, 2]),
        ({"seeds": 2, "profile": 5}, [8]),
        ({"seeds": 2, "wandb": "project"}, [8]),
        ({"seeds": 2, "cache": "fill"}, [8]),
        ({"seeds": 2, "batch_norm": "device"}, [8]),
    ],
)
def test_devices_are_shared_out(options: dict[str, Any], sizes: list[int]) -> None:
    places = choose_places(DistillConfig(teacher="t", **options))
    assert [len(place) for place in places] == sizes
    devices = [device for place in places for device in place]
    assert devices == jax.devices()[: len(devices)]


def test_what_cannot_go_on_side_by_side_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"seeds_at_once": 0}, "--seeds-at-once must be at least 1, got 0"),
        (
            {"seeds": 2, "seeds_at_once": 3},
            "--seeds-at-once 3 is more than --seeds 2; raise the one or lower",
        ),
        ({"profile": 5}, "--seeds-at-once 2 and --profile do not go together, since with --profile runs"),
        ({"wandb": "project"}, "--seeds-at-once 2 and --wandb do not go together"),
        ({"cache": "fill"}, "--seeds-at-once 2 and --cache fill do not go together"),
        ({"batch_norm": "device"}, "--seeds-at-once 2 and --batch-norm device do not go together"),
        ({"distributed": True}, "--seeds-at-once 2 and --distributed do not go together"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillConfig(**{"teacher": "t", "seeds": 4, "seeds_at_once": 2, **options})
    with pytest.raises(ValueError, match="--seeds-at-once 2 and --cache fill do not go together"):
        CompareConfig(seeds=2, seeds_at_once=2, cache="fill")
    with pytest.raises(
        ValueError, match=r"--seeds-at-once must be from 1 to 2, the number of devices, .* got 3"
    ):
        choose_places(TrainConfig(seeds=3, seeds_at_once=3, devices=2))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert len(choose_places(TrainConfig(seeds=3))) == 1
    with pytest.raises(ValueError, match="--seeds-at-once 2 is for one process, and this is one of 2"):
        choose_places(TrainConfig(seeds=3, seeds_at_once=2))


def test_a_signal_that_comes_while_a_run_looks_is_seen_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at once, since other processes have answered already, and not never."""
    loop = SimpleNamespace(_stop=StopRequest(), _total_steps=9)
    loop._record = SimpleNamespace(folder="run")
    loop._checkpoints = SimpleNamespace(save=lambda state: state.step)

    def meanwhile(seen: str | None) -> str | None:
        loop._stop.signal_name = "SIGTERM"
        return seen

    monkeypatch.setattr("jaxkd.training.loop.agreed_signal", meanwhile)
    Loop._stop_if_asked(loop, SimpleNamespace(step=3))  # type: ignore[arg-type]
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 4 of 9"):
        Loop._stop_if_asked(loop, SimpleNamespace(step=4))  # type: ignore[arg-type]


COMPUTING = """
import sys
import jax
from jaxkd.__main__ import main
from jaxkd.training import run

def compute(*_):
    step = jax.jit(lambda x: jax.numpy.tanh(x @ x))
    x = jax.numpy.ones((300, 300))
    sys.stdout.write("computing\\n")  # in one piece, unlike print
    sys.stdout.flush()
    while True:
        x = step(x)
        jax.block_until_ready(x)

run._fit = compute
sys.argv = ["jaxkd", "train", "--seeds", "2"]
main()
"""


def test_a_command_that_is_interrupted_ends_while_its_runs_compute() -> None:
    """Python's usual end would take JAX's threads by surprise, and abort."""
    with subprocess.Popen(
        [sys.executable, "-c", COMPUTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        limit = threading.Timer(120, child.kill)  # a line that never comes
        limit.start()
        try:
            for expected in ("2 runs, 2 at a time", "computing", "computing"):
                assert expected in child.stdout.readline()
            child.send_signal(signal.SIGINT)
            assert "saving what there is" in child.stdout.readline()
            child.send_signal(signal.SIGINT)
            output, errors = child.communicate(timeout=60)
        finally:
            limit.cancel()
            child.kill()
    assert child.returncode == 130, errors
    assert output == "stopped at once; what was saved before remains\n"
    assert not errors
