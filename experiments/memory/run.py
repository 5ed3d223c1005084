"""Makes many runs in one process and writes down what it holds after every fifth.

    python experiments/memory/run.py                    # 50 runs that differ in the seed
    python experiments/memory/run.py --methods several  # another method each time, which compiles each time

Each run distils a ResNet-8 from the digits' teacher for one epoch of 128 images.  Counted are the resident
memory, the heap's blocks in use, JAX's compiled programs and live arrays, threads, open files, memory maps
and log handlers, after Python's garbage collection.  Writes memory-one.md or memory-several.md into --out,
and ends with exit code 1 if after the last run there is over a tenth more than after the fifth, or the one
after which each method has been there.  Needs Linux with glibc.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import os
import platform
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax

import jaxkd
from jaxkd import data

EXAMPLES = 128
METHODS = {
    "one": ["atkd"],
    "several": ["kd", "lskd", "atkd", "dkd", "ttm", "dist", "normkd", "dtkd", "ctkd", "mlkd"],
}


def megabytes() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def allocated() -> float:
    """Megabytes that are allocated in the heap; what was freed and kept for later is left out."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) / 2**20


def look() -> dict[str, Any]:
    """What this process holds now."""
    gc.collect()
    return {
        "resident MB": round(megabytes()),
        "allocated MB": round(allocated()),
        "programs": len(jax.devices()[0].client.live_executables()),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "Python threads": threading.active_count(),
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "memory maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "live arrays": len(jax.live_arrays()),
        "log handlers": sum(
            len(logger.handlers)
            for logger in [logging.root, *logging.root.manager.loggerDict.values()]
            if isinstance(logger, logging.Logger)
        ),
    }


def small_digits() -> data.Dataset:
    """The first images of the digits."""
    digits = data.load("digits")
    parts = {
        name: (split.images[:EXAMPLES], split.labels[:EXAMPLES]) for name, split in digits.splits.items()
    }
    return data.from_arrays(parts["train"], parts["test"], num_classes=10, name="small-digits")


def make_runs(count: int, methods_in_turn: list[str]) -> list[dict[str, Any]]:
    """Makes the runs; a row after the first and after every fifth."""
    dataset = small_digits()
    rows: list[dict[str, Any]] = []
    for number in range(count):
        method = methods_in_turn[number % len(methods_in_turn)]
        jaxkd.distill(
            data=dataset, teacher="digits-resnet20", student="resnet8", method=method, seed=number,
            run=f"run{number}", epochs=1, batch_size=32, devices=1, say=lambda _: None,
        )  # fmt: skip
        if number == 0 or (number + 1) % 5 == 0:
            rows.append({"runs": number + 1, **look()})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Makes the runs and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--methods", choices=("one", "several"), default="one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as there, contextlib.chdir(there):
        rows = make_runs(options.runs, METHODS[options.methods])
    after = {row["runs"]: row["resident MB"] for row in rows}
    first = max(5, len(METHODS[options.methods]))  # when each method has been there
    ratio = after[max(after)] / after[first]
    lines = [f"| {' | '.join(rows[0])} |", "|" + "--:|" * len(rows[0])]
    lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    lines += [
        "",
        f"Methods in turn: {', '.join(METHODS[options.methods])}. After the last run "
        f"there is {ratio:.3f} times the resident memory of run {first}. jax {jax.__version__}, "
        f"Python {platform.python_version()}; `experiments/memory/run.py`.",
    ]
    text = "\n".join(lines) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"memory-{options.methods}.md").write_text(text)
    print(text)
    sys.exit(ratio > 1.1)


if __name__ == "__main__":
    main()
