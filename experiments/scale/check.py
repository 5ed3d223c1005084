"""Devices, processes, streams: what must be the same is made twice, through the command line, and compared.

    python experiments/scale/check.py

One epoch of the digits with the teacher that ships with the package: on 1, 2 and 8 simulated devices, in two
processes that talk over Gloo, with streamed batches; and an evaluation of 10,000
images on 8 devices with a batch that does not divide them. CPU; some minutes on two cores; writes
`results/check.json` and prints a table.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"
COMMON = "distill --data digits --teacher digits-resnet20 --student resnet8 --epochs 1 --log-every 1"


def start(command: str, devices: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "jaxkd", *command.split()],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(child: subprocess.Popen[str]) -> str:
    output, _ = child.communicate(timeout=900)
    if child.returncode:
        sys.exit(f"exit code {child.returncode}:\n{output}")
    return output


def losses(run: Path) -> np.ndarray:
    """The mean loss of the epoch so far, after each step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if line["kind"] == "train"])


def digest(run: Path) -> str:
    return json.loads((run / "model" / "teacher.json").read_text())["digest"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Runs all of it."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for devices in (1, 2, 8):
            finish(start(f"{COMMON} --run {folder}/{devices}", devices))
        joint = f"{COMMON} --run {folder}/joint --coordinator localhost:{free_port()} --num-processes 2"
        for child in [start(f"{joint} --process-id {i}", 1) for i in range(2)]:
            finish(child)
        finish(start(f"{COMMON} --run {folder}/streamed --stream", 2))
        finish(start(f"{COMMON} --run {folder}/workers --stream --workers 2", 2))

        one = losses(folder / "1")
        for devices in (2, 8):
            difference = np.abs(losses(folder / str(devices)) / one - 1).max()
            rows.append((f"losses of {len(one)} steps, {devices} devices against 1",
                         f"largest relative difference {difference:.1e}"))  # fmt: skip
        for run, what in (
            ("joint", "two processes of one device each"),
            ("streamed", "streamed batches, two devices"),
            ("workers", "streamed batches, two devices, two reading processes"),
        ):
            same = digest(folder / run) == digest(folder / "2")
            verdict = "equal to the bit" if same else "NOT equal"
            rows.append((f"final network, {what}, against one process with two devices", verdict))

        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (10_000, 8, 8, 1), np.uint8)
        labels = np.arange(10_000) % 10
        np.savez(folder / "many.npz", train_images=images[:10], train_labels=labels[:10],
                 test_images=images, test_labels=labels)  # fmt: skip
        evaluate = f"evaluate digits-resnet20 --data {folder}/many.npz"
        whole = finish(start(f"{evaluate} --batch-size 10000", 1))
        cut = finish(start(f"{evaluate} --batch-size 96", 8))
        accuracies = [re.search(r"accuracy [\d.]+ %", text).group() for text in (whole, cut)]
        rows.append(("evaluation of 10,000 images, batch 96 on 8 devices, against one batch on 1",
                     " and ".join(accuracies)))  # fmt: skip

    about = f"CPU ({os.cpu_count()} cores), Python {platform.python_version()}, jax {jax.__version__}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "check.json").write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    print(f"{about}\n\n| what | result |\n|---|---|")
    for row in rows:
        print(f"| {row[0]} | {row[1]} |")


if __name__ == "__main__":
    main()
