"""Datasets from Python objects: Hugging Face `datasets`, `tfds.data_source`, any list of mappings.

These libraries are not imported: an object has a length, returns a mapping by index, and may describe its
columns in `features`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.data.augment import Augmentation
from jaxkd.data.collection import Collection, Decoded, Part, assemble, evenly
from jaxkd.data.datasets import Dataset, count_classes
from jaxkd.data.pixels import channels_of

_LOOKED_AT = 256


def from_examples(
    splits: Mapping[str, Any],
    *,
    image: str | None = None,
    label: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
    image_size: int | None = None,
    resized_crop: bool = False,
    name: str = "examples",
) -> Dataset:
    """Makes a dataset from objects that return examples by index.

    Args:
      splits: the result of `datasets.load_dataset`, or any objects by split ("train", "test"): each has a
        length and returns a mapping with an image (uint8 `[H, W]` or `[H, W, C]`, or a Pillow image) and a
        class number.  Several threads ask at the same time: one that seeks in an open file needs a lock.
        Without a test split, "validation" is used, or a fifth of the training examples.
      image: the key of the image; by default the column of type `Image`, or "image".
      label: the key of the class number; by default the column of type `ClassLabel`, or "label".
      num_classes: by default the column's own number, or the largest label plus one (then all labels are
        read, and every smaller class must have an example).
      mean: mean of each channel of pixels in [0, 1]; by default that of 1,024 training images.
      std: standard deviation of each channel.
      augmentation: for training images; by default a crop after padding by an eighth of the side, no flips.
      image_size: as for `load`.
      resized_crop: as for `load`.
      name: for the record.

    Returns:
      The dataset, in memory if its training images take at most 1 GiB, otherwise streamed.

    Raises:
      TypeError: a split has no length or no index, such as a streamed Hugging Face dataset.
      ValueError: an image or a label is not valid, or the images differ in size without `image_size`.

    >>> from jaxkd import data
    >>> examples = [{"image": np.full((8, 8), 20 * i, np.uint8), "label": i % 2} for i in range(10)]
    >>> dataset = data.from_examples({"train": examples, "test": examples[:4]})
    >>> dataset.num_classes, dataset.image_shape, len(dataset.splits["test"])
    (2, (8, 8, 1), 4)
    """
    if not hasattr(splits, "items"):
        raise TypeError(
            f'splits must be a mapping, such as {{"train": ..., "test": ...}}, got {type(splits).__name__}'
        )
    for key, source in splits.items():
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise TypeError(
                f"split {key!r} must have a length and give examples by index, got {type(source).__name__}; "
                "load it without streaming (Hugging Face: streaming=False)"
            )
        if not len(source):
            raise ValueError(f"split {key!r} must hold at least one example, got none")
        if not hasattr(one := source[0], "keys"):
            raise TypeError(
                f"examples must be mappings with an image and a label, got {type(one).__name__} in split "
                f'{key!r}; of pairs, make [{{"image": x, "label": y}} for x, y in pairs]'
            )
    if not splits:
        raise ValueError('splits must hold at least "train" or "test", got none')
    first = splits.get("train", next(iter(splits.values())))
    features = _features(first)
    image = image or _column(first, features, "Image", "image")
    label = label or _column(first, features, "ClassLabel", "label")
    looked_at = {key: [source[i] for i in evenly(len(source), _LOOKED_AT)] for key, source in splits.items()}
    channels, sizes = _look(looked_at.values(), image)
    if num_classes is None:
        num_classes = getattr(features.get(label), "num_classes", None)
    decoded = {key: Decoded(source, image, label, channels, num_classes) for key, source in splits.items()}
    if num_classes is None:
        labels = [_labels(source) for source in decoded.values()]
        # Hidden labels (-1) are those of a split that is not used.
        num_classes = count_classes([own for own in labels if own[0] >= 0] or labels)
    return assemble(
        Collection(
            name=name,
            parts={
                key: Part(source, _digest(source, looked_at[key], channels))
                for key, source in decoded.items()
            },
            num_classes=num_classes,
            image_shape=(*(sizes.pop() if len(sizes) == 1 else (None, None)), channels),
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
            augmentation=augmentation,
        ),
        ("train", "test") if "train" in splits else ("test",),
        image_size=image_size,
        resized_crop=resized_crop,
    )


def _features(source: Any) -> Mapping[str, Any]:
    """A source's column types, Hugging Face's or TFDS's, by name."""
    for holder in (source, getattr(source, "dataset_info", None)):
        if hasattr(found := getattr(holder, "features", None), "items"):
            return dict(found.items())  # type: ignore[union-attr]
    return {}


def _column(source: Any, features: Mapping[str, Any], kind: str, usual: str) -> str:
    """The column of a type, or of the usual name."""
    found = [key for key, feature in features.items() if type(feature).__name__ == kind]
    columns = list(features) or list(source[0])
    if usual in found or (not found and usual in columns):
        return usual
    if len(found) == 1:
        return found[0]
    what = f"{usual}="
    raise ValueError(
        f"say with {what} which column is the {usual}: {', '.join(found or columns)}"
        + ("" if found else f" (none of them is of type {kind} or called {usual})")
    )


def _look(splits: Any, image: str) -> tuple[int, set[tuple[int, int]]]:
    """Channels and sizes of some examples."""
    channels, sizes = 1, set()
    for examples in splits:
        for example in examples:
            try:
                picture = example[image]
                channels = max(channels, channels_of(picture))
            except KeyError:
                raise ValueError(f"an example has no {image!r}; it has {', '.join(example)}") from None
            except ValueError as error:
                raise ValueError(f"an image in column {image!r} {error}") from None
            shape = picture.size[::-1] if hasattr(picture, "convert") else np.shape(picture)[:2]
            sizes.add((int(shape[0]), int(shape[1])))
    return channels, sizes


def _labels(source: Decoded) -> np.ndarray:
    return np.array([source[i]["label"] for i in range(len(source))])


def _digest(source: Decoded, looked_at: Sequence[Any], channels: int) -> str:
    """Identifies a split: by the library's own fingerprint, or by its length and some examples."""
    if isinstance(own := getattr(source.source, "_fingerprint", None), str):
        return f"{own} {source.image} {source.label}"
    sha = hashlib.sha256(f"{len(source)} {channels}".encode())
    some = Decoded(looked_at, source.image, source.label, channels, source.num_classes)
    for i in range(len(some)):
        example = some[i]
        sha.update(f"{example['image'].shape} {example['label']}".encode())
        sha.update(np.ascontiguousarray(example["image"]).data)
    return sha.hexdigest()[:16]
