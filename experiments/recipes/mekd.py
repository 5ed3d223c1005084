"""A student of a black box: what a teacher's answers alone teach, on images that a generator makes (MEKD).

    python experiments/recipes/mekd.py                          # the digits; two minutes on two CPU cores
    python experiments/recipes/mekd.py --epochs 80 --ablation   # longer, and one row more
    python experiments/recipes/mekd.py --small                  # two epochs, to see that it works
    python experiments/recipes/mekd.py --data cifar100 --data-dir DIR --teacher teachers/resnet56

Somebody holds a tenth of the training images, without labels, and a teacher that answers with probabilities
(soft) or with its first choice (hard).  The first stage trains a generator on those images and answers; the
second trains a student on the generator's images.  Beside it: KD on the tenth of real images, KD on noise, KD
on all real images, and (`--ablation`) the generator's images without their comparison (`image_weight` 0).
Runs, table and a picture of the generator's images go to a folder in `runs`; the same command goes on where
it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro

from jaxkd import data as datasets
from jaxkd import distill, methods, teachers
from jaxkd.cli import run
from jaxkd.methods.black_box import as_pixels
from jaxkd.runs.generator import at_hand, load_generator, train_generator
from jaxkd.runs.report import report

FRACTION = 0.1
GENERATOR = {"epochs": 600, "width": 64, "batch_size": 64, "learning_rate": 2e-4, "weight": 0.5}
STUDENT = {
    "student": "resnet8",
    "epochs": 24,
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
CIFAR = {"generator": {**GENERATOR, "epochs": 200, "width": 128}, "student": {**STUDENT, "epochs": 240}}


@dataclasses.dataclass(frozen=True)
class Noise:
    """Even noise in the place of an image."""

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """See `jaxkd.data.Augmentation`."""
        return jax.random.randint(key, image.shape, 0, 256).astype(jnp.uint8)


def main(
    data: str = "digits",
    teacher: str = "digits-resnet20",
    data_dir: Path | None = None,
    epochs: int | None = None,
    seeds: int = 1,
    ablation: bool = False,
    small: bool = False,
    out: Path | None = None,
) -> None:
    """Trains generator and students, and reports them.

    Args:
      data: data set; its images need sides that are multiples of 4.
      teacher: name or folder of a network trained on it.
      data_dir: folder of prepared TensorFlow Datasets (array_record).
      epochs: of the students; by default 24 on the digits, and 240 on others.
      seeds: number of seeds of the students, from 0; they share the generator, and its tenth of the images.
      ablation: also a student that does not compare the generator's images with real ones.
      small: two epochs of everything.
      out: folder for the runs, the table and the picture; by default one in runs, named by data and epochs.
    """
    dataset = datasets.load(data, data_dir=data_dir)
    known = teachers.load(teacher)
    options = CIFAR if data != "digits" else {"generator": GENERATOR, "student": STUDENT}
    if epochs is not None:
        options = {**options, "student": {**options["student"], "epochs": epochs}}
    if small:
        options = {stage: {**values, "epochs": 2} for stage, values in options.items()}
    out = out or Path("runs") / f"mekd-{Path(data).name}-{options['student']['epochs']}-epochs"
    folders: list[Path] = [teachers.locate(teacher)]
    generator = train_generator(
        teacher=black_box(known), data=dataset, out=out / "generator-seed0", seed=0, fraction=FRACTION,
        **options["generator"],
    )  # fmt: skip
    picture(generator, dataset, out / "generator-seed0.png")
    for seed in range(seeds):
        rows = {
            "mekd-soft": {"method": mekd(generator)},
            "mekd-hard": {"method": mekd(generator, hard=True)},
            "real-tenth": {"method": kd(), "data": part(dataset)},
            "noise": {"method": kd(), "augmentation": Noise()},
            "real": {"method": kd()},
        }
        if ablation:
            rows["generator-kl"] = {"method": mekd(generator, image_weight=0.0)}
        for name, row in rows.items():
            config = {**options["student"], "seed": seed, "run": out / f"{name}-seed{seed}"}
            # The tenth is seen ten times an epoch, so that all students make as many steps.
            if name == "real-tenth":
                ratio = len(dataset.splits["train"]) / len(row["data"].splits["train"])
                config["epochs"] = round(config["epochs"] * ratio)
            distill(**{"teacher": black_box(known), "data": dataset, **row, **config})
            folders.append(config["run"])
    print(f"\n{report(folders, out / 'report')}\ntable: {out / 'report'}, pictures: {out}")


def black_box(teacher: teachers.Teacher) -> teachers.Teacher:
    """The teacher, of which nothing is seen but its probabilities."""
    network, variables = teacher.frozen

    def probabilities(variables: Any, images: jax.Array) -> jax.Array:
        return jnp.log(jax.nn.softmax(network.apply(variables, images)[0].logits) + 1e-12)

    about = teacher.description
    return teachers.from_function(
        probabilities, num_classes=about.num_classes, variables=variables, image_shape=about.image_shape,
        mean=about.mean, std=about.std, name=f"{teacher.name}-answers",
    )  # fmt: skip


def mekd(generator: Path, **options: Any) -> methods.Method:
    """The second stage."""
    return methods.create("mekd", generator=str(generator), **options)


def kd() -> methods.Method:
    """KD as the authors compare with: T 5, 5 times the divergence, no labels."""
    return methods.create("kd", temperature=5.0, weight=0.2, ce_weight=0.0)


def part(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same tenth of the images that the generator is trained on."""
    train, test = dataset.splits["train"], dataset.splits["test"]
    ids = at_hand(len(train), FRACTION, 0)
    return datasets.from_arrays(
        (train.images[ids], train.labels[ids]), (test.images, test.labels), num_classes=dataset.num_classes,
        augmentation=dataset.augmentation, mean=dataset.mean, std=dataset.std, name=f"{dataset.name}-tenth",
    )  # fmt: skip


def picture(generator: Path, dataset: datasets.Dataset, file: Path) -> None:
    """Images of the generator beside real ones."""
    made = load_generator(generator)
    latent = jax.random.normal(jax.random.key(0), (64, made.latent))
    images = {"generated": as_pixels(made.generator.apply(made.variables, latent))}
    images["real"] = dataset.splits["train"].images[:64]
    figure, axes = plt.subplots(1, 2, figsize=(6, 3.2), layout="constrained")
    for axis, (name, shown) in zip(axes, images.items(), strict=True):
        height, width, channels = shown.shape[1:]
        framed = np.pad(np.asarray(shown), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=128)
        grid = framed.reshape(8, 8, height + 2, width + 2, channels).transpose(0, 2, 1, 3, 4)
        axis.imshow(grid.reshape(8 * (height + 2), -1, channels).squeeze(), cmap="gray")
        axis.set_title(name)
        axis.axis("off")
    figure.savefig(file, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
