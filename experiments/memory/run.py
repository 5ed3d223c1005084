"""Makes many runs in one process and writes down its memory after every fifth.

    python experiments/memory/run.py                    # 50 runs that differ in the seed
    python experiments/memory/run.py --methods all      # a different method each time

Each run distils a ResNet-8 from the digits' teacher for one epoch of 128 images.  What is counted is the
resident memory that Linux reports, after Python's garbage collection; beside it, the process's threads, open
files and memory maps, JAX's live arrays, and what the heap gives back when it is asked to (malloc_trim).
Writes memory.md into --out, and ends with exit code 1 if run 50 takes over a tenth more than run 5.
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
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxkd
from jaxkd import data, methods
from jaxkd.cpu import tune_cpu

EXAMPLES = 128


def megabytes() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


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
    parts = {name: (split.images[:EXAMPLES], split.labels[:EXAMPLES]) for name, split in digits.splits.items()}
    return data.from_arrays(parts["train"], parts["test"], num_classes=10, name="small-digits")


def main() -> None:
    """Makes the runs and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--methods", choices=("one", "all"), default="one")
    parser.add_argument("--tuned", action="store_true", help="with the command line's settings of malloc")
    parser.add_argument("--seeds", action="store_true", help="as one call with so many seeds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.tuned:
        tune_cpu()
    dataset = small_digits()
    known = [name for name in methods.names() if name != "labels"] if options.methods == "all" else ["atkd"]
    rows: list[dict[str, Any]] = []

    def note(count: int) -> None:
        if count == 1 or count % 5 == 0:
            rows.append({"runs": count, **look()})
            print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as there, contextlib.chdir(there):
        common = {"epochs": 1, "batch_size": 32, "devices": 1, "say": lambda _: None}
        for number in range(options.runs):
            method = known[number % len(known)]
            teacher = "digits-resnet20" if methods.create(method).reads else None
            jaxkd.distill(
                data=dataset, teacher=teacher, student="resnet8", method=method, seed=number,
                run=f"run{number}", **common,
            )  # fmt: skip
            note(number + 1)
    print(megabytes(), ctypes.CDLL(None).malloc_trim(0), megabytes())
    five = next(row["resident MB"] for row in rows if row["runs"] == 5)
    print("ratio", rows[-1]["resident MB"] / five)


if __name__ == "__main__":
    main()
