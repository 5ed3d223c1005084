"""What the training loop adds to its steps: feeding, the teacher cache, dispatch, log points, checkpoints.

    python experiments/speed/loop.py                 # a quarter of an hour; writes results/loop.md
    python experiments/speed/loop.py --batches 64 --rounds 3

Rounds in turn: a run of `jaxkd.distill` over 3,200 random images, and as many bare calls of the same
compiled step with batches that are ready.  ResNet-56 to ResNet-8, 100 classes, float32.  Once with
nothing else running, and once beside a process that keeps one core busy.  A ratio below 1 is what the loop
costs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import job

from jaxkd import _markdown

IMAGES = 3200
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


def measure(side: job.Jaxkd, batches: list[int], rounds: int) -> Iterator[dict]:
    number = 0
    for busy in (False, True):
        for kind in ("cached", "live"):
            for batch in batches:
                steps, _ = side.steps_of(STUDENT, kind, batch=batch)
                count = IMAGES // batch
                side.job(STUDENT, kind, f"first-{number}", batch=batch)  # compiles
                bare, loop = [], []
                with busy_process(busy):
                    for _ in range(rounds):
                        number += 1
                        bare.append(count * batch / side.clock(lambda: steps(count)))  # noqa: B023
                        loop.append(side.job(STUDENT, kind, number, batch=batch)["images_per_second"])
                row = {"busy": busy, "kind": kind, "batch": batch, "bare": bare, "loop": loop}
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
    head = ["machine", "what", "batch", "bare steps", "loop", "ratio", "of single rounds"]
    return (
        "# The training loop beside its bare steps\n\n"
        f"Images/s, medians of {len(result['rows'][0]['bare'])} rounds in turn; the ratio is the median of "
        f"the rounds' ratios. {STUDENT}, {result['cores']} cores, Python {result['python']}, jax "
        f"{result['jax']}; load average {result['load_before']:.1f} before. Written by "
        f"`experiments/speed/loop.py`.\n\n{_markdown.table(head, rows, left=2)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=job.RESULTS)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        side = job.Jaxkd(Path(folder), images=IMAGES)
        side.build_cache()
        rows = list(measure(side, args.batches, args.rounds))
        facts = {"cores": os.cpu_count(), "load_before": load, **side.facts}
    result = {**facts, "rows": rows}
    job.write(args.out, "loop", result, table(result))


if __name__ == "__main__":
    main()
