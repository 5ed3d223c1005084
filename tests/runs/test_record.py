"""The record of a run: metrics and events, also on a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxkd.config import TrainConfig
from jaxkd.files import records
from jaxkd.runs import processes
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.config import from_file
from jaxkd.runs.events import Events
from jaxkd.runs.record import CONFIG, Record, read_metrics, recorded


def events(folder: Path) -> list[Event]:
    """What TensorBoard reads: records of a length, its checksum, the event, its checksum."""
    found = []
    for path in sorted(folder.glob("events.*")):
        contents = path.read_bytes()
        while contents:
            (length,) = struct.unpack("<Q", contents[:8])
            found.append(Event.FromString(contents[12 : 12 + length]))
            contents = contents[16 + length :]
    return found


def test_lines_and_events_are_there_at_once(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.rewind(4)
    record.write("train", 5, 1, loss=0.5, ce=0.25)
    assert read_metrics(tmp_path) == [{"kind": "train", "step": 5, "epoch": 1, "loss": 0.5, "ce": 0.25}]
    start, restart, hide, line = events(tmp_path / "tensorboard")
    assert start.file_version == restart.file_version == "brain.Event:2"
    assert (hide.step, hide.session_log.status) == (5, 1)  # what an earlier process wrote from step 5 on
    assert line.step == 5
    assert {value.tag: value.simple_value for value in line.summary.value} == {
        "train/loss": 0.5,
        "train/ce": 0.25,
    }
    record.close()


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    good = {"kind": "test", "step": 3, "epoch": 1, "accuracy": 50.0}
    lines = [json.dumps(good), '{"kind": "test", "st', "[1]", "\x00\x01", json.dumps(good | {"step": 6})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 6]


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 8 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_much(write: Callable[[int], None]) -> None:
    for step in range(1000):
        write(step)


def test_a_full_disk_is_an_error_and_no_hang(tmp_path: Path) -> None:
    record, events_alone = Record(tmp_path), Events(tmp_path / "events", 0)
    record.rewind(0)
    with full_disk():
        with pytest.raises(OSError, match="File too large"):
            write_much(lambda step: record.write("train", step, 1, loss=1.0))
        record.close()
        with pytest.raises(OSError, match="File too large"):
            write_much(lambda step: events_alone.write(step, {"loss": 1.0}))


IDENTITY = {"seed": 3, "data_digest": "a1"}
RESULT = {
    "model": "resnet8",
    "parameters": 77850,
    "data": "digits",
    "test_examples": 360,
    "epochs": 2,
    "seed": 3,
    "last_accuracy": 70.31,
    "best_accuracy": 71.25,
    "best_epoch": 1,
    "last_ce": 1e-05,
    "method": "labels",
    "losses": {"loss": 0.5},
    "metrics": {"temperature": {"mean": 4.0, "counts": [1.0, 2.0]}},
    "images_per_second": None,
    "seconds": {"train": 1.5},
}


def opened(folder: Path, **changes: Any) -> tuple[Record, list[str]]:
    """The record of a run that is opened as a run does, and what it notes."""
    record = Record(folder)
    config = TrainConfig(run=folder, epochs=2, seed=3, learning_rate=1e-5, **changes)
    try:
        return record, record.open(config.as_dict(), IDENTITY, jax.devices()[:1])
    finally:
        record.close()


def saved(folder: Path, record: Record) -> None:
    """Adds a checkpoint of step 4, without networks."""
    checkpoints = Checkpoints(folder / "checkpoints", IDENTITY, config=record.config)
    checkpoints._write(folder / "checkpoints" / "4", {"step": np.int32(4)})


def flipped(file: Path) -> Iterator[None]:
    """Yields after each of some 2,000 bits of a file was flipped, or of all, and puts the file back."""
    good = file.read_bytes()
    for bit in range(0, 8 * len(good), len(good) * 8 // 2000 | 1):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        yield
    file.write_bytes(good)


@pytest.mark.parametrize("name", ["result.json", "result.json.sha256"])
def test_every_flipped_bit_of_a_result_is_found(tmp_path: Path, name: str) -> None:
    """Before, 29 % were believed: "done already: 50.31 %" for 70.31 %."""
    record, _ = opened(tmp_path)
    record.finish(RESULT)
    assert record.result() == RESULT
    for _ in flipped(tmp_path / name):
        assert record.result() is None
    assert record.result() == RESULT


@pytest.mark.parametrize("name", ["config.json", "config.json.sha256"])
def test_every_flipped_bit_of_a_config_is_found(tmp_path: Path, name: str) -> None:
    opened(tmp_path)
    for _ in flipped(tmp_path / name):
        known = recorded(tmp_path)
        assert known.config is None
        assert "config.json" in str(known.trouble)
    assert recorded(tmp_path).trouble is None


def test_checksums_are_those_that_sha256sum_takes(tmp_path: Path) -> None:
    opened(tmp_path)
    digest = hashlib.sha256((tmp_path / "config.json").read_bytes()).hexdigest()
    assert (tmp_path / "config.json.sha256").read_text() == f"{digest}  config.json\n"


def test_every_flipped_bit_of_a_test_line_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They become the result when a stopped run goes on."""
    record = Record(tmp_path)
    record.rewind(0)
    record.write("test", 5, 1, accuracy=70.31, ce=1e-5)
    record.close()
    (line,) = read_metrics(tmp_path)
    assert line == {"kind": "test", "step": 5, "epoch": 1, "accuracy": 70.31, "ce": 1e-5}
    unnoticed = 0
    for _ in flipped(tmp_path / "metrics.jsonl"):
        caplog.clear()
        found = read_metrics(tmp_path)
        assert found in ([], [line]) or "crc32" not in str(found)
        unnoticed += bool(found) and found != [line] and not caplog.text
    assert unnoticed <= 32  # bits of the checksum's own name, which leave the numbers as they are


@pytest.mark.parametrize("damage", ["lost", "edited", "checksum lost", "nested", "a list", "huge"])
def test_what_a_config_said_is_known_from_the_checkpoint(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    record, _ = opened(tmp_path)
    saved(tmp_path, record)
    file = tmp_path / "config.json"
    good = file.read_bytes()
    if damage == "lost":
        file.unlink()
    elif damage == "checksum lost":
        (tmp_path / "config.json.sha256").unlink()
    else:
        texts = {"nested": b"[" * 100_000, "a list": b"[]", "huge": b'{"config": 1' + b"0" * 5000 + b"}"}
        file.write_bytes(texts.get(damage) or good.replace(b"1e-05", b"9e-05"))
    assert from_file(TrainConfig, file).learning_rate == 1e-5
    assert "resuming with the options in checkpoint 4" in caplog.text
    _, notes = opened(tmp_path)
    assert file.read_bytes() == good
    assert recorded(tmp_path).trouble is None
    assert "rebuilt from checkpoint 4" in notes[0]
    assert len(list(tmp_path.glob("damaged-*-config.json"))) == (damage != "lost")


def test_a_config_that_nobody_knows_is_told(tmp_path: Path) -> None:
    record, _ = opened(tmp_path)
    record.finish(RESULT)
    file = tmp_path / "config.json"
    file.write_bytes(file.read_bytes().replace(b"1e-05", b"9e-05"))
    with pytest.raises(ValueError, match=r"--config .*checksum mismatch.*no checkpoint contains it; if"):
        from_file(TrainConfig, file)
    with pytest.raises(ValueError, match=r"checksum mismatch.*result\.json in .* is left alone"):
        opened(tmp_path)
    # Nor is a result taken for that of whoever comes next.
    for name in ("config.json", "config.json.sha256"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"holds result\.json, but no config\.json that describes it"):
        opened(tmp_path)
    # Before anything was saved, nothing is lost.
    for name in ("result.json", "result.json.sha256"):
        (tmp_path / name).unlink()
    opened(tmp_path)
    file.write_text("")
    _, notes = opened(tmp_path)
    assert "no step had been saved" in notes[0]


def test_a_copy_may_be_edited(tmp_path: Path) -> None:
    """A run's own config.json has a checksum, a copy of another name has none."""
    opened(tmp_path / "run")
    contents = json.loads((tmp_path / "run" / "config.json").read_text())
    contents["config"] |= {"learning_rate": 0.5, "run": str(tmp_path / "other")}
    for copy in (tmp_path / "run" / "mine.json", tmp_path / "config.json"):
        copy.write_text(json.dumps(contents))
        options = from_file(TrainConfig, copy)
        assert (options.learning_rate, options.run) == (0.5, tmp_path / "other")
    # Where it lies, it is not taken for a run, and stays.
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"config\.json was not written by a run here, and is left alone"):
        opened(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"config": []}, "config must be an object, got"),
        ({"config": {"epochs": True}}, "--epochs must be a whole number or nothing, got True"),
        ({"config": {"epochs": 1e400}}, "--epochs must be a whole number or nothing, got inf"),
        ({"config": {"learning_rate": 10**400}}, "--learning-rate must be a number"),
        ({"config": {"learning_rate": "fast"}}, "--learning-rate must be"),
        ({"config": {"optimiser": "sgd"}}, "options that TrainConfig does not have: optimiser"),
        ({"config": {}, "colour": 1}, "unknown field 'colour'"),
        ({}, "the field 'config' is missing"),
    ],
)
def test_fields_of_a_config_are_named(tmp_path: Path, contents: dict[str, Any], message: str) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=rf"--config .*mine\.json.*{message}"):
        from_file(TrainConfig, tmp_path / "mine.json")


def test_fields_of_a_result_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record, _ = opened(tmp_path)
    with pytest.raises(ValueError, match=r"last_accuracy must be a number from 0 to 100, got 703\.1"):
        record.finish(RESULT | {"last_accuracy": 703.1})
    assert record.result() is None
    assert not caplog.text


def test_other_versions_and_devices_are_told_and_recorded(tmp_path: Path) -> None:
    opened(tmp_path)
    assert opened(tmp_path)[1] == []
    stored = records.read(tmp_path / "config.json", CONFIG)
    stored["environment"] |= {"jax": "0.9.0", "num_devices": 8}
    records.write(tmp_path / "config.json", CONFIG, stored)
    change = f"jax 0.9.0, now {jax.__version__}; num_devices 8, now 1"
    for _ in range(2):
        (note,) = opened(tmp_path)[1]
        assert f"this run began with {change}. It resumes" in note
        assert records.read(tmp_path / "config.json", CONFIG) == stored | {"resumed": [change]}


def test_a_record_of_several_processes_asks_them_one_thing_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run goes on with other versions: a question within another is answered by nobody."""
    opened(tmp_path)
    stored = records.read(tmp_path / "config.json", CONFIG)
    stored["environment"] |= {"jax": "0.9.0"}
    records.write(tmp_path / "config.json", CONFIG, stored)
    asking = False

    def from_first(compute: Callable[[], Any]) -> Any:
        nonlocal asking
        assert not asking, "within another question"
        asking = True
        found = compute()
        asking = False
        return found

    monkeypatch.setattr(processes, "from_first", from_first)
    with contextlib.closing(processes.SharedRecord(tmp_path)) as record:
        (note,) = record.open({"epochs": 1}, stored["identity"], jax.devices()[:1])
    assert "this run began with jax 0.9.0" in note


@pytest.mark.parametrize("kind", ["a file", "a link to nothing", "below a file"])
def test_what_is_in_the_way_of_a_folder_is_named(tmp_path: Path, kind: str) -> None:
    """Before: "(File exists); give it free space and the right to write there"."""
    folder = tmp_path / "run"
    if kind == "a link to nothing":
        folder.symlink_to(tmp_path / "gone")
    else:
        folder.write_text("years")
    message = (
        f"the link {folder} points to nothing" if "link" in kind else f"{folder} is a file: move it away"
    )
    with pytest.raises(OSError, match=message):
        opened(folder / "one" if kind == "below a file" else folder)


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    record = Record(tmp_path / "run")
    record.open(TrainConfig().as_dict(), {}, jax.devices()[:1])
    record.close()
    assert "cannot be locked (Function not implemented)" in caplog.text
