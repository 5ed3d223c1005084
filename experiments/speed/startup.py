"""From the start of the process to the first step, with an empty and with a warm compile cache.

    python experiments/speed/startup.py                                         digits, the shipped teacher
    python experiments/speed/startup.py --data cifar100 --data-dir DIR --teacher teachers/resnet56

Seconds from the process's start to the lines that the command prints; it is ended after the first step.  CPU
seconds, of all threads together, are given too: on a loaded machine they say more.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MARKS = {"started": "compiling the training step", "first step": "compiled and ran the first call"}


def seconds(arguments: list[str], run: Path, caches: Path) -> dict[str, float]:
    """Seconds to each mark, and CPU seconds of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, seen = time.perf_counter(), {}
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(caches), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "jaxkd", "distill", *arguments, "--run", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            for mark, words in MARKS.items():
                if words in line:
                    seen[mark] = time.perf_counter() - start
            if len(seen) == len(MARKS):
                child.kill()
    if len(seen) < len(MARKS):
        sys.exit(f"{' '.join(command)} ended before its first step")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seen["CPU"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--teacher", default="digits-resnet20")
    parser.add_argument("--student", default="resnet8")
    args = parser.parse_args()
    arguments = ["--data", args.data, "--teacher", args.teacher, "--student", args.student, "--epochs", "1"]
    arguments += ["--data-dir", args.data_dir] if args.data_dir else []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("empty", "warm", "warm again"):
            seen = seconds(arguments, Path(folder) / name.replace(" ", "-"), Path(folder) / "compiled")
            print(
                f"compile cache {name}: " + ", ".join(f"{mark} {value:.1f} s" for mark, value in seen.items())
            )


if __name__ == "__main__":
    main()
