"""How time and memory grow: with the batch, the classes, the student, the devices and the cache.

    python experiments/speed/growth.py               # half an hour; writes results/growth.md, .json, .png
    python experiments/speed/growth.py --parts batch classes --out runs/growth     # only these

One training step of distillation (adaptive temperature, random pixels, float32), medians; memory is what XLA
plans for the step's temporary arrays.  In addition the cost of a whole table of the literature, nine pairs x
five methods x five seeds x 240 epochs, by arithmetic from each pair's measured steps: with the teacher in
every step, and with one cache of all views for each pair.
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

from jaxkd import _markdown

BATCHES = (16, 32, 64, 128, 256, 512)
CLASSES = (10, 100, 1000, 10_000)
STUDENTS = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56")
DEVICES = (1, 2, 4, 8)
VIEWS = (50_000, 500_000, 2_000_000)
# Of method.md's usual pairs: same style, and different styles.
PAIRS = (
    ("resnet56", "resnet20"), ("resnet110", "resnet20"), ("resnet110", "resnet32"),
    ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"), ("resnet32x4", "ShuffleV1"), ("vgg13", "MobileNetV2"),
)  # fmt: skip
METHODS, SEEDS, EPOCHS, IMAGES, ALL_VIEWS = 5, 5, 240, 50_000, 162
PARTS = ("batch", "classes", "student", "devices", "cache", "pairs")
Row = dict[str, Any]


def step_row(side: job.Jaxkd, student: str = "resnet8", kind: str = "cached", batch: int = job.BATCH) -> Row:
    import jax

    jax.clear_caches()  # the only large program is the step then
    call, compile_s = side.steps_of(student, kind, batch=batch)
    ms = job.median_ms(call)
    programs = jax.devices()[0].client.live_executables()
    memory = max(program.get_compiled_memory_stats().temp_size_in_bytes for program in programs) / 2**20
    return {"ms": ms, "images_per_second": 1e3 * batch / ms, "MiB": memory, "compile_s": compile_s}


def measure(part: str, folder: Path) -> Iterator[Row]:
    if part == "batch":
        side = job.Jaxkd(folder)
        for batch in BATCHES:
            yield {"batch": batch, **step_row(side, batch=batch)}
    if part == "classes":
        for classes in CLASSES:
            side = job.Jaxkd(folder / str(classes), classes=classes, teacher="resnet8")
            yield {"classes": classes, **step_row(side)}
    if part == "student":
        side = job.Jaxkd(folder)
        for student in STUDENTS:
            yield {"student": student, **step_row(side, student)}
    if part == "devices":
        for devices in DEVICES:
            flags = f"--xla_force_host_platform_device_count={devices}"
            child = subprocess.run(
                [sys.executable, __file__, "--devices-child", str(folder / str(devices))],
                env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            yield {"devices": devices, **json.loads(child.stdout)}
    if part == "cache":
        for views in VIEWS:
            yield {"views": views, **cache_row(folder / str(views), views)}
    if part == "pairs":
        for teacher, student in PAIRS:
            side = job.Jaxkd(folder / f"{teacher}-{student}", teacher=teacher)
            live, cached = (step_row(side, student, kind)["images_per_second"] for kind in ("live", "cached"))
            side.prepare_teacher()
            ms = job.median_ms(lambda count: side.time("teacher", job.TEACHER, "eval", count))  # noqa: B023
            views = 1e3 * job.BATCH / ms
            yield {"teacher": teacher, "student": student, "live": live, "cached": cached, "views": views}


def cache_row(folder: Path, views: int) -> Row:
    """A cache of 100 classes in float16: its size, and the times to open it and to look up a batch."""
    import numpy as np

    from jaxkd.cache.store import CacheKey, TeacherCache

    key = CacheKey("t", "resnet56", (0.5,) * 3, (0.25,) * 3, "train", "i", IMAGES, 100, "crop")
    rng = np.random.default_rng(0)
    cache = TeacherCache.create(folder, key, "float16")
    step = 50_000
    start = time.perf_counter()
    with cache.writing():
        for first in range(0, views, step):
            logits = rng.integers(0, 15_000, (step, 100), np.uint16).view(np.float16)
            cache.append(np.arange(first, first + step), logits)
    written = time.perf_counter() - start
    start = time.perf_counter()
    cache = TeacherCache(folder, key)
    opened = time.perf_counter() - start
    batches = rng.integers(0, views, (1000, job.BATCH))

    def look_up(count: int) -> None:
        for codes in batches[:count]:
            cache.fetch(cache.locate(codes))

    return {
        "MiB": cache.num_bytes / 2**20,
        "write_s": written,
        "open_s": opened,
        "lookup_ms": job.median_ms(look_up),
    }


def hours(row: Row) -> tuple[float, float]:
    """Of one pair in the table: the teacher in every step; and from a cache of all views, with its making."""
    images = METHODS * SEEDS * EPOCHS * IMAGES
    made = ALL_VIEWS * IMAGES / row["views"]
    return images / row["live"] / 3600, (made + images / row["cached"]) / 3600


def tables(result: dict[str, Any]) -> str:
    facts, parts = result["facts"], result["parts"]
    lines = [
        "# How time and memory grow\n",
        f"{facts['cores']} cores, Python {facts['python']}, jax {facts['jax']}; load average "
        f"{facts['load_before']:.1f} before. ResNet-8 with the teacher's logits at hand, batch {job.BATCH}, "
        "100 classes, where nothing else is said. Written by `experiments/speed/growth.py`.\n",
    ]
    for part in ("batch", "classes", "student", "devices"):
        if part in parts:
            rows = [
                [f"{row[part]:,}" if isinstance(row[part], int) else row[part], f"{row['ms']:.1f}",
                 f"{row['images_per_second']:.0f}", f"{row['MiB']:.0f}", f"{row['compile_s']:.1f}"]
                for row in parts[part]
            ]  # fmt: skip
            head = [part, "ms a step", "images/s", "temporary MiB", "compilation, s"]
            lines.append(_markdown.table(head, rows, left=1))
    if "devices" in parts:
        lines.append(
            "Simulated devices share the machine's cores: they show what the mapping costs, no gain.\n"
        )
    if "cache" in parts:
        rows = [
            [f"{row['views']:,}", f"{row['MiB']:.0f}", f"{row['write_s']:.1f}", f"{row['open_s']:.2f}",
             f"{row['lookup_ms']:.3f}"]
            for row in parts["cache"]
        ]  # fmt: skip
        head = [
            "views in a cache",
            "MiB",
            "written in, s",
            "opened and verified in, s",
            "lookup of a batch, ms",
        ]
        lines.append(_markdown.table(head, rows, left=1))
    if "pairs" in parts:
        rows, total = [], [0.0, 0.0]
        for row in parts["pairs"]:
            live, cached = hours(row)
            total = [total[0] + live, total[1] + cached]
            rows.append(
                [f"{row['teacher']} to {row['student']}", f"{row['views']:.0f}", f"{row['live']:.0f}",
                 f"{row['cached']:.0f}", f"{live:.0f}", f"{cached:.0f}", f"{live / cached:.2f}"]
            )  # fmt: skip
        live, cached = total
        rows.append(["sum", "", "", "", f"{live:.0f}", f"{cached:.0f}", f"{live / cached:.2f}"])
        head = [
            "pair",
            "teacher, images/s",
            "step, live",
            "step, cached",
            "hours, live",
            "with caches",
            "ratio",
        ]
        lines += [
            f"{METHODS} methods x {SEEDS} seeds x {EPOCHS} epochs of {IMAGES:,} images for each pair, by "
            f"arithmetic from the measured speeds; a cache has all {ALL_VIEWS} views, and its making is "
            "counted:\n",
            _markdown.table(head, rows, left=1),
        ]
    return "\n".join(lines)


def figure(result: dict[str, Any], path: Path) -> None:
    """Time and memory of a step over batch and classes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from jaxkd.runs import figures

    parts = result["parts"]
    with mpl.rc_context(figures.STYLE):
        made = Figure(figsize=(2 * figures.COLUMN, 4.2), layout="constrained")
        axes = made.subplots(2, 2, sharex="col")
        for column, part in enumerate(("batch", "classes")):
            for row, (key, label) in enumerate((("ms", "step, ms"), ("MiB", "temporary memory, MiB"))):
                places = [one[part] for one in parts[part]]
                own = axes[row, column]
                values = [one[key] for one in parts[part]]
                own.plot(places, values, "o-", color="#0072B2")
                own.set(xlabel=part if row else "", ylabel="" if column else label)
                own.set_ylim(0, 1.1 * max(values))
                if part == "classes":
                    own.set_xscale("log")
                own.set_xticks(places[-4:], [f"{place:,}" for place in places[-4:]])
                own.minorticks_off()
        made.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=job.RESULTS)
    parser.add_argument("--devices-child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.devices_child:
        print(json.dumps(step_row(job.Jaxkd(args.devices_child))))
        return
    import jax

    facts = {"cores": os.cpu_count(), "python": sys.version.split()[0], "jax": jax.__version__}
    result: dict[str, Any] = {"facts": {**facts, "load_before": os.getloadavg()[0]}, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            (place := Path(folder) / part).mkdir()
            result["parts"][part] = []
            for row in measure(part, place):
                print(part, row, file=sys.stderr, flush=True)
                result["parts"][part].append(row)
            job.write(args.out, "growth", result, tables(result))  # an interruption keeps the parts before
    if {"batch", "classes"} <= result["parts"].keys():
        figure(result, args.out / "growth.png")


if __name__ == "__main__":
    main()
