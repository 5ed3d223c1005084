"""Several processes as one run: real processes on this machine, over Gloo."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest

from jaxkd import data, teachers
from jaxkd.config import TrainConfig

Child = subprocess.Popen[str]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with `data.npz` and `teacher`."""
    npz = helpers.write_npz(tmp_path / "data.npz", helpers.tiny_dataset(num_train=40))
    helpers.untrained_teacher(tmp_path / "teacher", data.load(str(npz)))
    return tmp_path


def command(files: Path, run: str, **changes: Any) -> list[str]:
    options = {"data": files / "data.npz", "teacher": files / "teacher", "run": files / run, "epochs": 8,
               "batch-size": 16, "log-every": 1, "eval-batch-size": 6, **changes}  # fmt: skip
    return ["distill", *[text for key, value in options.items() for text in (f"--{key}", str(value))]]


@contextlib.contextmanager
def two_processes(files: Path, run: str, *more: list[str]) -> Iterator[list[Child]]:
    """Starts a run in two processes of one device each; `more` holds options of each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    joint = ["--coordinator", coordinator, "--num-processes", "2", "--peer-timeout", "20"]
    children = [
        helpers.start_jaxkd(*command(files, run), *joint, "--process-id", i, *(more[i] if more else []))
        for i in range(2)
    ]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def read_until(child: Child, text: str) -> None:
    assert child.stdout is not None
    said = []
    while text not in (line := child.stdout.readline()):
        assert line, f"it ended without saying {text!r}: {said}"
        said.append(line)


def endings(children: list[Child]) -> list[tuple[int, str]]:
    outputs = [child.communicate(timeout=200) for child in children]
    return [(child.returncode, out + err) for child, (out, err) in zip(children, outputs, strict=True)]


def record(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


@pytest.mark.slow
def test_two_processes_under_shard_map_end_like_one_under_pmap(files: Path) -> None:
    code, _, errors = helpers.run_jaxkd(*command(files, "whole", epochs=2), devices=2)
    assert code == 0, errors
    with two_processes(files, "joint", *[["--epochs", "2", "--mapping", "shard_map"]] * 2) as children:
        for code, said in endings(children):
            assert code == 0, said
    assert record(files / "joint") == record(files / "whole")
    for folder in ("whole", "joint"):
        assert (files / folder / "result.json").is_file()
    digests = {teachers.describe(files / folder).digest for folder in ("whole", "joint")}
    assert len(digests) == 1


def test_two_processes_killed_and_stopped_end_like_one_with_two_devices(files: Path) -> None:
    code, _, errors = helpers.run_jaxkd(*command(files, "whole"), devices=2)
    assert code == 0, errors

    with two_processes(files, "cut") as children:
        read_until(children[0], "epoch ")
        children[1].kill()
        code, said = endings(children)[0]
        assert code == 76, said
        assert "process 0 of 2 lost a peer" in said
        assert "start all processes again with the same command" in said

    with two_processes(files, "cut") as children:
        read_until(children[0], "epoch ")
        children[1].send_signal(signal.SIGTERM)  # the other one has to hear of it
        (first_code, first), (second_code, second) = endings(children)
        assert (first_code, second_code) == (75, 75), first + second
        stops = {text[text.index("stopped by SIGTERM after") :].split(";")[0] for text in (first, second)}
        assert len(stops) == 1

    # Streamed, each process reads its own share; the same images, so the same bits.
    with two_processes(files, "cut", ["--stream"], ["--stream"]) as children:
        (first_code, first), (second_code, second) = endings(children)
        assert (first_code, second_code) == (0, 0), first + second
        assert "resuming at step" in first
        assert "epoch" not in second

    digests = [
        json.loads((files / run / "model" / "teacher.json").read_text())["digest"] for run in ("whole", "cut")
    ]
    assert digests[0] == digests[1]
    assert record(files / "cut") == record(files / "whole")


@pytest.mark.parametrize(
    ("option", "difference"),
    [  # of the messages in the midst of a run; of the result; of the messages from the beginning on
        (["--stream"], "stream (there False, here True)"),
        pytest.param(["--seed", "1"], "seed (there 0, here 1)", marks=pytest.mark.slow),
        pytest.param(["--seeds", "2"], "seeds (there 1, here 2)", marks=pytest.mark.slow),
    ],
)
def test_processes_with_different_configurations_are_refused(
    files: Path, option: list[str], difference: str
) -> None:
    with two_processes(files, "run", [], option) as children:
        (first_code, first), (second_code, second) = endings(children)
    assert (first_code, second_code) == (1, 1), first + second
    assert "process 1 was started with a different configuration than process 0" in first
    assert f"different: {difference}" in second
    assert not (files / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "here:1234"}, "--num-processes, --process-id is missing"),
        ({"coordinator": "here:1", "num_processes": 2, "process_id": 2}, "--process-id must be from 0 to 1"),
        ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "--coordinator must be HOST:PORT"),
        ({"peer_timeout": 0}, "--peer-timeout must be at least 1, got 0"),
    ],
)
def test_what_does_not_make_a_group_of_processes_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)
