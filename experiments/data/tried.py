"""Makes small data sets of every kind, reads them by name, trains an epoch on each, and writes the table.

    python experiments/data/tried.py

Two kinds of rows.  Sets of TensorFlow Datasets are prepared here with noise, in the features that the stock
code declares (sizes, classes, texts beside the image) and under the splits of their catalogue; so what is
tried is everything but their pixels.  The handwritten digits of scikit-learn are written as a set of TFDS, a
folder of PNG files, an .npz file and, if `datasets` is installed, an object of Hugging Face; each must give
the same images and labels as `data.load("digits")`.  Writes results/tried.md; needs no network.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import jaxkd
from jaxkd import _markdown as markdown
from jaxkd import data

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

# By name, the splits of TFDS's catalogue, cut to some examples; and the size that is asked for.
STOCK: dict[str, tuple[dict[str, int], int | None]] = {
    "mnist": ({"train": 40, "test": 20}, None),
    "fashion_mnist": ({"train": 40, "test": 20}, None),
    "emnist/letters": ({"train": 80, "test": 40}, None),
    "svhn_cropped": ({"train": 40, "test": 20, "extra": 10}, None),
    "stl10": ({"train": 40, "test": 20, "unlabelled": 10}, 32),
    "eurosat/rgb": ({"train": 50}, None),
    "patch_camelyon": ({"train": 40, "test": 20, "validation": 20}, 32),
    "tf_flowers": ({"train": 50}, 32),
    "beans": ({"train": 12, "validation": 6, "test": 6}, 64),
    "oxford_flowers102": ({"train": 110, "test": 110, "validation": 110}, 32),
    "food101": ({"train": 110, "validation": 110}, 32),
    "imagenette/160px-v2": ({"train": 40, "validation": 20}, 64),
    "plant_village": ({"train": 60}, 32),
    "colorectal_histology": ({"train": 40}, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    out = parser.parse_args().out
    logging.getLogger("jaxkd").setLevel(logging.ERROR)  # absent classes and held out parts are meant
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = f"{work}/cache"
        rows = [*stock(Path(work)), *digits(Path(work))]
    table = markdown.table(
        ["data set", "asked for", "train", "test", "image", "classes", "what was read", "an epoch"],
        rows,
        left=2,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "tried.md").write_text(f"{table}\n\n`python experiments/data/tried.py`\n")
    print(table)


def stock(work: Path) -> list[list[str]]:
    import tfds_folder

    rows = []
    for name, (splits, size) in STOCK.items():
        tfds_folder.write_stock(work / "tfds", name, splits, side=100)
        options = {"data": name, "data_dir": work / "tfds", "image_size": size}
        dataset = data.load(name, data_dir=work / "tfds", image_size=size)
        asked = f"`--data {name}`" + (f" `--image-size {size}`" if size else "")
        epoch(work, options)  # of noise there is nothing to learn
        rows.append([f"TFDS {name}", asked, *shape_of(dataset), "noise", "done"])
        print(rows[-1])
    return rows


def digits(work: Path) -> list[list[str]]:
    import tensorflow_datasets as tfds
    import tfds_folder

    real = data.load("digits")
    examples = {
        name: [{"image": image, "label": int(label)} for image, label in zip(s.images, s.labels, strict=True)]
        for name, s in real.splits.items()
    }
    features = {
        "image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)
    }  # fmt: skip
    tfds_folder.write(work / "tfds", "my_digits", features, examples)
    arrays = {
        f"{name}_{what}": getattr(s, what) for name, s in real.splits.items() for what in ("images", "labels")
    }
    np.savez(work / "my_digits.npz", **arrays)
    for name, some in examples.items():
        for number, example in enumerate(some):
            path = work / "pictures" / name / str(example["label"]) / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(example["image"][..., 0]).save(path)
    folder = f"folder:{work / 'pictures'}"
    ways: dict[str, dict[str, Any]] = {
        "digits as TFDS": {"data": "my_digits", "data_dir": work / "tfds"},
        "digits as PNG files": {"data": folder},
        "digits as .npz": {"data": str(work / "my_digits.npz")},
        "digits as a list of mappings": {"data": data.from_examples(examples, name="rows")},
    }
    try:
        import datasets
    except ImportError:
        print("Hugging Face's datasets is not installed")
    else:
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
        hub = {
            name: datasets.Dataset.from_dict(
                {
                    "image": [Image.fromarray(row["image"][..., 0]) for row in some],
                    "label": [row["label"] for row in some],
                },
                features=datasets.Features(kinds),
            )
            for name, some in examples.items()
        }
        ways[f"digits as `datasets` {datasets.__version__}"] = {"data": data.from_examples(hub, name="hub")}
    asked = ["`--data my_digits`", "`--data folder:pictures`", "`--data my_digits.npz`"]
    rows = []
    for number, (name, options) in enumerate(ways.items()):
        given = options["data"]
        loaded = (
            given if isinstance(given, data.Dataset) else data.load(given, data_dir=options.get("data_dir"))
        )
        same = all(pairs(loaded, split) == pairs(real, split) for split in ("train", "test"))
        said = asked[number] if number < len(asked) else "`data.from_examples`"
        found = "equal to `digits`" if same else "DIFFERENT"
        rows.append([name, said, *shape_of(loaded), found, epoch(work, options)])
        print(rows[-1])
    return rows


def pairs(dataset: data.Dataset, name: str) -> collections.Counter[tuple[bytes, int]]:
    split = dataset.splits[name]
    assert isinstance(split, data.Split)
    return collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)
    )


def shape_of(dataset: data.Dataset) -> list[str]:
    counts = [f"{len(dataset.splits[name]):,}" for name in ("train", "test")]
    return [*counts, "x".join(map(str, dataset.image_shape)), str(dataset.num_classes)]


def epoch(work: Path, options: dict[str, Any]) -> str:
    run = Path(tempfile.mkdtemp(dir=work)) / "run"
    result = jaxkd.train(
        model="resnet8", epochs=1, run=run, batch_size=32, devices=1, say=lambda _: None, **options
    )
    return f"{result['last_accuracy']:.1f} %"


if __name__ == "__main__":
    main()
