"""Claim: the adaptive temperature costs less than other dynamic ones.  Time and memory, side by side.

    python experiments/claims/cost.py           # some ten minutes on two CPU cores
    python experiments/claims/cost.py --small   # small shapes, a few rounds

Three tables.  *Temperatures alone*: from logits to the temperatures of the examples.  *Losses*: value and
gradient of the batch mean, for 256 x 100, 256 x 1000 and 4096 x 32000 (batch x classes).  *Training steps*:
a ResNet-8 on 64 images of CIFAR-100's size, with the method's loss and the optimiser, the teacher's logits
given (as from a cache), beside the teacher itself, a ResNet-56, which every method without a cache pays for.

All programs of a table run in turn, round after round, so that a change of the load meets them all.
Each row is the median of the CPU time of a call (over all threads; other work on the machine does not
count), its ratio to kd in the same round (the median of the ratios), and the temporary memory that the
compiled program asks for.  The largest size needs 16 GB; `--sizes 256 100 256 1000` leaves it out.
"""

from __future__ import annotations

import functools
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxkd import _markdown, losses, methods, models, standardize, temperature
from jaxkd.cli import run
from jaxkd.data import CropFlip
from jaxkd.data.augment import as_views
from jaxkd.data.batch import Batch
from jaxkd.models.network import AXIS
from jaxkd.training import Frozen, Recipe, Task, initial_state, train_step

SIZES = ((256, 100), (256, 1000), (4096, 32000))
ROUNDS = 15
RESULTS = Path(__file__).parents[1] / "results" / "claims"
ROUNDS_OF_LARGE = 9  # of programs that take seconds
TAU = {  # temperatures alone, as their losses take them
    "atkd": lambda s, t: temperature.max_logit(standardize(s), standardize(t)),
    "atkd (teacher)": lambda s, t: temperature.max_logit(standardize(s), standardize(t), of="teacher"),
    "ctkd": lambda s, t: temperature.learned(jnp.sum(s[:1, :1]), -0.5),
    "dtkd": lambda s, t: (
        temperature.max_ratio(s, t, of="student"),
        temperature.max_ratio(s, t, of="teacher"),
    ),
    "normkd": lambda s, t: (
        temperature.standard_deviation(s, t, of="student"),
        temperature.standard_deviation(s, t, of="teacher"),
    ),
}
Z = {"standardize": True}
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "kd": lambda s, t, y: losses.kd(s, t, temperature=4.0),
    "lskd": lambda s, t, y: losses.kd(s, t, temperature=2.0, **Z),
    "atkd": lambda s, t, y: losses.kd(s, t, temperature=temperature.max_logit, **Z),
    "atkd (teacher)": lambda s, t, y: losses.kd(
        s, t, temperature=functools.partial(temperature.max_logit, of="teacher"), **Z
    ),
    "ctkd": lambda s, t, y: losses.kd(s, t, temperature=temperature.learned(jnp.ones(()), -0.5)),
    "dtkd": lambda s, t, y: losses.dtkd(s, t),
    "normkd": lambda s, t, y: losses.normkd(s, t),
    "dkd": lambda s, t, y: losses.dkd(s, t, labels=y),
    "mlkd (two views)": lambda s, t, y: losses.mlkd(s, t, 0.9 * s, 0.9 * t),
}
NOT_FOR_LARGE = "mlkd (two views)"  # its matrices of K x K have 4 GB at 32000 classes
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("kd", {}),
    "lskd": ("lskd", {}),
    "atkd": ("atkd", {}),
    "atkd (teacher)": ("atkd", {"temperature": "max_logit_teacher"}),
    "ctkd": ("ctkd", {}),
    "dtkd": ("dtkd", {}),
    "normkd": ("normkd", {}),
    "dkd": ("dkd", {}),
}


class Program:
    """A compiled function with its arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, mapped: bool = False) -> None:
        wrapped = jax.pmap(function, axis_name=AXIS) if mapped else jax.jit(function)
        self._compiled = wrapped.lower(*arguments).compile()
        self._arguments = arguments
        memory = self._compiled.memory_analysis()
        self.temporary = None if memory is None else memory.temp_size_in_bytes

    def __call__(self) -> float:
        """Calls it, and returns the CPU seconds that this took over all threads."""
        start = time.process_time()
        jax.block_until_ready(self._compiled(*self._arguments))
        return time.process_time() - start


def measure(
    programs: dict[str, Program], rounds: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Medians, ratios to the first program, and temporary memory."""
    for program in programs.values():
        program()
    inner = {name: max(1, min(50, int(0.02 / max(program(), 1e-6)))) for name, program in programs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            seconds[name].append(sum(program() for _ in range(inner[name])) / inner[name])
    base = seconds[next(iter(programs))]
    found = {}
    for name, values in seconds.items():
        ratios = [value / first for value, first in zip(values, base, strict=True)]
        found[name] = {
            "milliseconds": 1e3 * statistics.median(values),
            "ratio": statistics.median(ratios),
            "temporary_bytes": programs[name].temporary,
        }
        say(f"  {name}: {found[name]['milliseconds']:.3g} ms, {found[name]['ratio']:.2f} x")
    return found


def logits(batch: int, classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    teacher = 3 * rng.standard_normal((batch, classes), dtype=np.float32)
    student = 0.6 * teacher + rng.standard_normal((batch, classes), dtype=np.float32)
    return jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(rng.integers(0, classes, batch))


def of_temperatures(size: tuple[int, int]) -> dict[str, Program]:
    s, t, y = logits(*size)
    kd = Program(lambda s, t, y: jnp.mean(LOSSES["kd"](s, t, y)), s, t, y)
    return {"kd (the whole loss, forward)": kd, **{name: Program(tau, s, t) for name, tau in TAU.items()}}


def of_losses(size: tuple[int, int]) -> dict[str, Program]:
    large, arguments = size[0] * size[1] > 10_000_000, logits(*size)
    return {
        name: Program(jax.value_and_grad(lambda s, t, y, loss=loss: jnp.mean(loss(s, t, y))), *arguments)
        for name, loss in LOSSES.items()
        if not (large and name == NOT_FOR_LARGE)
    }


def task_of(
    method: methods.Method,
    student: models.Network,
    teacher: models.Network | None,
    main: CropFlip,
    shape: tuple[int, int, int],
) -> Task:
    """The task of a training step: SGD as in the recipe, each view with the augmentation of a run."""
    recipe = Recipe("sgd", 0.05, "steps", 0, momentum=0.9, weight_decay=5e-4, total_steps=1000)
    return Task(
        student=student.on_axis(AXIS),
        teacher=teacher,
        method=method,
        optimizer=recipe.transformation(),
        augmentations=tuple(as_views(None, method.views, main, shape, method.augmentation).items()),
        seed=0,
        num_epochs=1,
        steps_per_epoch=1000,
    )


def of_steps(
    teacher: str,
    student: str,
    batch: int,
    classes: int,
    shape: tuple[int, int, int],
    chosen: Mapping[str, Any],
) -> dict[str, Program]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, batch, *shape), dtype=np.uint8)
    ids = np.arange(batch, dtype=np.int32)[None]
    given = rng.standard_normal((1, batch, classes), dtype=np.float32)
    seen = Batch(ids=ids, images=images, labels=ids % classes, teacher_logits=given)
    mean, std = (0.5,) * shape[-1], (0.25,) * shape[-1]
    networks = {
        name: models.as_network(name, classes).normalized(mean, std)
        for name in dict.fromkeys((teacher, student))
    }
    programs = {}
    variables = networks[teacher].init(0, shape)
    for name, (method, options) in chosen.items():
        made = methods.create(method, **options)
        task = task_of(made, networks[student], networks[teacher], CropFlip(padding=4, flip=True), shape)
        state = jax.tree.map(lambda leaf: leaf[None], initial_state(task, shape, teacher=variables))
        step = functools.partial(train_step, task)
        programs[name] = Program(step, state, Frozen(None, {}), seen, mapped=True)
    view = jnp.zeros((batch, *shape), jnp.float32)
    network = networks[teacher]
    programs["the teacher's logits"] = Program(lambda v, x: network.apply(v, x)[0].logits, variables, view)
    return programs


def table(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, cell in found.items():
        memory = "-" if cell["temporary_bytes"] is None else f"{cell['temporary_bytes'] / 2**20:.2f}"
        rows.append([name, f"{cell['milliseconds']:.3g}", f"{cell['ratio']:.2f}", memory])
    return _markdown.table(["", "CPU ms", "ratio", "temporary MiB"], rows, left=1)


def main(
    out: Path | None = None,
    rounds: int = ROUNDS,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    small: bool = False,
) -> None:
    """Time and memory of temperatures, losses and training steps.

    Args:
      out: folder of the tables; by default that of the committed one, or runs/claims/cost-small.
      rounds: how often all programs of a table run in turn.
      sizes: batch and classes of the losses.
      small: small shapes and three rounds instead.
    """
    if small:
        sizes, rounds = ((64, 10),), 3
    out = out or (Path("runs/claims/cost-small") if small else RESULTS / "cost")
    device = jax.devices()[0].device_kind
    about = {"device": device, "machine": platform.machine(), "jax": jax.__version__, "rounds": rounds}
    found: dict[str, Any] = {}
    parts = []

    def add(title: str, programs: dict[str, Program], rounds: int) -> None:
        print(title, flush=True)
        found[title] = measure(programs, rounds, lambda line: print(line, flush=True))
        parts.append(f"## {title}\n\n{table(found[title])}")
        out.mkdir(parents=True, exist_ok=True)
        note = f"CPU time of a call, median of {rounds} rounds in turn; ratio: to the first row, by round."
        text = "\n".join([f"{note} Device: {device}, jax {jax.__version__}.\n", *parts])
        (out / "report.md").write_text(text)
        (out / "cost.json").write_text(json.dumps({**about, "tables": found}, indent=1) + "\n")

    for size in sizes:
        few = min(rounds, ROUNDS_OF_LARGE) if size[0] * size[1] > 10_000_000 else rounds
        add(f"Temperatures alone, {size[0]} x {size[1]}", of_temperatures(size), few)
        add(f"Losses, value and gradient, {size[0]} x {size[1]}", of_losses(size), few)
    if small:
        few_steps = {name: STEPS[name] for name in ("kd", "atkd")}
        add(
            "Training steps, 16 images of 8 x 8",
            of_steps("resnet14", "resnet8", 16, 10, (8, 8, 1), few_steps),
            rounds,
        )
    else:
        add(
            "Training steps, 64 images of 32 x 32",
            of_steps("resnet56", "resnet8", 64, 100, (32, 32, 3), STEPS),
            rounds,
        )
    print(f"tables: {out / 'report.md'}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
