"""Writes prepared folders of TensorFlow Datasets in array_record format, without TensorFlow."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example


def write(
    data_dir: Path,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    supervised: tuple[str, ...] | None = ("image", "label"),
    place: str | None = None,
) -> Path:
    """Writes what `download_and_prepare(file_format="array_record")` would: records, features, and facts.

    Args:
      data_dir: that of TFDS.
      name: of the set, without a configuration.
      features: TFDS's, by key: images, class labels, texts.
      splits: examples by the split's name: uint8 arrays, integers and texts.
      supervised: the keys of the image and the label; None for a set that does not say.
      place: below `data_dir`; by default the name and version 1.0.0.
    """
    folder = data_dir / (place or f"{name}/1.0.0")
    folder.mkdir(parents=True)
    for split, examples in splits.items():
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for values in examples:
            writer.write(_record(values))
        writer.close()
    tfds.features.FeaturesDict(features).save_config(folder)
    about: dict[str, Any] = {
        "name": name,
        "version": folder.name,
        "fileFormat": "array_record",
        "splits": [
            {
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(examples))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, examples in splits.items()
        ],
    }
    if supervised is not None:
        about["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in supervised]}}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return folder


def write_stock(data_dir: Path, name: str, splits: Mapping[str, int], *, side: int = 40) -> Any:
    """Writes noise as a set that TFDS knows, of the features that its own code declares; returns the builder.

    Args:
      data_dir: that of TFDS.
      name: of the set, with its configuration.
      splits: numbers of examples.
      side: the smallest side of images whose size is not declared.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    features = dict(builder.info.features.items())
    rng = np.random.default_rng(0)

    def value(feature: Any, index: int) -> Any:
        if isinstance(feature, tfds.features.Image):
            height, width, channels = feature.shape
            sides = (height or side + index % 7, width or side + index % 5)
            return rng.integers(0, 256, (*sides, channels), np.uint8)
        if isinstance(feature, tfds.features.ClassLabel):
            return index % feature.num_classes
        return f"{index}"

    examples = {
        split: [{key: value(feature, i) for key, feature in features.items()} for i in range(count)]
        for split, count in splits.items()
    }
    place = str(Path(builder.data_path).relative_to(data_dir))
    write(data_dir, builder.name, features, examples, supervised=builder.info.supervised_keys, place=place)
    return builder


def _record(values: Mapping[str, Any]) -> bytes:
    record = Example()
    for key, value in values.items():
        feature = record.features.feature[key]
        if isinstance(value, np.ndarray):
            feature.bytes_list.value.append(_png(value))
        elif isinstance(value, str):
            feature.bytes_list.value.append(value.encode())
        else:
            feature.int64_list.value.append(value)
    return record.SerializeToString()


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    return file.getvalue()
