"""Reads prepared TensorFlow Datasets folders without TensorFlow, and prepares them with it.

Any classification set of images will do: the image, the label, the splits, the number of classes and the
shape are read from the dataset's own metadata.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd._extras import DISTRIBUTION, require
from jaxkd.data.collection import Collection, Decoded, Part, files_digest
from jaxkd.data.pixels import SIXTEEN_BITS
from jaxkd.data.streaming import Source
from jaxkd.files.places import each, is_remote, place


def open_tfds(name: str, data_dir: str | Path | None) -> Collection:
    """Opens a set without reading its images.

    Args:
      name: the builder's name, with a configuration and a version if wanted: "svhn_cropped",
        "eurosat/rgb", "stl10:1.0.0".
      data_dir: the folder that holds the set's folder; None for TFDS's own.

    Raises:
      FileNotFoundError: nothing is prepared there and it cannot be downloaded; the message says what to do.
      ValueError: there is no such dataset, or it is not an image classification dataset.
    """
    builder = _builder(name, data_dir)
    image, label = _image_and_label(name, builder.info)
    height, width, channels = builder.info.features[image].shape
    if not any((shards := _shards(builder)).values()):
        _prepare(builder, name)
        shards = _shards(builder)
    classes = builder.info.features[label].num_classes
    parts = {}
    for split, files in shards.items():
        if files:
            decoded = functools.partial(
                Decoded, image=image, label=label, channels=channels or 3, num_classes=classes
            )
            nearby = functools.partial(_nearby, builder, split, files, decoded)
            facts = [(shard.name, shard.stat().st_size) for shard in files]
            digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
            parts[split] = Part(
                decoded(builder.as_data_source(split)),
                digest,
                files_digest(files),
                nearby if is_remote(builder.data_path) else None,
            )
    return Collection(name, parts, classes, (height, width, channels or 3))


@contextlib.contextmanager
def _nearby(builder: Any, split: str, shards: Sequence[Path], decoded: Any) -> Iterator[Source]:
    """The examples of a split in a bucket, for reading all of them: a request each would take an hour."""
    import tensorflow_datasets as tfds

    folder = place(builder.data_path)
    with tempfile.TemporaryDirectory(prefix="jaxkd-") as there:
        copy = Path(there).joinpath(*folder.parts[-2:])
        copy.mkdir(parents=True)
        about = [path for path in folder.iterdir() if path.suffix in (".json", ".txt")]
        each(lambda path: (copy / path.name).write_bytes(path.read_bytes()), [*about, *shards])
        yield decoded(tfds.builder_from_directory(copy).as_data_source(split))


def is_known(name: str, data_dir: str | Path | None) -> bool:
    """Whether TFDS has a set of that name, or one is prepared in a folder."""
    try:
        _builder(name, data_dir)
    except ValueError:
        return False
    return True


def known_names() -> list[str]:
    """The names of TFDS, of all kinds of data."""
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def _builder(name: str, data_dir: str | Path | None) -> Any:
    # TFDS logs, through absl, that it would decode faster with OpenCV.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if is_remote(data_dir):
        require("gcs", "gcsfs")
        os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow need not know buckets
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"TensorFlow Datasets cannot open {name} ({first})") from None


def _shards(builder: Any) -> dict[str, list[Path]]:
    """The files of each split; of a set that is not prepared, there are none."""
    splits = list(builder.info.splits) or ["train"]
    folder = place(builder.data_path)
    return {split: sorted(folder.glob(f"{builder.name}-{split}.array_record-*")) for split in splits}


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    """The keys of the image and of the class: the dataset's supervised keys, or chosen by type."""
    import tensorflow_datasets as tfds

    found = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    images = [key for key, feature in found.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in found.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = [key for key in info.supervised_keys or () if isinstance(key, str)]
    image = [key for key in supervised if key in images] or images
    label = [key for key in supervised if key in labels] or labels
    if len(image) != 1 or len(label) != 1:
        raise ValueError(
            f"{name} is not a set of images with one class each: images {', '.join(images) or 'none'}, "
            f"classes {', '.join(labels) or 'none'}; in Python, data.from_examples takes "
            "tfds.data_source(...) and the names of two of them"
        )
    if (dtype := np.dtype(found[image[0]].np_dtype)) != np.uint8:
        reason = SIXTEEN_BITS if dtype == np.uint16 else f"is {dtype}, and images are uint8 here"
        raise ValueError(f"the image of {name} {reason}")
    return image[0], label[0]


def _prepare(builder: Any, name: str) -> None:
    folder, split = place(builder.data_path), next(iter(_shards(builder)))
    absent = f"no split {split!r} of {name} in {folder} (looked for {builder.name}-{split}.array_record-*)"
    if other := next(iter(sorted(folder.glob("*.tfrecord-*"))), None):
        absent += f"; {other.name} is in tfrecord format, which cannot be read by index"
    remedy = "Pass --data-dir (data_dir=) the folder that holds a prepared one in array_record format"
    if importlib.util.find_spec("tensorflow") is None:
        raise FileNotFoundError(
            f"{absent}. {remedy}, or let TFDS download it: pip install '{DISTRIBUTION}[download]'"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise FileNotFoundError(
            f"{absent}, and downloading it failed ({type(error).__name__}: {error}). {remedy}, "
            "or try again where there is a network"
        ) from error
