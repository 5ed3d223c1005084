"""Flips, cuts and nonsense in the files that decide on something: what was not written must be told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import storage, teachers
from jaxkd.cache.store import CacheKey, TeacherCache
from jaxkd.config import DistillConfig, TrainConfig
from jaxkd.files import records
from jaxkd.runs.checkpoint import Checkpoints, recorded_config
from jaxkd.runs.config import from_file
from jaxkd.runs.record import CONFIG, RESULT, Record, read_metrics, recorded

IDENTITY = {"seed": 3, "data_digest": "a1"}
KEY = CacheKey("a1", "resnet8", (0.5,), (0.25,), "train", "b2", 10, 3, "crop")
NUMBERS = {
    "parameters": 77850, "test_examples": 360, "epochs": 2, "seed": 3, "last_accuracy": 70.31,
    "best_accuracy": 71.25, "best_epoch": 1, "last_ce": 1e-05, "images_per_second": None,
}  # fmt: skip
WORDS = {"model": "resnet8", "data": "digits", "method": "labels"}
OBJECTS: dict[str, Any] = {"losses": {"loss": 0.5}, "metrics": {}, "seconds": {"train": 1.5}}
NONSENSE = (
    b"", b"{}", b"[]", b"null", b"3", b'"text"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\0" * 100,
    b'{"config": 1' + b"0" * 5000 + b"}", b'{"config": {"epochs": 1e999}}', b"NaN", b'{"format": [2]}',
    b'{"config": {}, "config": []}',
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 10**400, 1e400, float("nan"), "text", "../../x", [], [[[]]], {}, {"a": {"b": []}},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """A file that decides on something.

    Attributes:
      file: where it is.
      believed: reads it as jaxkd does; raises ValueError if it finds it damaged.
      bits: flips every so many bits.
      names: whether the file holds words of its own that change nothing if they are hit.
    """

    file: Path
    believed: Callable[[], Any]
    bits: int = 1
    names: bool = False


def scene(folder: Path) -> list[Target]:
    """A teacher, an exported one, a run with a checkpoint, and a cache; and how each file of them is read."""
    shipped = teachers.load("digits-resnet20")
    teachers.save(folder / "teacher", shipped.variables, shipped.description)
    exported = folder / "teacher.safetensors"
    teachers.export_torch(shipped, exported)

    run = folder / "run"
    record = Record(run)
    record.open(TrainConfig(run=run, epochs=2, seed=3).as_dict(), IDENTITY, jax.devices()[:1])
    record.rewind(0)
    record.write("test", 5, 1, accuracy=70.31, ce=1e-5)
    record.finish({**NUMBERS, **WORDS, **OBJECTS})
    record.close()
    other = folder / "other"  # with a checkpoint, from which a config.json is known
    checkpoints = Checkpoints(other / "checkpoints", IDENTITY, config=record.config)
    checkpoints._write(other / "checkpoints" / "4", {"step": np.int32(4)})
    about = other / "checkpoints" / "4" / "about.json"

    cache = TeacherCache.create(folder / "cache", KEY)
    with cache.writing():
        cache.append(np.arange(3), np.zeros((3, 3), np.float16))

    def config() -> Any:
        known = recorded(run)
        if known.config is None:
            raise ValueError(known.trouble or f"{run / 'config.json'} is absent")
        return known.config

    def result() -> Any:
        return records.read(run / "result.json", RESULT)

    def checkpoint() -> Any:
        found = recorded_config(other / "checkpoints")
        if found is None:
            raise ValueError(f"{about} is damaged")  # which was logged
        return found

    def rows() -> Any:
        opened = TeacherCache(folder / "cache", KEY)
        if not len(opened):
            raise ValueError(f"rows in {folder / 'cache'} are left out")  # which was logged
        return opened.dtype, opened.fetch(opened.locate(np.arange(3)))[0].tolist()

    def lines() -> Any:
        found = read_metrics(run)
        if not found:
            raise ValueError(f"a line of {run / 'metrics.jsonl'} is left out")  # which was logged
        return [[line.get(name) for name in ("kind", "step", "epoch", "accuracy", "ce")] for line in found]

    def weights() -> Any:
        variables = teachers.import_torch(exported, model="resnet20", num_classes=10, image_shape=(8, 8, 1))
        return teachers.described_in(exported), storage.tree_digest(variables)

    entry = lambda: dataclasses.replace(teachers.describe(folder / "teacher"), files=None)  # noqa: E731
    return [
        Target(folder / "teacher" / "teacher.json", entry),
        Target(run / "config.json", config),
        Target(run / "config.json.sha256", config),
        Target(run / "result.json", result),
        Target(run / "result.json.sha256", result),
        Target(run / "metrics.jsonl", lines, names=True),
        Target(about, checkpoint),
        Target(folder / "cache" / "cache.json", rows),
        Target(folder / "cache" / "segments.jsonl", rows),
        Target(exported, weights, bits=1499, names=True),
    ]


def outcome(target: Target, truth: Any) -> str:
    """What reading a changed file comes to."""
    try:
        found = target.believed()
    except ValueError as error:
        there = target.file.name.removesuffix(".sha256")
        named = there in str(error) or target.file.parent.name in str(error)
        return "told" if named else f"NOT NAMED: {error}"
    except FileNotFoundError:
        return "told"
    except Exception as error:
        return f"TRACEBACK: {type(error).__name__}: {error}"
    if found == truth:
        return "same values"
    return f"BELIEVED: {str(found)[:200]}"


def flips(good: bytes, step: int) -> Iterator[bytes]:
    """The contents with one bit changed."""
    for bit in range(0, 8 * len(good), step):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def cuts(good: bytes) -> Iterator[bytes]:
    """The contents without their end."""
    for length in range(0, len(good), max(1, len(good) // 200)):
        yield good[:length]


def attack(folder: Path) -> list[tuple[str, str, list[str]]]:
    """Changes each file in every way; rows of what was changed, how, and the outcomes."""
    rows = []
    with quiet():
        for target in scene(folder):
            good, truth = target.file.read_bytes(), target.believed()
            ways = {
                "a bit flipped": flips(good, target.bits), "cut": cuts(good), "nonsense": iter(NONSENSE)
            }  # fmt: skip
            for way, contents in ways.items():
                outcomes = []
                for changed in contents:
                    target.file.write_bytes(changed)
                    outcomes.append(outcome(target, truth))
                target.file.write_bytes(good)
                rows.append((target.file.relative_to(folder).as_posix(), way, outcomes))
            target.file.unlink()
            rows.append((target.file.relative_to(folder).as_posix(), "deleted", [outcome(target, truth)]))
            target.file.write_bytes(good)
    return [
        *rows,
        ("an own config.json", "values of other types", list(other_types(folder))),
        *signed(folder),
    ]


def other_types(folder: Path) -> Iterator[str]:
    """Every option with every strange value: an error that names file and option, or a value of its type."""
    file = folder / "own.json"
    for command in (TrainConfig, DistillConfig):
        good = {"teacher": "digits-resnet20"} if command is DistillConfig else {}
        for option in command.__dataclass_fields__:
            for value in VALUES:
                file.write_text(json.dumps({"config": {**good, option: value}}))
                flag = "--" + option.replace("_", "-")
                try:
                    from_file(command, file)
                except ValueError as error:
                    named = "own.json" in str(error) and (flag in str(error) or option in str(error))
                    yield "told" if named else f"NOT NAMED: {error}"
                except Exception as error:
                    yield f"TRACEBACK: {option} {value!r:.40}: {type(error).__name__}: {error}"
                else:
                    yield "a value of its type"


def signed(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Fields of other types under a right checksum, which a stranger can make too."""
    good = {"config": {}, "identity": {}, "environment": {}, "objects": [], "sources": {}}
    for name, schema, contents in (
        ("result.json", RESULT, {**NUMBERS, **WORDS, **OBJECTS}),
        ("config.json", CONFIG, good),
    ):
        outcomes = []
        for field in contents:
            for value in VALUES:
                records.write(folder / name, _anything(contents), {**contents, field: value})
                try:
                    records.read(folder / name, schema)
                except ValueError as error:
                    outcomes.append(
                        "told" if field in str(error) and name in str(error) else f"NOT NAMED: {error}"
                    )
                except Exception as error:
                    outcomes.append(f"TRACEBACK: {field} {value!r:.40}: {type(error).__name__}: {error}")
                else:
                    outcomes.append("a value of its type")
        yield f"{name} with a right checksum", "values of other types", outcomes


def _anything(contents: dict[str, Any]) -> records.Schema:
    return records.Schema("anything", dict.fromkeys(contents, records.Field("anything", lambda _: True)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the thousands of warnings of what is left out."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
