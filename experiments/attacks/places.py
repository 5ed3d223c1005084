"""Odd folders, things in the way, users and limits that nobody expects: it works, or says why it does not."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from records import IDENTITY, KEY, NUMBERS, OBJECTS, WORDS, quiet

from jaxkd import data, teachers
from jaxkd.cache.store import TeacherCache
from jaxkd.config import TrainConfig
from jaxkd.runs.checkpoint import Checkpoints, read_newest
from jaxkd.runs.config import from_file
from jaxkd.runs.record import Record

ROOT = Path(__file__).parents[2]
NAMES = (
    "a b", "a[b]", "[0]", "*", "a?b", "back\\slash", "new\nline", "tab\t", "-dash", "--run", "$HOME", "${X}",
    "a;b", "a&b|c", "it's", 'say "x"', "<b>", "%41", "~", "...", "#x", "a:b", "ünïcödé",
    "文件", "\U0001f600", "x" * 200,
)  # fmt: skip
TREE = {"w": np.arange(4.0, dtype=np.float32)}


def everything(folder: Path) -> str:
    """Whatever jaxkd writes and reads again, in a folder of some name, twice: the second finds the first."""
    shipped = teachers.load("digits-resnet20")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "mine.npz",
        **{f"{split}_images": np.zeros((4, 8, 8, 1), np.uint8) for split in ("train", "test")},
        **{f"{split}_labels": np.arange(4) for split in ("train", "test")},
    )
    for _ in range(2):
        teachers.save(folder / "teacher", shipped.variables, shipped.description)
        assert teachers.load(folder / "teacher").digest == shipped.digest
        teachers.export_torch(shipped, folder / "t.safetensors")
        teachers.import_torch(
            folder / "t.safetensors", model="resnet20", num_classes=10, image_shape=(8, 8, 1)
        )
        record = Record(folder / "run")
        config = TrainConfig(run=folder / "run", data=str(folder / "mine.npz"), epochs=2, seed=3)
        record.open(config.as_dict(), IDENTITY, jax.devices()[:1])
        record.rewind(0)
        if record.result() is None:
            record.finish({**NUMBERS, **WORDS, **OBJECTS})
        record.close()
        assert from_file(TrainConfig, folder / "run" / "config.json").run == (folder / "run").resolve()
        checkpoints = Checkpoints(folder / "run" / "checkpoints", IDENTITY, config=record.config)
        if checkpoints.latest_step() is None:
            checkpoints._write(folder / "run" / "checkpoints" / "4", {"step": np.int32(4), **TREE})
        assert read_newest(folder / "run" / "checkpoints")[1] == []
        cache = TeacherCache.create(folder / "cache", KEY)
        with cache.writing():
            cache.append(np.arange(3), np.zeros((3, 3), np.float16))
        assert len(TeacherCache.create(folder / "cache", KEY)) == 3
        assert len(data.load(str(folder / "mine.npz")).splits["train"]) == 4
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert not left, left
    return "works"


def tried(do: Callable[[], str]) -> str:
    """What came of it: what it says, a message, or a traceback."""
    try:
        with quiet():
            return do()
    except (ValueError, OSError) as error:
        return f"told: {error}".replace("\n", " ")
    except Exception as error:
        return f"TRACEBACK: {type(error).__name__}: {error}"[:200]


def names(folder: Path) -> Iterator[tuple[str, str]]:
    """Every odd name, as the name of a folder."""
    for name in NAMES:
        yield repr(name)[:40], tried(lambda name=name: everything(folder / "names" / name))


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder, links as what they say."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def in_the_way(folder: Path) -> Iterator[tuple[str, str]]:
    """Somebody's things where jaxkd would write; they must be as they were."""
    shipped = teachers.load("digits-resnet20")

    def thesis(at: Path) -> None:
        at.mkdir()
        (at / "thesis.tex").write_text("years")

    def file(at: Path) -> None:
        at.write_text("years")

    def dangling(at: Path) -> None:
        at.symlink_to(folder / "gone" / "far")

    def model(at: Path) -> None:
        at.mkdir()
        teachers.save(at / "model", shipped.variables, shipped.description)

    def device(at: Path) -> None:
        at.mkdir()
        for name in ("teacher.json", "config.json", "cache.json"):
            (at / name).symlink_to("/dev/zero")

    def pipe(at: Path) -> None:
        at.mkdir()
        for name in ("teacher.json", "config.json", "cache.json"):
            os.mkfifo(at / name)

    def run(at: Path) -> str:
        record = Record(at)
        with contextlib.closing(record):
            record.open(TrainConfig(run=at).as_dict(), IDENTITY, jax.devices()[:1])
        return "works"

    def teacher(at: Path) -> str:
        teachers.save(at, shipped.variables, shipped.description)
        return "works"

    def cache(at: Path) -> str:
        TeacherCache.create(at, KEY)
        return "works"

    def load(at: Path) -> str:
        teachers.load(at)
        return "works"

    writers = {"a run": run, "a teacher": teacher, "a cache": cache, "loading": load}
    things = {
        "somebody's folder": thesis, "a file": file, "a link to nothing": dangling,
        "a teacher named model": model, "links to /dev/zero": device, "pipes": pipe,
    }  # fmt: skip
    for what, make in things.items():
        for who, write in writers.items():
            at = folder / "way" / f"{what} {who}".replace("/", "")
            at.parent.mkdir(parents=True, exist_ok=True)
            make(at)
            before = contents(at.parent) if what != "pipes" else {}
            came = tried(lambda write=write, at=at: write(at))
            after = contents(at.parent) if what != "pipes" else {}
            changed = [name for name, value in before.items() if after.get(name) != value]
            yield f"{who} where there is: {what}", f"HARM: {changed}" if changed else came


def limits(folder: Path) -> Iterator[tuple[str, str]]:
    """Too few descriptors, and no room: a message, and nothing set aside."""
    run = folder / "limited"
    checkpoints = Checkpoints(run, IDENTITY)

    def write(step: int) -> str:
        checkpoints._write(run / str(step), {"step": np.int32(step), **TREE})
        return "works"

    write(4)
    before = contents(run)
    used = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
        try:
            came = tried(lambda: "works" if read_newest(run)[0] is not None else "CALLED DAMAGED")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        yield f"{more} file descriptors left", came if contents(run) == before else "HARM"
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for size in (0, 100, 1000, 10_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        try:
            came = tried(lambda: write(5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        after = contents(run)
        kept = all(after.get(name) == value for name, value in before.items())
        yield f"files of at most {size:,} bytes", came if kept and len(after) >= len(before) else "HARM"


USER = """
import os, sys
from pathlib import Path
import jaxkd.cli, jaxkd.runs, jaxkd.cache, jaxkd.runs.report, matplotlib.pyplot
import places
home, mask = sys.argv[1], int(sys.argv[2], 8)
# All that is imported later may lie where the other user cannot read.
places.everything(Path(sys.argv[3]).with_name("warm"))
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(54321); os.setuid(54321)
for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "JAXKD_TEACHERS", "TMPDIR"):
    os.environ.pop(name, None)
if home:
    os.environ["HOME"] = home
os.umask(mask)
def commands():
    from jaxkd._paths import cache_folder
    from jaxkd.cli import main
    places.everything(Path(sys.argv[3]))
    for words in (["teachers", "--verify"], ["models", "resnet8"], ["methods"]):
        main(words)
    files = [path for path in Path(sys.argv[3]).rglob("*") if path.is_file()]
    wrong = {oct(path.stat().st_mode & 0o777) for path in files} - {oct(0o666 & ~mask)}
    cache_folder().mkdir(parents=True, exist_ok=True)
    return f"OTHER PERMISSIONS {wrong}" if wrong else "works"
print("OUTCOME " + places.tried(commands))
"""


def users(folder: Path) -> Iterator[tuple[str, str]]:
    """A user id that no system knows, with and without a home, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    for what, home, mask in (
        ("an unknown user without HOME", "", "022"),
        ("an unknown user whose HOME is /", "/", "077"),
        ("an unknown user whose HOME is not there", "/nonexistent", "002"),
    ):
        there = folder / f"user {mask}"
        there.mkdir(mode=0o777)
        there.chmod(0o777)
        command = [sys.executable, "-c", USER, home, mask, str(there / "things")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        came = [line for line in done.stdout.splitlines() if line.startswith("OUTCOME ")]
        wrong = done.returncode or "Traceback" in done.stderr
        shown = came[0].removeprefix("OUTCOME ") if came and not wrong else f"TRACEBACK: {done.stderr[-300:]}"
        yield f"{what}, umask {mask}", shown
