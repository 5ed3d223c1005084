"""Small data sets, teachers and command lines that several tests need."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import cli, data, models, teachers
from jaxkd.cli import commands
from jaxkd.models.torch_names import to_flax, to_torch


def silent(_: str) -> None:
    """A `say` for runs whose progress nobody reads."""


class Tiny(nn.Module):
    """A network of two stages without batch norm, whose update does not depend on how a batch is cut."""

    width: int = 6
    dtype: Any = jnp.float32

    @property
    def preact_norms(self) -> dict[str, tuple[str, ...]]:
        return {stage: (f"{stage}_norm",) for stage in ("stage1", "stage2")}

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, features = images, {}
        for stage in self.preact_norms:
            x = nn.Conv(self.width, (3, 3), strides=2, dtype=self.dtype)(x)
            before = nn.LayerNorm(dtype=self.dtype, name=f"{stage}_norm")(x)
            x = nn.relu(before)
            features |= {f"{stage}_preact": before, stage: x}
        pooled = x.mean((1, 2), dtype=jnp.float32)
        dense = nn.Dense(3, name="Dense_0")
        logits = dense(pooled)
        activation = x.astype(jnp.float32) @ dense.variables["params"]["kernel"]
        return logits, {**features, "last": x, "pooled": pooled, "cam": activation}


def tiny_teacher(dataset: data.Dataset) -> teachers.Teacher:
    """An untrained teacher whose features are wider than `Tiny`'s."""
    return _tiny_teacher(dataset.image_shape)


@functools.cache
def _tiny_teacher(image_shape: tuple[int, int, int]) -> teachers.Teacher:
    network = models.from_linen(Tiny(width=9), name="teacher")
    variables = jax.device_get(network.init(7, image_shape))
    return teachers.from_network(network, variables, image_shape=image_shape, mean=(0.3,), std=(0.2,))


def tiny_dataset(
    num_train: int = 40, num_test: int = 19, *, num_classes: int = 3, seed: int = 0
) -> data.Dataset:
    """Noisy 8x8 images whose brightness tells the class; sizes that no batch divides."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(num_classes, size=count)
        labels[:num_classes] = np.arange(num_classes)
        noise = rng.integers(0, 60, (count, 8, 8, 1))
        return (noise + 60 * labels[:, None, None, None]).astype(np.uint8), labels

    augmentation = data.CropFlip(padding=1, flip=True)
    return data.from_arrays(
        split(num_train), split(num_test), num_classes=num_classes, augmentation=augmentation, name="tiny"
    )


def write_npz(path: Path, dataset: data.Dataset) -> Path:
    """Writes a data set as the .npz file that `--data` takes."""
    train, test = dataset.splits["train"], dataset.splits["test"]
    np.savez(
        path,
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
    )
    return path


def untrained_teacher(folder: Path, dataset: data.Dataset, model: str = "resnet8", **changes: Any) -> Path:
    """Saves a teacher with fresh weights that fits a data set."""
    network = models.create(model, changes.pop("num_classes", dataset.num_classes))
    variables = models.initialize(network, seed=5, image_shape=dataset.image_shape)
    variables = changes.pop("change", lambda tree: tree)(variables)
    description = teachers.Description(
        model, network.num_classes, dataset.image_shape, dataset.mean, dataset.std, dataset.name
    )
    teachers.save(folder, variables, description)
    return folder


def deterministic_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight rule of tests/fixtures/README.md: a torch name and shape decide on the numbers."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        array = 0.5 + rng.random(shape)
    elif last in ("running_mean", "bias"):
        array = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        array = 1 + 0.1 * rng.standard_normal(shape)
    else:
        array = np.sqrt(2 / np.prod(shape[1:])) * rng.standard_normal(shape)
    return array.astype(np.float32)


def deterministic_variables(model: str, num_classes: int = 100, **options: Any) -> dict[str, Any]:
    """A network's variables with the numbers of that rule, which the torch names decide on."""
    network = models.create(model, num_classes, **options)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    names = to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    return to_flax({name: deterministic_weight(name, w.shape) for name, w in names.items()}, shapes)


def environment(devices: int = 1, *, optimized: bool = False) -> dict[str, str]:
    """That of a child process with some devices.

    It compiles as fast as this one; or, for one that computes much, code as fast as a user's.
    """
    count = "--xla_force_host_platform_device_count="
    flags = re.sub(rf"(?<={count})\d+", str(devices), os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": f"{count}{devices}" if optimized else flags}


def start_jaxkd(
    *arguments: object,
    devices: int = 1,
    optimized: bool = False,
    own_group: bool = False,
    folder: Path | None = None,
) -> subprocess.Popen[str]:
    """Starts the command line in a child process; if asked, in its own process group, in another folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxkd", *map(str, arguments)],
        env=environment(devices, optimized=optimized),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=own_group,
        cwd=folder,
    )


def run_jaxkd(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """Runs the command line as `start_jaxkd`; returns its exit code, output and error output."""
    with start_jaxkd(*arguments, **options) as child:
        output, errors = child.communicate(timeout=300)
        return child.returncode, output, errors


def call_jaxkd(*arguments: object, folder: Path | None = None) -> tuple[int, str, str]:
    """What `run_jaxkd` does, in this process: with its devices and programs, in a tenth of the time."""
    output, errors = io.StringIO(), io.StringIO()
    place = contextlib.chdir(folder) if folder else contextlib.nullcontext()
    handler, code = logging.StreamHandler(errors), 0  # pytest has taken Python's own place for warnings
    logging.getLogger("jaxkd").addHandler(handler)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), place:
            cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        logging.getLogger("jaxkd").removeHandler(handler)
    return code, output.getvalue(), errors.getvalue()


def evaluate_imports_on(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on `jaxkd import` in this process evaluates on the first test images alone."""
    load = commands._load

    def first(*arguments: Any) -> data.Dataset:
        dataset = load(*arguments)
        test = dataset.splits["test"]
        split = data.Split(test.images[:count], test.labels[:count])
        return dataclasses.replace(dataset, splits={"test": split})

    monkeypatch.setattr(commands, "_load", first)


class SignalSource:
    """Examples whose labels say how the process that reads them handles signals; for worker processes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, example_id: int) -> dict[str, Any]:
        interrupt, terminate = (
            signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)
        )
        return {"image": np.full((2, 2, 1), example_id, np.uint8), "label": 2 * interrupt + terminate}
