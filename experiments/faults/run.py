"""Kills, damages and starves training runs, and checks that nothing is lost.

    python experiments/faults/run.py                     # about 60 kills; ten minutes on two CPU cores
    python experiments/faults/run.py --rounds 1          # once each

Each round starts a real command line in a child process (a ResNet-8 distilled on 128 handwritten digits, a
checkpoint after every step), strikes it at a moment drawn from a seeded generator, and gives the same command
again until it is done.  Then everything is compared to the bit with a run that nobody touched: the state with
its optimiser and running sums, the model, the test lines, the result.

Writes faults.md and rounds.json (every round) into --out.  With --work, this script goes on where it was
stopped.  Filling and write-protecting a disk needs root (a tmpfs of its own); without it the size of files is
limited, and permissions are taken away.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import data, storage, teachers
from jaxkd.runs.checkpoint import read_newest, saved_steps
from jaxkd.runs.record import read_metrics

EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE = 3, 8, 16
EXAMPLES = STEPS_PER_EPOCH * BATCH_SIZE


class Lab:
    """A data set, a teacher, and a run that nobody touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiled = folder / "compiled"
        digits = data.load("digits")
        splits = {
            name: (split.images[:EXAMPLES], split.labels[:EXAMPLES]) for name, split in digits.splits.items()
        }
        if not (folder / "digits.npz").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            arrays = {f"{name}_images": images for name, (images, _) in splits.items()}
            arrays |= {f"{name}_labels": labels for name, (_, labels) in splits.items()}
            np.savez(folder / "digits.npz", **arrays)
        self.finish(folder / "teacher", ["train", "--model", "resnet8"])
        self.finish(folder / "untouched")  # compiles
        shutil.rmtree(folder / "untouched")
        start = time.monotonic()
        with self.start(folder / "untouched") as child:
            while child.poll() is None and not read_metrics(folder / "untouched"):
                time.sleep(0.001)
            self.seconds_to_first_step = time.monotonic() - start
            child.communicate(timeout=600)
        self.expected = evidence(folder / "untouched")

    def start(
        self, run: Path, command: Sequence[object] = (), *, cache: bool = True
    ) -> subprocess.Popen[str]:
        command = command or ["distill", "--student", "resnet8", "--teacher", self.folder / "teacher"]
        options = [
            "--data",
            self.folder / "digits.npz",
            "--epochs",
            EPOCHS,
            "--batch-size",
            BATCH_SIZE,
            "--run",
            run,
        ]
        options += ["--log-every", 1, "--checkpoint-seconds", 0]
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled if cache else run / "none"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "jaxkd", *map(str, [*command, *options])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, run: Path, command: Sequence[object] = ()) -> str:
        """Gives the command until it is done, and returns what the last one said."""
        with self.start(run, command) as child:
            output, errors = child.communicate(timeout=600)
        if child.returncode:
            raise AssertionError(f"{run}: exit code {child.returncode}: {output}{errors}")
        return output + errors


def evidence(run: Path) -> dict[str, Any]:
    """All that a finished run leaves behind, as far as it does not depend on time."""
    newest, damaged = read_newest(run / "checkpoints")
    assert newest is not None, run
    assert not damaged, damaged
    result = json.loads((run / "result.json").read_text())
    return {
        "step": newest.step,
        "state": storage.tree_digest(newest.state),
        "model": teachers.load(run).digest,
        "tests": [line for line in read_metrics(run) if line["kind"] == "test"],
        "result": {
            key: value for key, value in result.items() if key not in ("seconds", "images_per_second")
        },
    }


# Moments: is the run there now?


def compiling(run: Path) -> bool:
    return (run / "tensorboard").is_dir() and not saved_steps(run / "checkpoints")


def training(run: Path) -> bool:
    return len(read_metrics(run)) >= 3


def saving(run: Path) -> bool:
    return any(run.glob(f"checkpoints/.*{storage.UNFINISHED}*"))


def saving_again(run: Path) -> bool:
    return saving(run) and bool(saved_steps(run / "checkpoints"))


def evaluating(run: Path) -> bool:
    """After the line on the last step of an epoch and its checkpoint, before the line on the test."""
    lines = read_metrics(run)
    if not lines or lines[-1]["kind"] == "test" or lines[-1]["step"] % STEPS_PER_EPOCH:
        return False
    return lines[-1]["step"] in saved_steps(run / "checkpoints") and not saving(run)


def finishing(run: Path) -> bool:
    """After the last evaluation: the last checkpoint, the model, the result."""
    lines = read_metrics(run)
    return bool(lines) and lines[-1]["kind"] == "test" and lines[-1]["epoch"] == EPOCHS


def anywhere(lab: Lab, run: Path, rng: random.Random) -> tuple[Callable[[Path], bool], float]:
    """Before the first step, or so many steps and tests later than the last kill; and for how long."""
    if rng.random() < 1 / 3:
        return starting, lab.seconds_to_first_step
    lines = len(read_metrics(run)) + rng.randint(1, 6)
    return lambda run: len(read_metrics(run)) >= lines, 0.2


def starting(_: Path) -> bool:
    return True


def where(run: Path, is_up: bool) -> str:
    """In words, from what lies there."""
    if not (run / "config.json").is_file():
        return "before the run's folder was there"
    if (run / "result.json").is_file():
        return "after the end"
    if not is_up:
        return "before the first step"
    if saving(run):
        return "in a save"
    if compiling(run):
        return "before the first step"
    if finishing(run):
        return "writing the model or the result"
    return "in an evaluation" if evaluating(run) else "in training"


def strike(
    lab: Lab, run: Path, rng: random.Random, name: str, moment: Any, spread: float, **options: Any
) -> dict:
    """Starts the command, waits for a moment and up to `spread` seconds more, and sends a signal."""
    if moment is anywhere:
        moment, spread = anywhere(lab, run, rng)
    before = inode(run / "metrics.jsonl")

    def is_up() -> bool:
        """Whether this process has come to its loop, and what lies there is no longer the last one's."""
        return inode(run / "metrics.jsonl") != before

    with lab.start(run, **options) as child:
        while child.poll() is None and not ((is_up() or moment is starting) and moment(run)):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, spread))
        there = where(run, is_up())
        child.send_signal(signal.Signals[name])
        output, errors = child.communicate(timeout=600)
    accepted = {"SIGKILL": (-9, 0), "SIGTERM": (75, 0, -15), "SIGINT": (75, 130, 0, -2)}[name]
    if child.returncode not in accepted or ("Traceback" in errors and child.returncode == 75):
        raise AssertionError(f"{run}: {name} {there}: exit code {child.returncode}: {output}{errors}")
    return {"signal": name, "where": there, "exit_code": child.returncode}


def inode(file: Path) -> int | None:
    return file.stat().st_ino if file.is_file() else None


def killed(
    lab: Lab, run: Path, rng: random.Random, *, name: str, moment: Any, spread: float, **options: Any
) -> dict:
    """Four kills in a row (the later ones strike a resumed run), then to the end."""
    strikes = [strike(lab, run, rng, name, moment, spread, **options) for _ in range(4)]
    lab.finish(run)
    return {"strikes": strikes}


def half_done(lab: Lab, run: Path) -> None:
    """Makes `run` a copy of one that was killed in its third epoch, with two checkpoints."""
    origin = lab.folder / "half"
    if not origin.is_dir():
        fresh = lab.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        with lab.start(fresh) as child:
            while child.poll() is None and len(read_metrics(fresh)) < 20:
                time.sleep(0.001)
            child.kill()
        fresh.rename(origin)
    shutil.copytree(origin, run)


def damaged(
    lab: Lab, run: Path, rng: random.Random, *, damage: Callable[[Path, random.Random], None]
) -> dict:
    """Damage to one file of the newest checkpoint, drawn at random; then the same command."""
    half_done(lab, run)
    step = saved_steps(run / "checkpoints")[-1]
    file = rng.choice(sorted(path for path in (run / "checkpoints" / str(step)).rglob("*") if path.is_file()))
    damage(file, rng)
    said = lab.finish(run)
    if f"skipping checkpoint {run}/checkpoints/{step}" not in said or str(file) not in said:
        raise AssertionError(f"{run}: the damage to {file} was not said: {said}")
    if not list((run / "checkpoints").glob(f"damaged-{step}-*")):
        raise AssertionError(f"{run}: the damaged checkpoint was not kept")
    return {"file": str(file.relative_to(run)), "said": "named, set aside, the one before used"}


def flip_bit(file: Path, rng: random.Random) -> None:
    contents = bytearray(file.read_bytes())
    contents[rng.randrange(len(contents))] ^= 1 << rng.randrange(8)
    file.write_bytes(contents)


def truncate(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def delete(file: Path, _: random.Random) -> None:
    file.unlink()


def empty_folder(lab: Lab, run: Path, _: random.Random) -> dict:
    half_done(lab, run)
    (run / "checkpoints" / "1000").mkdir()
    said = lab.finish(run)
    if f"skipping checkpoint {run}/checkpoints/1000" not in said:
        raise AssertionError(said)
    return {"said": "named, set aside, the newest real one used"}


def two_processes(lab: Lab, run: Path, _: random.Random) -> dict:
    with lab.start(run) as first:
        while not (run / "config.json").is_file():
            time.sleep(0.001)
        with lab.start(run) as second:
            _, errors = second.communicate(timeout=600)
        _, complaint = first.communicate(timeout=600)
    # The first may have finished before the second came to look; then the second says that it is done.
    if first.returncode or (second.returncode and "another process is working on" not in errors):
        raise AssertionError(f"{run}: {complaint}{errors}")
    return {"said": f"the second ended with exit code {second.returncode}, the first went on"}


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def failed(child: subprocess.Popen[str], run: Path) -> str:
    _, errors = child.communicate(timeout=600)
    if child.returncode != 1 or "Traceback (most recent call last)" in errors.split("jaxkd:")[-1]:
        raise AssertionError(f"{run}: exit code {child.returncode}: {errors}")
    said = next(line for line in errors.splitlines() if line.startswith("jaxkd:"))
    return re.sub(r"\d+", "N", said.replace(str(run), "RUN")[:160])


def full_disk(lab: Lab, run: Path, rng: random.Random) -> dict:
    """The disk fills up at some moment of training; then there is room again."""
    if os.geteuid() != 0:
        half_done(lab, run)
        with lab.start(run) as child:
            _, most = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (200_000, most))
            said = failed(child, run)
        lab.finish(run)
        return {"said": said}
    with small_disk(run.with_suffix(".disk"), 8 << 20):
        there = run.with_suffix(".disk") / "run"
        with lab.start(there) as child:
            while child.poll() is None and not training(there):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 1))
            with contextlib.suppress(OSError), (there.parent / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 12))
            said = failed(child, there)
        (there.parent / "filler").unlink()
        lab.finish(there)
        shutil.copytree(there, run)
    return {"said": said}


def read_only(lab: Lab, run: Path, _: random.Random) -> dict:
    """The run's folder becomes read-only before the same command is given."""
    if os.geteuid() != 0:
        half_done(lab, run)
        folders = [path for path in [run, *run.rglob("*")] if path.is_dir()]
        for path in folders:
            path.chmod(0o555)
        with lab.start(run) as child:
            said = failed(child, run)
        for path in folders:
            path.chmod(0o755)
        lab.finish(run)
        return {"said": said}
    disk = run.with_suffix(".disk")
    with small_disk(disk, 64 << 20):
        half_done(lab, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with lab.start(disk / "run") as child:
            said = failed(child, disk / "run")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        lab.finish(disk / "run")
        shutil.copytree(disk / "run", run)
    return {"said": said}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row of the table."""

    what: str
    do: Callable[[Lab, Path, random.Random], dict]
    rounds: int


def kill(what: str, rounds: int, name: str, moment: Any, spread: float, **options: Any) -> Fault:
    do = functools.partial(killed, name=name, moment=moment, spread=spread, **options)
    return Fault(f"{name} {what}", do, rounds)


FAULTS = (
    kill("at any moment", 2, "SIGKILL", anywhere, 0),
    kill("at any moment", 2, "SIGTERM", anywhere, 0),
    kill("at any moment", 1, "SIGINT", anywhere, 0),
    kill("in a compilation without cache", 1, "SIGKILL", compiling, 2.0, cache=False),
    kill("in a compilation without cache", 1, "SIGTERM", compiling, 2.0, cache=False),
    kill("in training", 2, "SIGKILL", training, 2.0),
    kill("in a save", 2, "SIGKILL", saving_again, 0.1),
    kill("in a save", 1, "SIGTERM", saving_again, 0.1),
    kill("in an evaluation", 1, "SIGKILL", evaluating, 0.05),
    kill("in an evaluation", 1, "SIGTERM", evaluating, 0.05),
    kill("while the model and the result are written", 1, "SIGKILL", finishing, 0.5),
    kill("while the model and the result are written", 1, "SIGTERM", finishing, 0.5),
    Fault("one bit of the newest checkpoint flipped", functools.partial(damaged, damage=flip_bit), 2),
    Fault("one file of the newest checkpoint truncated", functools.partial(damaged, damage=truncate), 1),
    Fault("one file of the newest checkpoint deleted", functools.partial(damaged, damage=delete), 1),
    Fault("an empty folder named like a newer checkpoint", empty_folder, 1),
    Fault("the disk is full", full_disk, 1),
    Fault("the folder is read-only", read_only, 1),
    Fault("two processes on one run", two_processes, 1),
)


def play(lab: Lab, fault: Fault, number: int, seed: int) -> dict[str, Any]:
    """One round: the fault, the same command until it is done, and the comparison."""
    name = f"{FAULTS.index(fault):02d}-{number}"
    shutil.rmtree(lab.folder / name, ignore_errors=True)
    happened = fault.do(lab, lab.folder / name, random.Random(f"{seed} {name}"))
    found = evidence(lab.folder / name)
    lost = [key for key in lab.expected if found[key] != lab.expected[key]]
    shutil.rmtree(lab.folder / name)
    return {"fault": fault.what, "round": number, **happened, "lost": lost}


def table(rounds: Sequence[dict[str, Any]]) -> str:
    """Markdown of all rounds."""
    lines = ["| what was done | times | what happened | lost |", "| :-- | --: | :-- | :-- |"]
    for fault in FAULTS:
        mine = [played for played in rounds if played["fault"] == fault.what]
        if mine:
            lost = sorted({key for played in mine for key in played["lost"]})
            seen = collections.Counter(word for played in mine for word in in_words(played))
            words = "; ".join(f"{count} x {word}" for word, count in seen.most_common())
            times = sum(len(struck(played)) or 1 for played in mine)
            lines.append(f"| {fault.what} | {times} | {words} | {', '.join(lost) or 'nothing'} |")
    kills = sum(len(struck(played)) for played in rounds)
    others = sum("strikes" not in played for played in rounds)
    harmed = sum(bool(played["lost"]) for played in rounds)
    outcome = (
        f"Something was lost in {harmed} rounds"
        if harmed
        else ("Nothing lost: the finished run is equal to the bit to one that nobody touched")
    )
    about = (
        f"{kills} kills and {others} other faults in {len(rounds)} rounds. {outcome}. jax {jax.__version__}, "
        f"Python {platform.python_version()}, {os.cpu_count()} CPU cores; `experiments/faults/run.py`."
    )
    return "\n".join([*lines, "", about])


def struck(played: dict[str, Any]) -> list[dict[str, Any]]:
    """The kills of a round that did not come too late."""
    return [strike for strike in played.get("strikes", ()) if strike["exit_code"]]


def in_words(played: dict[str, Any]) -> list[str]:
    """What happened in a round."""
    if "strikes" in played:
        return [f"{strike['where']} (exit code {strike['exit_code']})" for strike in struck(played)]
    return [played["said"]]


def main() -> None:
    """Plays all rounds and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="of each fault; by default what its row in FAULTS says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the runs; a temporary one by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    # A job in the background of a shell ignores Ctrl-C, and its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = Lab(work.absolute())
        log = lab.folder / "rounds.jsonl"
        rounds = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        known = {(played["fault"], played["round"]) for played in rounds}
        for fault in FAULTS:
            for number in range(options.rounds or fault.rounds):
                if (fault.what, number) not in known:
                    rounds.append(play(lab, fault, number, options.seed))
                    print(json.dumps(rounds[-1]), flush=True)
                    with log.open("a") as file:
                        file.write(json.dumps(rounds[-1]) + "\n")
    text = table(rounds)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "faults.md").write_text(text + "\n")
    (options.out / "rounds.json").write_text(json.dumps(rounds, indent=1) + "\n")
    sys.exit(any(played["lost"] for played in rounds))


if __name__ == "__main__":
    main()
