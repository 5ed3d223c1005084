"""Runs, teachers, caches, reports and data sets in a bucket: what holds on a disk holds there."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
from bucket_server import refusing_after
from helpers import Tiny, silent

import jaxkd
from jaxkd import data, storage, teachers
from jaxkd.cache.store import CacheKey, TeacherCache
from jaxkd.files import leases
from jaxkd.files.leases import Lease
from jaxkd.files.places import place
from jaxkd.runs.checkpoint import read_newest, saved_steps
from jaxkd.runs.record import read_metrics
from jaxkd.runs.report import report

RUN = "gs://kd-bucket/runs/a"
TINY: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "devices": 1,
    "log_every": 2,
    "checkpoint_seconds": 0.0,
}


def train(folder: Any, dataset: data.Dataset, say: Any = silent) -> Any:
    """A run of ten steps, with a checkpoint every second one."""
    return jaxkd.train(data=dataset, model=Tiny(), run=folder, say=say, **TINY)


def state_of(folder: Any) -> str:
    """The digest of all arrays of a run's newest checkpoint."""
    found, damaged = read_newest(place(folder) / "checkpoints")
    assert found is not None
    assert not damaged
    return storage.tree_digest(found.state)


def lines(folder: Any) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_metrics(place(folder))
    ]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory, dataset: data.Dataset) -> Path:
    """The same run in a folder of this machine."""
    folder = tmp_path_factory.mktemp("disk") / "a"
    train(folder, dataset)
    return folder


def test_a_run_in_a_bucket_is_that_on_a_disk(server: Any, on_disk: Path, dataset: data.Dataset) -> None:
    done = train(RUN, dataset)
    assert state_of(RUN) == state_of(on_disk)
    assert lines(RUN) == lines(on_disk)
    here = {path.relative_to(on_disk).as_posix() for path in on_disk.rglob("*") if path.is_file()}
    there = set(place(RUN).objects())
    for names in (here, there):
        assert {
            "config.json",
            "config.json.sha256",
            "result.json",
            "metrics.jsonl",
            "model/teacher.json",
        } < names
    assert not [name for name in there if ".lock" in name or "jaxkd-" in name]
    assert len([name for name in there if name.startswith("tensorboard/events")]) == 1
    assert saved_steps(place(RUN) / "checkpoints") == saved_steps(on_disk / "checkpoints")
    before = len(server.requests)
    assert train(RUN, dataset)["last_accuracy"] == done["last_accuracy"]  # done already
    assert not [method for method, path in server.requests[before:] if "checkpoints" in path]


@pytest.mark.parametrize("count", [25, 110, pytest.param(None, marks=pytest.mark.slow)])
def test_cut_off_anywhere_it_ends_with_the_same_bits(
    server: Any, on_disk: Path, dataset: data.Dataset, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store does nothing more from some request on, as for a process that was killed."""
    monkeypatch.setattr(leases, "SECONDS", 0.3)
    for number in [count] if count is not None else range(2, 300, 9):
        folder = f"gs://kd-bucket/cut/{number}"
        with server.failing(refusing_after(number)), contextlib.suppress(OSError):
            train(folder, dataset)
        train(folder, dataset)
        assert state_of(folder) == state_of(on_disk), number
        assert lines(folder) == lines(on_disk), number


def test_a_store_that_is_slow_and_fails_for_a_while_is_waited_for(
    server: Any, on_disk: Path, dataset: data.Dataset
) -> None:
    seen = [0]

    def fault(method: str, path: str, query: dict[str, str]) -> int | None:
        time.sleep(0.02)
        seen[0] += 1
        if seen[0] == 70:
            threading.Thread(target=server.stop).start()
            threading.Timer(1.5, server.start).start()
        return 503 if seen[0] % 40 == 0 else None

    with server.failing(fault):
        train(RUN, dataset)
    assert seen[0] > 70
    assert state_of(RUN) == state_of(on_disk)


def test_a_damaged_checkpoint_is_skipped_and_set_aside(
    server: Any, on_disk: Path, dataset: data.Dataset
) -> None:
    train(RUN, dataset)
    for name in ("result.json", "result.json.sha256"):
        (place(RUN) / name).unlink()
    newest = place(RUN) / "checkpoints" / "10"
    part = next(name for name in newest.objects() if "/d/" in name)
    (newest / part).put(b"another")
    assert read_newest(place(RUN) / "checkpoints")[1] == [10]
    train(RUN, dataset)
    assert state_of(RUN) == state_of(on_disk)
    assert len([path for path in newest.parent.iterdir() if path.name.startswith("damaged-10-")]) == 1


def test_a_second_process_is_refused_while_the_first_lives(server: Any, dataset: data.Dataset) -> None:
    with (
        contextlib.closing(Lease(place(RUN) / ".lock", RUN)),
        pytest.raises(ValueError, match=rf"another process is working on {RUN}: process \d+ on"),
    ):
        train(RUN, dataset)


def test_whoever_lost_a_run_writes_no_more(
    server: Any, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usurp(_: str) -> None:
        place(f"{RUN}/.lock").put(json.dumps({"holder": "x", "host": "other", "process": 7}).encode())

    with pytest.raises(OSError, match=rf"{RUN} was taken over by process 7 on other"):
        train(RUN, dataset, say=usurp)
    assert saved_steps(place(RUN) / "checkpoints") == []


@pytest.mark.parametrize(
    ("folder", "status", "message"),
    [
        ("gs://kd-absent/runs/a", None, "there is no bucket kd-absent; make it with"),
        (RUN, 403, "give the account the role Storage Object Admin on the bucket kd-bucket"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_said_before_training(
    server: Any, dataset: data.Dataset, folder: str, status: int | None, message: str
) -> None:
    said: list[str] = []
    with server.failing(lambda *_: status), pytest.raises(OSError, match=message):
        train(folder, dataset, say=said.append)
    assert not said


def test_teachers_and_reports(
    server: Any,
    tmp_path: Path,
    dataset: data.Dataset,
    on_disk: Path,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A teacher is saved, replaced, loaded, distilled from and reported; those that were copied there too."""
    known, there = teachers.load(teacher), "gs://kd-bucket/teachers/mine"
    for _ in range(2):
        teachers.save(there, known.variables, known.description)
    assert teachers.describe(there).digest == known.digest
    again = teachers.load(there)
    images = dataset.splits["test"].images[:2]  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.logits(images), known.logits(images))
    with pytest.raises(
        FileNotFoundError, match=r'no teacher "gs://kd-bucket/none": .*gs://kd-bucket/none/model'
    ):
        teachers.load("gs://kd-bucket/none")

    copied = place("gs://kd-bucket/copied")  # by other tools, in any order
    for path in sorted(on_disk.rglob("*"), reverse=True):
        if path.is_file():
            (copied / path.relative_to(on_disk).as_posix()).write_bytes(path.read_bytes())
    assert teachers.describe(copied).name == "copied"
    train("gs://kd-bucket/copied", dataset)
    assert state_of("gs://kd-bucket/copied") == state_of(on_disk)

    table = report(["gs://kd-bucket/copied", there], "gs://kd-bucket/report")
    accuracy = teachers.describe(on_disk).description.test_accuracy
    assert f"{accuracy:.2f}" in table
    assert "| mine " in table
    assert {"report.md", "table.csv", "table.tex"} < set(place("gs://kd-bucket/report").objects())

    copied.rename("gs://kd-bucket/runs/copied")
    assert "| copied " in report(["gs://kd-bucket/runs"], tmp_path / "report")  # a folder of runs
    monkeypatch.setenv("JAXKD_TEACHERS", "gs://kd-bucket/teachers")
    assert "mine" in [entry.name for entry in teachers.available()]
    assert teachers.load("mine").digest == known.digest

    file = place(there) / "variables" / "manifest.ocdbt"
    file.put(b"x" + file.read_bytes()[1:])
    with pytest.raises(storage.DamagedError, match=f"{there}/variables/manifest.ocdbt is damaged: checksum"):
        teachers.load(there)


def test_a_name_that_leads_out_of_a_folder_is_refused(server: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(storage.DamagedError, match=r"names a file '\.\./b'"),
        storage.at_hand(place("gs://kd-bucket/a"), ["../b"]),
    ):
        pass


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Changes to a machine of some name, which has files of its own."""
    return lambda name: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def test_a_teacher_cache_is_filled_here_and_used_there(
    server: Any, other_machine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    KEY = CacheKey("a1", "resnet8", (0.5,), (0.2,), "train", "b2", 10, 3, "crop")

    def rows_of(codes: np.ndarray) -> np.ndarray:
        return np.stack([codes, codes / 7, -codes], axis=-1).astype(np.float32)

    folder = place("gs://kd-bucket/cache")
    made = TeacherCache.create(folder, KEY, "float32")
    with made.writing():
        made.append(np.array([5, 2, 9]), rows_of(np.array([5, 2, 9])))
        with (
            pytest.raises(ValueError, match="another process is working on the teacher cache gs://kd-bucket"),
            TeacherCache(folder, KEY).writing(),
        ):
            pass
    other_machine("second")
    with (second := TeacherCache(folder, KEY)).writing():
        second.append(np.array([100, 7]), rows_of(np.array([100, 7])))
    assert len(server.names()) == 3  # cache.json and two segments
    other_machine("third")
    before = len(server.requests)
    for _ in range(2):  # fetched once
        third = TeacherCache(folder, KEY)
        wanted = np.array([[7, 100], [2, 5]])
        np.testing.assert_array_equal(third.fetch(third.locate(wanted))[0], rows_of(wanted))
        assert len(third) == 5
    fetched = [path for _, path in server.requests[before:] if "/segments/" in path]
    assert len(fetched) == 2

    other_machine("fourth")
    segment = next(name for name in server.names() if "/segments/" in name)
    place(f"gs://kd-bucket/{segment}").put(server.contents(segment)[:-4] + b"oops")
    fourth = TeacherCache(folder, KEY)
    assert "checksum mismatch" in caplog.text
    absent = fourth.missing(np.array([5, 2, 9, 100, 7]))
    assert len(absent) in (2, 3)
    with fourth.writing():
        fourth.append(absent, rows_of(absent))
    assert len(TeacherCache(folder, KEY)) == 5


def test_an_npz_file_of_a_bucket_is_a_data_set(server: Any, tmp_path: Path, dataset: data.Dataset) -> None:
    file = helpers.write_npz(tmp_path / "tiny.npz", dataset)
    place("gs://kd-bucket/data/tiny.npz").write_bytes(file.read_bytes())
    assert data.load("gs://kd-bucket/data/tiny.npz").digest == data.load(str(file)).digest
    with pytest.raises(FileNotFoundError, match=r"no file gs://kd-bucket/data/none\.npz"):
        data.load("gs://kd-bucket/data/none.npz")


@pytest.mark.slow
def test_a_prepared_data_set_is_read_from_a_bucket(server: Any, shared_data: Path) -> None:
    pytest.importorskip("gcsfs", reason="needs gcsfs (pip install '.[gcs]')")
    root = shared_data / "tfds"
    for path in root.glob("cifar10/*/*"):
        if "train" not in path.name:
            place(f"gs://kd-bucket/tfds/{path.relative_to(root)}").put(path.read_bytes())
    server.requests.clear()
    read = data.load("cifar10", data_dir="gs://kd-bucket/tfds", splits=("test",))
    assert read.digest == data.load("cifar10", data_dir=root, splits=("test",)).digest
    assert len(server.requests) < 60


def start(server: Any, *arguments: object) -> subprocess.Popen[str]:
    """The command line in a child process, with leases that expire soon."""
    program = (
        "from jaxkd.files import leases; leases.SECONDS, leases._BEAT_SECONDS = 2.0, 0.4\n"
        "from jaxkd.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=helpers.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_at(server: Any, child: subprocess.Popen[str], number: int) -> None:
    """Ends a child with SIGKILL when it writes the `number`-th object of a checkpoint."""
    written = [0]

    def fault(method: str, path: str, query: dict[str, str]) -> int | None:
        # With the first object's name in the body alone, uploads are counted by what is there.
        if method == "POST" and any("/checkpoints/" in name for name in server.names()):
            written[0] += 1
            if written[0] == number:
                child.kill()
                child.wait()
        return None

    with server.failing(fault):
        child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "numbers", [(21,), pytest.param((2, 13, 21, 34, 47, 25), marks=pytest.mark.slow)], ids=["once", "often"]
)
def test_killed_in_a_save_and_started_again(
    server: Any, tmp_path: Path, dataset: data.Dataset, numbers: tuple[int, ...]
) -> None:
    """Real processes, SIGKILL in the midst of a save: the same command ends with the bits of a disk."""
    file = helpers.write_npz(tmp_path / "tiny.npz", dataset)
    place("gs://kd-bucket/data/tiny.npz").write_bytes(file.read_bytes())
    common = ["train", "--model", "resnet8", "--epochs", 2, "--batch-size", 8, "--log-every", 2]
    common += ["--checkpoint-seconds", 0, "--data", "gs://kd-bucket/data/tiny.npz"]
    disk = start(server, *common, "--run", tmp_path / "a")
    output, errors = disk.communicate(timeout=300)
    assert disk.returncode == 0, errors
    for number in numbers:
        killed_at(server, start(server, *common, "--run", RUN), number)
    last = start(server, "train", "--config", f"{RUN}/config.json")
    output, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert "resuming at step" in output
    assert state_of(RUN) == state_of(tmp_path / "a")
    assert lines(RUN) == lines(tmp_path / "a")


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed(server: Any, tmp_path: Path) -> None:
    """In a bucket, half under pmap and half under shard_map, as one process with two devices on a disk."""
    common = ["train", "--model", "resnet8", "--epochs", 1, "--log-every", 5, "--checkpoint-seconds", 0]

    def both(*more: object) -> list[subprocess.Popen[str]]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            joint = ["--coordinator", f"localhost:{probe.getsockname()[1]}", "--num-processes", 2]
        joint += ["--peer-timeout", 20, "--run", RUN]
        return [start(server, *common, *joint, *more, "--process-id", number) for number in range(2)]

    children = both()
    while not any(name.endswith("about.json") for name in server.names()):
        assert children[0].poll() is None
        time.sleep(0.1)
    children[0].kill()
    for child in children:
        child.communicate(timeout=300)
    assert children[1].returncode in (76, -signal.SIGABRT)
    children = both("--mapping", "shard_map")
    for child in children:
        said = "".join(child.communicate(timeout=300))
        assert child.returncode == 0, said
    code, _, errors = helpers.run_jaxkd(*common, "--run", tmp_path / "a", devices=2)
    assert code == 0, errors
    assert state_of(RUN) == state_of(tmp_path / "a")
    assert lines(RUN) == lines(tmp_path / "a")
