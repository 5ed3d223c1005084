"""What a training step of every method costs beside one of kd: time and memory, on this machine.

    python experiments/methods/steps.py           # some ten minutes on two CPU cores
    python experiments/methods/steps.py --small   # three methods, small networks

A ResNet-8 under a ResNet-56, 64 images of CIFAR-100's size.  The teacher runs in each step, twice for methods
with two views.  The networks are untrained and the images are noise, which does not matter for time.
All programs run in turn, round after round, and a ratio is one of medians.  Time is CPU time over all
threads, so other work on the machine counts little.  Memory is what the compiled program asks for beside its
arguments, and what the method keeps beside the student: adapters, memories, constants.
Writes `results/steps.md`.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxkd import _markdown, data, methods, models, teachers
from jaxkd.cli import run
from jaxkd.data.batch import Batch
from jaxkd.methods.black_box import Generated
from jaxkd.models.dcgan import Generator
from jaxkd.training import Frozen, initial_state, train_step

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "claims"))
from cost import Program, measure, task_of  # noqa: E402

SMALL = ("kd", "crd", "simkd")
LATENT = 100


def images(count: int, shape: tuple[int, int, int], classes: int) -> data.Dataset:
    """A data set of noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    split = data.Split(pixels, np.arange(count, dtype=np.int32) % classes)
    channels = shape[-1]
    return data.Dataset(
        "noise", {"train": split}, classes, (0.5,) * channels, (0.25,) * channels, data.CropFlip(4, True)
    )


def program(
    method: methods.Method, teacher: teachers.Teacher, student: str, dataset: data.Dataset, batch: int
) -> tuple[Program, int]:
    """A method's compiled step, and the bytes that the method keeps."""
    shape, classes = dataset.image_shape, dataset.num_classes
    network = models.as_network(student, classes).normalized(dataset.mean, dataset.std)
    task = task_of(method, network, teacher.frozen[0] if method.reads else None, dataset.augmentation)
    variables = teacher.frozen[1] if method.reads else None
    constants = dict(method.constants(teacher, network, dataset))
    state = initial_state(task, shape, teacher=variables, constants=constants)
    split: Any = dataset.splits["train"]
    ids = np.arange(batch, dtype=np.int32)
    seen = Batch(ids=ids, images=split.images[:batch], labels=split.labels[:batch])
    arguments = jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[None], (state, Frozen(variables, constants), seen)
    )
    kept = (state.params["method"], state.method, constants)
    return (
        Program(functools.partial(train_step, task), *arguments, mapped=True),
        sum(leaf.nbytes for leaf in jax.tree.leaves(kept)),
    )


def main(
    out: Path = HERE / "results",
    rounds: int = 15,
    small: bool = False,
) -> None:
    """Time and memory of a step of every method, beside kd.

    Args:
      out: folder of the table.
      rounds: how often all programs run in turn.
      small: three methods, small networks, three rounds.
    """
    names, batch, dataset = list(methods.names()), 64, images(50_000, (32, 32, 3), 100)
    models_used = ("resnet56", "resnet8")
    if small:
        names, batch, rounds = list(SMALL), 16, 3
        dataset, models_used = images(64, (8, 8, 1), 10), ("resnet14", "resnet8")
    names.sort(key=lambda name: name != "kd")  # the first one is what the others are compared with
    big = models.as_network(models_used[0], dataset.num_classes)
    teacher = teachers.from_network(
        big,
        big.init(0, dataset.image_shape),
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
    )
    generator = Generator(dataset.image_shape)
    stage = Generated(
        "untrained", generator, LATENT, generator.init(jax.random.key(0), jnp.zeros((1, dataset.num_classes)))
    )
    programs, kept = {}, {}
    for name in names:
        given = {"generator": stage} if name == "mekd" else {}
        print(f"compiling {name}", flush=True)
        programs[name], kept[name] = program(
            methods.create(name, **given), teacher, models_used[1], dataset, batch
        )
    found = measure(programs, rounds, lambda line: print(line, flush=True))
    rows = []
    for name in sorted(names):
        cell = found[name]
        temporary = cell["temporary_bytes"]
        rows.append(
            [
                name,
                f"{cell['milliseconds']:.0f}",
                f"{cell['milliseconds'] / found['kd']['milliseconds']:.2f}",
                "-" if temporary is None else f"{temporary / 2**20:.0f}",
                f"{kept[name] / 2**20:.1f}",
            ]
        )
    head = ["method", "CPU ms", "ratio to kd", "temporary MiB", "kept by the method, MiB"]
    out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0].device_kind
    (out / "steps.md").write_text(
        f"A training step of {models_used[1]} under {models_used[0]}, {batch} images of "
        f"{' x '.join(map(str, dataset.image_shape))}, {dataset.num_classes} classes, the teacher in each "
        f"step.  Median of\n{rounds} rounds in turn; CPU time over all threads; a ratio may be off by 5 %.  "
        f"Device: {device}, jax {jax.__version__}.\n\n{_markdown.table(head, rows, left=1)}"
    )
    print(f"table: {out / 'steps.md'}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
