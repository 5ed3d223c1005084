"""Writes a prepared folder of TensorFlow Datasets in array_record format, without TensorFlow."""

from __future__ import annotations

import io
import json
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
    supervised: tuple[str, str] | None = ("image", "label"),
) -> Path:
    """Writes what `download_and_prepare(file_format="array_record")` would: records, features, and facts.

    Args:
      data_dir: that of TFDS.
      name: of the set.
      features: TFDS's, by key: images and class labels.
      splits: examples by the split's name: uint8 arrays and integers.
      supervised: the keys of the image and the label; None for a set that does not say.
    """
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    for split, examples in splits.items():
        writer = ArrayRecordWriter(
            str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for values in examples:
            record = Example()
            for key, value in values.items():
                if isinstance(value, np.ndarray):
                    record.features.feature[key].bytes_list.value.append(_png(value))
                else:
                    record.features.feature[key].int64_list.value.append(value)
            writer.write(record.SerializeToString())
        writer.close()
    tfds.features.FeaturesDict(features).save_config(folder)
    about: dict[str, Any] = {
        "name": name,
        "version": "1.0.0",
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


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    return file.getvalue()
