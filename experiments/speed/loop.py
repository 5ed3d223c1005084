"""What the training loop adds to its steps: feeding, the teacher cache, dispatch, log points, checkpoints.

    python experiments/speed/loop.py                 # an hour; writes results/loop.md
    python experiments/speed/loop.py --batches 64 --rounds 3 --quiet

Rounds in turn: a run of `jaxkd.distill` of 100 steps on random images, and as many bare calls of the same
compiled step with batches that are ready.  ResNet-56 to ResNet-8, 100 classes, float32.  Once with
nothing else running, and once beside a process that keeps one core busy.  A ratio below 1 is what the loop
costs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import job

from jaxkd import _markdown

STEPS = 100
STUDENT = "resnet8"


@contextlib.contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()


def measure(batch: int, rounds: int, machines: tuple[bool, ...]) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as folder:
        side = job.Jaxkd(Path(folder), images=STEPS * batch)
        side.build_cache()
        number = 0
        for busy, kind in itertools.product(machines, ("cached", "live")):
            steps, _ = side.steps_of(STUDENT, kind, batch=batch)
            side.job(STUDENT, kind, f"first-{number}", batch=batch)  # compiles
            bare, loop = [], []
            with busy_process(busy):
                for _ in range(rounds):
                    number += 1
                    bare.append(STEPS * batch / side.clock(lambda: steps(STEPS)))  # noqa: B023
                    loop.append(side.job(STUDENT, kind, number, batch=batch)["images_per_second"])
            row = {"busy": busy, "kind": kind, "batch": batch, "bare": bare, "loop": loop, **side.facts}
            print(row, file=sys.stderr, flush=True)
            yield row


def table(result: dict) -> str:
    rows = []
    for row in result["rows"]:
        bare, loop = row["bare"], row["loop"]
        ratios = [a / b for a, b in zip(loop, bare, strict=True)]
        rows.append(
            [
                "beside a busy process" if row["busy"] else "nothing else",
                job.WORDS[row["kind"]],
                f"{row['batch']}",
                f"{statistics.median(bare):.0f}",
                f"{statistics.median(loop):.0f}",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
            ]
        )
    rounds = len(result["rows"][0]["bare"])
    head = ["machine", "what", "batch", "bare steps", "loop", "ratio", "of single rounds"]
    return (
        "# The training loop beside its bare steps\n\n"
        f"Images/s over {STEPS} steps, medians of {rounds} rounds in turn; the ratio "
        f"is the median of the rounds' ratios. {STUDENT}, {result['cores']} cores, "
        f"Python {result['python']}, jax {result['jax']}; load average {result['load_before']:.1f} before. "
        f"Written by `experiments/speed/loop.py`.\n\n{_markdown.table(head, rows, left=2)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quiet", action="store_true", help="not beside a busy process")
    parser.add_argument("--out", type=Path, default=job.RESULTS)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    machines = (False,) if args.quiet else (False, True)
    rows = [row for batch in args.batches for row in measure(batch, args.rounds, machines)]
    rows.sort(key=lambda row: (row["busy"], row["kind"]))
    facts = {name: rows[0][name] for name in ("python", "jax")}
    result = {"cores": os.cpu_count(), "load_before": load, **facts, "rows": rows}
    job.write(args.out, "loop", result, table(result))


if __name__ == "__main__":
    main()
