"""Speed of distillation on one GPU, beside PyTorch.  Nine minutes on a card; not run on one yet.

    python experiments/speed/gpu.py                  # writes results/gpu.jsonl as it goes, and results/gpu.md
    python experiments/speed/gpu.py --small          # tiny, on a CPU too: to see that it works
    python experiments/speed/gpu.py --no-torch       # without PyTorch

Two processes, one after the other: this package, and PyTorch.  What is measured comes
in the order of its value, and stops when the time is over; every result is written at once.  Networks,
augmentation, loss (adaptive temperature) and optimiser are those of `job.py`; the pixels are random.

    step      one training step: labels alone, with the teacher (ResNet-56), and with its logits at hand; by
              student, precision, batch and, for jaxkd, by the steps of one call.  `default` is TF32 in both
              frameworks' convolutions; PyTorch is eager, compiled, and compiled into CUDA graphs
    loss      value and gradient of the adaptive loss, beside those of a cross-entropy

An epoch has 782 steps of 64 images; the table gives the minutes of 240 epochs by arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import job

SIZES = ("256x100", "4096x32000", "8192x128000")
IMAGES = 50_000
MODES = {"eager": None, "compile": "default", "cuda graphs": "reduce-overhead"}

Row = dict[str, Any]


def of_steps(row: Row, milliseconds: float, per_call: int = 1) -> Row:
    each = milliseconds / per_call
    return {**row, "ms": each, "images_per_second": 1e3 * row["batch"] / each}


def jaxkd_steps(small: bool) -> Iterator[Row]:
    """The options of the steps to measure, in the order of their value."""
    students, many = (job.STUDENTS[:1], 1) if small else (job.STUDENTS, 25)  # loops are slow on a CPU
    common = {"what": "step", "batch": job.BATCH, "per_call": many, "precision": "default"}
    for student in students:
        for kind in ("cached", "live"):
            yield {**common, "student": student, "kind": kind}
    for per_call in () if small else (1, 5, 100, -(-IMAGES // job.BATCH)):
        for student in students[:2]:
            yield {**common, "student": student, "kind": "cached", "per_call": per_call}
    for precision in ("bfloat16",) if small else ("bfloat16", "float32"):
        for student in students:
            for kind in ("cached", "live"):
                yield {**common, "student": student, "kind": kind, "precision": precision}
    for student in () if small else students:
        for kind in ("cached", "live", "labels"):
            yield {**common, "student": student, "kind": kind, "batch": 512}
        yield {**common, "student": student, "kind": "labels"}


def measure_jaxkd(small: bool) -> Iterator[Row]:
    import jax
    import jax.numpy as jnp
    import optax

    from jaxkd import losses, temperature

    with tempfile.TemporaryDirectory() as folder:
        side = job.Jaxkd(Path(folder))
        yield {"what": "device", "name": jax.devices()[0].device_kind, "version": f"jax {jax.__version__}"}
        for row in jaxkd_steps(small):
            # XLA's default on a GPU is TF32; "float32" asks for every bit.
            exact = "float32" if row["precision"] == "float32" else None
            dtype = "bfloat16" if row["precision"] == "bfloat16" else "float32"
            with jax.default_matmul_precision(exact):
                call, seconds = side.steps_of(
                    row["student"], row["kind"], batch=row["batch"], per_call=row["per_call"], precision=dtype
                )
                yield {**of_steps(row, job.median_ms(call), row["per_call"]), "compile_s": seconds}

    def adaptive(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        return losses.kd(s, t, temperature=temperature.max_logit, standardize=True).mean()

    def cross_entropy(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(s, y).mean()

    for size in SIZES[:1] if small else SIZES:
        batch, classes = map(int, size.split("x"))
        keys = jax.random.split(jax.random.key(0), 2)
        s, t = (3 * jax.random.normal(key, (batch, classes)) for key in keys)
        y = jnp.arange(batch) % classes
        for loss in (cross_entropy, adaptive):
            step = jax.jit(jax.value_and_grad(loss))

            def call(count: int, step: Any = step, s: Any = s, t: Any = t, y: Any = y) -> None:
                for _ in range(count):
                    out = step(s, t, y)
                jax.block_until_ready(out)

            yield {"what": "loss", "loss": loss.__name__, "size": size, "ms": job.median_ms(call)}


def measure_torch(small: bool) -> Iterator[Row]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    yield {"what": "device", "name": name, "version": f"torch {torch.__version__}"}
    # As in JAX, TF32 is the default here.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    side = job.Torch(Path())

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    plans = [
        (student, kind, mode, batch, half)
        for batch, half in ((job.BATCH, False), (job.BATCH, True), (512, False))
        for mode in MODES
        for student in job.STUDENTS
        for kind in ("live", "cached")
    ]
    for student, kind, mode, batch, half in plans[:2] if small else plans:
        torch.compiler.reset()  # else, after eight variants of one function, it would be eager without a word
        step = side.step_of(student, kind, compiled=MODES[mode], half=half)

        def call(count: int, step: Any = step, batch: int = batch) -> None:
            for _ in range(count):
                step(torch.arange(batch))
            wait()

        row = {"what": "step", "student": student, "kind": kind, "batch": batch, "mode": mode}
        try:
            yield of_steps(row | {"precision": "bfloat16" if half else "default"}, job.median_ms(call))
        except Exception as error:  # no compiler here, or a graph that it cannot take
            print(f"{row}: {type(error).__name__}: {error}"[:300], file=sys.stderr, flush=True)

    def adaptive(s: Any, t: Any, y: Any) -> Any:
        return side._kd(s, t)

    def cross_entropy(s: Any, t: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(s, y)

    for size in SIZES[:1] if small else SIZES:
        batch, classes = map(int, size.split("x"))
        s, t = (3 * torch.randn(batch, classes) for _ in range(2))
        s.requires_grad_()
        y = torch.arange(batch) % classes
        for loss in (cross_entropy, adaptive):
            torch.compiler.reset()
            for mode, chosen in ("eager", loss), ("compile", torch.compile(loss, dynamic=False)):

                def once(count: int, loss: Any = chosen, s: Any = s, t: Any = t, y: Any = y) -> None:
                    for _ in range(count):
                        s.grad = None
                        loss(s, t, y).backward()
                    wait()

                row = {"what": "loss", "loss": loss.__name__, "size": size, "mode": mode}
                try:
                    yield {**row, "ms": job.median_ms(once)}
                except Exception as error:
                    print(f"{row}: {type(error).__name__}"[:300], file=sys.stderr, flush=True)


def table(rows: list[Row]) -> str:
    """The Markdown page of all rows."""
    devices = {row["side"]: row for row in rows if row["what"] == "device"}
    about = "; ".join(f"{row['version']} on {row['name']}" for row in devices.values())
    steps, of_losses = [], []
    for row in rows:
        way = f"torch, {row.get('mode')}" if row["side"] == "torch" else "jaxkd"
        if row["what"] == "step":
            rate = row["images_per_second"]
            cells = [row["student"], row["kind"], row["precision"], way, row["batch"], row.get("per_call", 1)]
            cells += [f"{row['ms']:.3g}", f"{rate:.0f}", f"{240 * IMAGES / rate / 60:.1f}"]
            steps.append([str(cell) for cell in cells])
        elif row["what"] == "loss":
            of_losses.append([row["size"], row["loss"], way, f"{row['ms']:.3g}"])
    head = ["student", "what", "precision", "", "batch", "steps a call", "ms a step", "images/s"]
    return (
        f"# Speed on a GPU\n\n{about}. Medians of five rounds. Written by `gpu.py`.\n\n"
        + job.markdown([*head, "240 epochs, min"], steps, left=4)
        + "\n"
        + job.markdown(["logits", "loss", "", "ms"], of_losses, left=3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few tiny measurements")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--torch-python", default=sys.executable, help="Python of another environment")
    parser.add_argument("--seconds", type=float, default=500.0, help="for both sides together")
    parser.add_argument("--out", type=Path, help="default: results beside this file, runs/gpu for --small")
    parser.add_argument("--side", choices=["jaxkd", "torch"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.out or (Path("runs/gpu") if args.small else job.RESULTS)
    file = folder / "gpu.jsonl"
    if args.side:
        end = time.monotonic() + args.seconds
        measure = {"jaxkd": measure_jaxkd, "torch": measure_torch}[args.side]
        with file.open("a") as out:
            for row in measure(args.small):
                print(line := json.dumps({"side": args.side, **row}), flush=True)
                out.write(line + "\n")
                out.flush()
                if time.monotonic() > end:
                    print(f"{args.side}: the time is over", flush=True)
                    break
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    sides = {"jaxkd": sys.executable} | ({} if args.no_torch else {"torch": args.torch_python})
    # Each side has its share of the time, and the whole card to itself.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]  # of several, one card for both
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUDA_VISIBLE_DEVICES": first}
    codes = []
    for side, python in sides.items():
        command = [python, __file__, "--side", side, "--seconds", str(args.seconds / len(sides))]
        command += ["--out", str(folder), *(["--small"] if args.small else [])]
        # What it has written so far is kept, and in the table.
        codes.append(subprocess.run(command, env=environment, check=False).returncode)
    text = table([json.loads(line) for line in file.read_text().splitlines()])
    (folder / "gpu.md").write_text(text)
    print(text)
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    main()
