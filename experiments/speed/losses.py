"""Time and temporary memory of every logit loss, forward and backward, beside PyTorch.

    python experiments/speed/losses.py                       all sizes, all frameworks that are installed
    python experiments/speed/losses.py --sizes 256x100 --repeats 9
    python experiments/speed/losses.py --torch-python /path/to/python     PyTorch from another environment

Each row is value and gradient of the batch mean, jitted, compile time apart.  The repeats go round all
losses, so that a change in the machine's load meets them all; medians are reported, and ratios to the
cross-entropy with integer labels of optax, which is measured in the same rounds.  PyTorch runs the same
formulas (plain code, written here), eager and through `torch.compile`, with one thread and with all; the
faster of the two counts (at the largest size, all threads, and one compiled loss).  Writes
`results/losses.json` and `results/losses.md` after each size, and keeps what they hold of other sizes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

RESULTS = pathlib.Path(__file__).parent / "results"
SIZES = ("256x100", "256x1000", "4096x32000")
CROSS_ENTROPY = "cross-entropy (optax)"
# One of each kind at the largest size, where a step takes seconds (and MLKD has K x K matrices of 4 GB).
FOR_LARGE = (
    CROSS_ENTROPY,
    "kd",
    "kd standardised",
    "kd adaptive",
    "kd, chunks of 8",
    "kd adaptive, chunks of 8",
    "dkd",
    "ttm",
    "normkd",
    "mse",
    "correlation",
)
LARGE = 10_000_000
# Compiling takes PyTorch seconds for each loss and size: these are enough to judge by.
TORCH_COMPILED = ("cross-entropy", "kd", "kd adaptive", "dkd")


def data(size: str):
    import numpy as np

    batch, classes = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    teacher = 3 * rng.standard_normal((batch, classes), dtype=np.float32)
    student = 0.6 * teacher + rng.standard_normal((batch, classes), dtype=np.float32)
    return student, teacher, rng.integers(0, classes, batch)


def rounds(functions: dict, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each function, in interleaved rounds, until the repeats or the seconds are used up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    # A call of microseconds is repeated within a measurement, to outlast the clock's ticks.
    inner = {}
    for name, call in functions.items():
        start = time.perf_counter()
        call()
        inner[name] = max(1, min(50, int(0.002 / max(time.perf_counter() - start, 1e-6))))
    end = time.perf_counter() + seconds
    for done in range(repeats):
        if done >= 2 and time.perf_counter() > end:
            break
        for name, call in functions.items():
            start = time.perf_counter()
            for _ in range(inner[name]):
                call()
            times[name].append(1e3 * (time.perf_counter() - start) / inner[name])
    return times


def measure_jax(size: str, repeats: int, seconds: float) -> list[dict]:
    import jax
    import jax.numpy as jnp
    import optax

    from jaxkd import losses, temperature

    student, teacher, labels = map(jnp.asarray, data(size))
    adaptive = {"temperature": temperature.max_logit, "standardize": True}
    table = {
        CROSS_ENTROPY: lambda s, t, y: optax.softmax_cross_entropy_with_integer_labels(s, y),
        "kd": lambda s, t, y: losses.kd(s, t),
        "kd standardised": lambda s, t, y: losses.kd(s, t, temperature=2.0, standardize=True),
        "kd adaptive": lambda s, t, y: losses.kd(s, t, **adaptive),
        "kd, chunks of 8": lambda s, t, y: losses.kd(s, t, chunk_size=8),
        "kd adaptive, chunks of 8": lambda s, t, y: losses.kd(s, t, chunk_size=8, **adaptive),
        "reverse_kl": lambda s, t, y: losses.reverse_kl(s, t),
        "jensen_shannon": lambda s, t, y: losses.jensen_shannon(s, t),
        "soft_cross_entropy": lambda s, t, y: losses.soft_cross_entropy(s, t),
        "dkd": losses.dkd,
        "dkd adaptive": functools.partial(losses.dkd, **adaptive),
        "mlkd": lambda s, t, y: losses.mlkd(s, t, 0.5 * s, 0.5 * t),
        "ttm": lambda s, t, y: losses.ttm(s, t, exponent=0.1),
        "wttm": lambda s, t, y: losses.wttm(s, t, exponent=0.1),
        "dist": lambda s, t, y: losses.dist(s, t),
        "normkd": lambda s, t, y: losses.normkd(s, t),
        "normdkd": losses.normdkd,
        "dtkd": lambda s, t, y: losses.dtkd(s, t),
        "mse": lambda s, t, y: losses.mse(s, t),
        "correlation": lambda s, t, y: losses.correlation(s, t),
    }
    if student.size > LARGE:
        table = {name: loss for name, loss in table.items() if name in FOR_LARGE}
    else:  # chunks are for what does not fit into the caches
        table = {name: loss for name, loss in table.items() if "chunks" not in name}
    calls, rows = {}, {}
    for name, loss in table.items():
        step = jax.jit(jax.value_and_grad(lambda s, t, y, loss=loss: jnp.mean(loss(s, t, y))))
        start = time.perf_counter()
        compiled = step.lower(student, teacher, labels).compile()
        rows[name] = {
            "loss": name,
            "size": size,
            "compile_s": time.perf_counter() - start,
            "temporary_MiB": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        }
        calls[name] = lambda f=compiled: jax.block_until_ready(f(student, teacher, labels))
    for name, times in rounds(calls, repeats, seconds).items():
        rows[name] |= {"ms": statistics.median(times), "ms_min": min(times), "n": len(times)}
    for row in rows.values():
        row["ratio"] = row["ms"] / rows[CROSS_ENTROPY]["ms"]
    return list(rows.values())


def measure_torch(size: str, repeats: int, seconds: float) -> list[dict]:
    import torch
    import torch.nn.functional as F

    student, teacher, labels = map(torch.as_tensor, data(size))

    def divergence(t, s):
        return F.kl_div(F.log_softmax(s, 1), F.log_softmax(t, 1), reduction="none", log_target=True).sum(1)

    def zscore(x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)

    def kd(s, t, y, tau=4.0):
        return tau**2 * divergence(t / tau, s / tau).mean()

    def adaptive(s, t, y):
        s, t = zscore(s), zscore(t)
        with torch.no_grad():
            tau = torch.maximum(s.abs(), t.abs()).amax(1, keepdim=True) * 1.3660254
        return (tau[:, 0] ** 2 * divergence(t / tau, s / tau)).mean()

    def dkd(s, t, y, tau=4.0):
        s, t = s / tau, t / tau
        target = F.one_hot(y, s.shape[1]).bool()

        def binary(x):
            at = x.gather(1, y[:, None])[:, 0]
            rest = x.masked_fill(target, -torch.inf).logsumexp(1)
            return F.logsigmoid(at - rest), F.logsigmoid(rest - at)

        (t_y, t_n), (s_y, s_n) = binary(t), binary(s)
        target_part = t_y.exp() * (t_y - s_y) + t_n.exp() * (t_n - s_n)
        others = divergence(t.masked_fill(target, -1e30), s.masked_fill(target, -1e30))
        return tau**2 * (target_part + 8 * others).mean()

    def ttm(s, t, y):
        return divergence(0.1 * t, s).mean()

    def pearson(a, b, axis):
        a, b = a - a.mean(axis, keepdim=True), b - b.mean(axis, keepdim=True)
        return ((a * b).sum(axis) / (a.norm(dim=axis) * b.norm(dim=axis) + 1e-8)).mean()

    def dist(s, t, y, tau=4.0):
        p, q = F.softmax(t / tau, 1), F.softmax(s / tau, 1)
        return tau**2 * (2 - pearson(p, q, 1) - pearson(p, q, 0))

    def normkd(s, t, y):
        tau_t, tau_s = 2 * t.std(1, keepdim=True), 2 * s.std(1, keepdim=True)
        return (tau_t[:, 0] ** 2 * divergence(t / tau_t, s / tau_s)).mean()

    table = {
        "cross-entropy": lambda s, t, y: F.cross_entropy(s, y),
        "kd": kd,
        "kd standardised": lambda s, t, y: kd(zscore(s), zscore(t), y, 2.0),
        "kd adaptive": adaptive,
        "dkd": dkd,
        "ttm": ttm,
        "dist": dist,
        "normkd": normkd,
        "mse": lambda s, t, y: F.mse_loss(s, t),
    }

    def step(loss):
        s = student.clone().requires_grad_()

        def run():
            s.grad = None
            value = loss(s, teacher, labels)
            value.backward()
            return value.detach()

        return run

    rows = []
    large = student.numel() > LARGE
    if large:
        table = {name: table[name] for name in TORCH_COMPILED}
    for mode in ("eager", "compile"):
        best: dict[str, dict] = {}
        for threads in sorted({os.cpu_count() or 1} if large else {1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            torch.compiler.reset()
            calls = {}
            for name, loss in table.items():
                if mode == "eager":
                    calls[name] = step(loss)
                elif name == "kd adaptive" or (name in TORCH_COMPILED and not large):
                    calls[name] = step(torch.compile(loss, dynamic=False))
                    try:
                        calls[name]()
                    except Exception as error:  # no compiler here, or a graph that it cannot take
                        print(f"no torch.compile of {name}: {type(error).__name__}", file=sys.stderr)
                        del calls[name]
            for name, times in rounds(calls, repeats, seconds / 4).items():
                row = {"loss": name, "size": size, "mode": mode, "threads": threads, "n": len(times)}
                row |= {"ms": statistics.median(times), "value": float(calls[name]())}
                if name not in best or row["ms"] < best[name]["ms"]:
                    best[name] = row
        rows += best.values()
    return rows


def torch_in(python: str, size: str, repeats: int, seconds: float) -> tuple[str, list[dict]]:
    """Runs this file's PyTorch half in another environment; returns its version and rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "rows.json"
        arguments = ["--torch-only", str(out), "--sizes", size, "--repeats", str(repeats)]
        subprocess.run([python, __file__, *arguments, "--seconds", str(seconds)], check=True)
        answer = json.loads(out.read_text())
    return answer["torch"], answer["rows"]


def table(result: dict) -> str:
    """The Markdown table of a result."""
    eager = {(r["size"], r["loss"]): r["ms"] for r in result["torch"] if r["mode"] == "eager"}
    compiled = {(r["size"], r["loss"]): r["ms"] for r in result["torch"] if r["mode"] == "compile"}
    lines = [
        "# Speed of the logit losses",
        "",
        f"Value and gradient of the batch mean, float32; milliseconds are medians. {result['machine']}, "
        f"{result['cores']} cores, jax {result['jax']}, PyTorch {result['torch_version']}. Written by "
        "`experiments/speed/losses.py`; compile time is not in the milliseconds.  Load average: "
        + ", ".join(f"{load:.1f} at {size}" for size, load in result["load"].items())
        + " (above the number of cores, other work shared them, and the times are too long).",
        "",
        "| size | loss | ms | / cross-entropy | temporary MiB | compile s | PyTorch eager ms | "
        "PyTorch compile ms | n |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["jaxkd"]:
        key = (row["size"], "cross-entropy" if row["loss"] == CROSS_ENTROPY else row["loss"])
        cells = [
            row["size"],
            row["loss"],
            f"{row['ms']:.3g}",
            f"{row['ratio']:.2f}",
            f"{row['temporary_MiB']:.1f}",
            f"{row['compile_s']:.2f}",
            *(f"{times[key]:.3g}" if key in times else "" for times in (eager, compiled)),
            str(row["n"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=25.0, help="for each size and framework")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--torch-only", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    if args.torch_only:
        import torch

        rows = [row for size in args.sizes for row in measure_torch(size, args.repeats, args.seconds)]
        pathlib.Path(args.torch_only).write_text(json.dumps({"torch": torch.__version__, "rows": rows}))
        return
    import jax

    description = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    file = args.out / "losses.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    if {key: result.get(key) for key in description} != description:
        result = description | {"torch_version": None, "load": {}, "jaxkd": [], "torch": []}
    args.out.mkdir(parents=True, exist_ok=True)
    for size in args.sizes:
        measured = {"jaxkd": measure_jax(size, args.repeats, args.seconds), "torch": []}
        if not args.no_torch:
            result["torch_version"], measured["torch"] = torch_in(
                args.torch_python, size, args.repeats, args.seconds
            )
        # What else was running, as the operating system's load average at the end.
        result["load"][size] = os.getloadavg()[0]
        for key, new in measured.items():
            kept = [row for row in result[key] if row["size"] != size]
            result[key] = sorted(kept + new, key=lambda row: SIZES.index(row["size"]))
        file.write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "losses.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
