"""The record of a run: metrics and events, also on a disk that is full."""

from __future__ import annotations

import contextlib
import json
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxkd.runs.events import Events
from jaxkd.runs.record import Record, read_metrics


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
