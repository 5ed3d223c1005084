"""From examples of any source to a dataset: its splits, its image size, in memory or streamed.

A `Collection` is the metadata known before an image is read; `assemble` turns it into a `Dataset`, by
the same rules for TensorFlow Datasets, image folders, archives and Python objects.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd._paths import cache_folder
from jaxkd.data.augment import Augmentation, CropFlip
from jaxkd.data.datasets import Dataset, Split, measure
from jaxkd.data.host_views import CentralCrop, RandomResizedCrop
from jaxkd.data.order import epoch_order
from jaxkd.data.pixels import as_pixels
from jaxkd.data.streaming import Arrays, Source, StreamedSplit
from jaxkd.files import whole

# A training split of up to this many bytes of pixels is held in memory, a larger one is streamed.
IN_MEMORY_BYTES = 1 << 30
# Without a test split, this fraction of the training examples is held out.
TEST_FRACTION = 0.2
HELD_OUT = "-holdout"  # ends the name of data without a part of their training images
TEST_NAMES = ("test", "validation", "val", "valid")
_MEASURED = 1024
_BLOCK = 4096  # number of examples read at a time, by threads


@dataclasses.dataclass(frozen=True)
class Part:
    """One split, unread.

    Attributes:
      source: the examples.
      digest: identifies them in a run's identity, if they are streamed.
      files: identifies the local files, for the cached decoded copy; None for no cache.
      nearby: opens a remote source for reading all of it; None for a local source.
    """

    source: Source
    digest: str
    files: str | None = None
    nearby: Callable[[], contextlib.AbstractContextManager[Source]] | None = None

    def opened(self) -> contextlib.AbstractContextManager[Source]:
        """The source, for reading all of it."""
        return contextlib.nullcontext(self.source) if self.nearby is None else self.nearby()

    def subset(self, ids: np.ndarray, name: str) -> Part:
        """Some of the examples."""

        @contextlib.contextmanager
        def nearby() -> Iterator[Source]:
            with self.opened() as source:
                yield Subset(source, ids)

        files = None if self.files is None else f"{self.files} {name}"
        return Part(Subset(self.source, ids), f"{self.digest} {name}", files, nearby if self.nearby else None)


@dataclasses.dataclass(frozen=True)
class Collection:
    """A dataset with unread examples.

    Attributes:
      name: for the record.
      parts: by the source's own names of splits.
      num_classes: how many labels there are, from 0.
      image_shape: height, width, channels; None for sides that differ from image to image.
      mean: of each channel of pixels in [0, 1]; None to measure it.
      std: standard deviation of each channel.
      augmentation: of training images at their own size; None for a padded crop without flips.
      resized_crop: whether ImageNet's recipe is the usual one.
      sizes: of the images, in words, for a message.
    """

    name: str
    parts: Mapping[str, Part]
    num_classes: int
    image_shape: tuple[int | None, int | None, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmentation: Augmentation | None = None
    resized_crop: bool = False
    sizes: str = ""


def assemble(
    collection: Collection,
    splits: Sequence[str] = ("train", "test"),
    *,
    image_size: int | None = None,
    resized_crop: bool = False,
) -> Dataset:
    """Makes a dataset with one image size and a test split, in memory if it is small.

    - "test" is the source's test split; or its validation split if there is no test split, or if the test
      labels are hidden (-1); otherwise a fifth of the training examples, drawn once.
    - Images of another size are resized, the shorter side first, and cropped to the central square.
    - A training split of up to 1 GiB of pixels is held in memory, with its test split; others are streamed.
    - Mean and standard deviation, unless given, are those of 1,024 evenly spaced training images.

    Args:
      collection: the source's examples.
      splits: which of "train" and "test" to make.
      image_size: height and width in pixels; by default that of the images.
      resized_crop: random resized crops in training and ImageNet's central crop in evaluation, on the host.

    Raises:
      ValueError: the images differ in size without `image_size`; or a label or an image is not valid.
    """
    parts = _train_and_test(collection)
    size = image_size or _own_size(collection, resized_crop)
    resized_crop = resized_crop or collection.resized_crop
    height, width, channels = collection.image_shape
    own = None if height is None or width is None else (height, width, channels)
    shape = own if size is None else (size, size, channels)
    assert shape is not None, "_own_size gives a size if there is none"
    view = CentralCrop(size, resize=size) if size is not None and shape != own else None
    small = len(parts.get("train", parts["test"]).source) * int(np.prod(shape)) <= IN_MEMORY_BYTES
    made: dict[str, Split | StreamedSplit] = {}
    for name in splits:
        part = _part(collection, parts, name)
        if resized_crop:
            made[name] = StreamedSplit(part.source, shape, part.digest, *_imagenet_views(shape[0]))
        elif small:
            made[name] = _read(part, shape, view, f"{collection.name}-{name}")
        else:
            source = part.source if view is None else Viewed(part.source, view)
            digest = part.digest if view is None else f"{part.digest} {view}"
            made[name] = StreamedSplit(source, shape, digest)
    mean, std = collection.mean, collection.std
    if mean is None or std is None:
        measured = _measured(parts, made, shape, view)
        mean, std = mean or measured[0], std or measured[1]
    augmentation = collection.augmentation
    if resized_crop:
        augmentation = CropFlip(padding=0, flip=False)  # cropped and flipped on the host
    elif augmentation is None:
        augmentation = CropFlip(padding=min(shape[:2]) // 8, flip=False)
    elif isinstance(augmentation, CropFlip) and own is not None and shape != own:
        augmentation = augmentation.changed(round(augmentation.padding * min(shape[:2]) / min(own[:2])), None)
    _tell_absent_classes(collection, made.get("train"))
    return Dataset(collection.name, made, collection.num_classes, mean, std, augmentation)


def hold_out(dataset: Dataset, fraction: float) -> Dataset:
    """Replaces the test split with a part of the training split.

    Args:
      dataset: with a training split, in memory or streamed.
      fraction: the fraction of the training examples, between 0 and 1; at least one is held out, and at least
        one remains.

    Returns:
      A dataset with the held-out examples as "test"; their choice depends only on the number of examples.

    Raises:
      ValueError: there is no training split, or it has fewer than two examples.

    >>> from jaxkd import data
    >>> digits = hold_out(data.load("digits"), 0.1)
    >>> len(digits.splits["train"]), len(digits.splits["test"])
    (1293, 144)
    """
    train = dataset.splits.get("train")
    if train is None or len(train) < 2:
        found = "it has no training split" if train is None else "its training split has one example"
        raise ValueError(f"no part of {dataset.name} can be held out: {found}")
    splits: dict[str, Split | StreamedSplit] = {}
    for name, ids in zip(("train", "test"), _two_parts(len(train), fraction), strict=True):
        if isinstance(train, Split):
            splits[name] = Split(train.images[ids], train.labels[ids])
        else:
            subset = Subset(train.source, ids)
            digest = f"{train.digest} {name} of {fraction}"
            splits[name] = dataclasses.replace(train, source=subset, digest=digest)
    return dataclasses.replace(dataset, name=f"{dataset.name}{HELD_OUT}", splits=splits)


def _two_parts(count: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """The ids that stay and those that are held out, in order."""
    held = min(max(round(count * fraction), 1), count - 1)
    order = epoch_order(count, seed=0, epoch=0)  # epochs of training begin with 1
    return np.sort(order[held:]), np.sort(order[:held])


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some examples of a source."""

    source: Source
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, example_id: int) -> Mapping[str, Any]:
        return self.source[int(self.ids[example_id])]


@dataclasses.dataclass(frozen=True)
class Viewed:
    """The examples of a source, their images resized."""

    source: Source
    view: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, example_id: int) -> Mapping[str, Any]:
        example = self.source[example_id]
        return {**example, "image": self.view(np.asarray(example["image"]))}


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The examples of a user's source: with keys "image" and "label", decoded pixels, and checked labels.

    Attributes:
      source: mappings by index.
      image: the key of the image.
      label: the key of the class number.
      channels: of all images.
      num_classes: bounds the class numbers; None if they are not known yet.
    """

    source: Any
    image: str
    label: str
    channels: int
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, example_id: int) -> Mapping[str, Any]:
        example = self.source[example_id]
        try:
            image = as_pixels(example[self.image], self.channels)
        except ValueError as error:
            raise ValueError(f"the image of example {example_id} {error}") from None
        label = example[self.label]
        if not isinstance(label, int | np.integer) or isinstance(label, bool):
            raise ValueError(
                f"the label of example {example_id} must be a class number from 0, got {label!r:.60}"
            )
        if label >= (2**31 if self.num_classes is None else self.num_classes):
            raise ValueError(
                f"the label of example {example_id} is {label}, and num_classes={self.num_classes} admits "
                f"0 to {(self.num_classes or 2**31) - 1}"
            )
        return {"image": image, "label": int(label)}


def evenly(count: int, most: int) -> list[int]:
    """At most so many ids, evenly spaced.

    >>> evenly(10, 3), evenly(2, 3)
    ([0, 4, 9], [0, 1])
    """
    return list(range(count)) if count <= most else [i * (count - 1) // (most - 1) for i in range(most)]


def _train_and_test(collection: Collection) -> dict[str, Part]:
    """The parts under the names that training gives them."""
    parts = dict(collection.parts)
    found = {"train": parts["train"]} if "train" in parts else {}
    tests = [parts[name] for name in TEST_NAMES if name in parts and len(parts[name].source)]
    labelled = (part for part in tests if int(part.source[0]["label"]) >= 0)
    if (test := next(labelled, tests[0] if tests else None)) is not None:
        return {**found, "test": test}
    if not found:
        raise ValueError(
            f"{collection.name} has the splits {', '.join(parts)}, and none called train or test"
        )
    train = found["train"]
    if len(train.source) < 2:
        raise ValueError(f"{collection.name} has no test split, and one example alone for training")
    logging.getLogger("jaxkd").warning(
        "%s has no test split: a fifth of its training images, always the same ones, is held out as one",
        collection.name,
    )
    both = {}
    for name, ids in zip(("train", "test"), _two_parts(len(train.source), TEST_FRACTION), strict=True):
        both[name] = train.subset(ids, name)
    return both


def _part(collection: Collection, parts: Mapping[str, Part], name: str) -> Part:
    if name not in parts:
        raise ValueError(
            f"{collection.name} has no split {name!r}; it has the splits {', '.join(collection.parts)}"
        )
    return parts[name]


def _own_size(collection: Collection, resized_crop: bool) -> int | None:
    """The default side that images are resized to; None for their own size."""
    height, width, _ = collection.image_shape
    if height is None or width is None:
        raise ValueError(
            f"the images of {collection.name} differ in size{collection.sizes}; give the height and width "
            "that they are resized to with --image-size (image_size=), such as 64 or 224"
        )
    if resized_crop and height != width:
        raise ValueError(
            f"resized crops are squares, and the images of {collection.name} are {height}x{width}; give "
            "--image-size (image_size=)"
        )
    return None


def _imagenet_views(size: int) -> tuple[RandomResizedCrop, CentralCrop]:
    return RandomResizedCrop(size), CentralCrop(size, resize=round(size * 256 / 224))


def _read(
    part: Part, shape: tuple[int, int, int], view: Callable[[np.ndarray], np.ndarray] | None, name: str
) -> Split:
    """All examples, or the copy of them that was kept."""
    if isinstance(part.source, Arrays) and view is None:
        return Split(part.source.images, part.source.labels)
    kept = None
    if part.files is not None:
        digest = hashlib.sha256(f"{part.files} {shape} {view}".encode()).hexdigest()[:16]
        kept = cache_folder() / "data" / f"{name.replace('/', '-')}-{digest}.npz"
        damage = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
        with contextlib.suppress(*damage), np.load(kept) as arrays:
            return Split(arrays["images"], arrays["labels"])
    images = np.empty((len(part.source), *shape), np.uint8)
    labels = np.empty(len(part.source), np.int64)
    with part.opened() as source:
        for index, (image, label) in enumerate(_examples(source, range(len(source)), shape, view)):
            images[index], labels[index] = image, label
    split = Split(images, labels)
    if kept is not None:  # a copy that cannot be written is done without
        with contextlib.suppress(OSError), whole.writing(kept) as file:
            np.savez(file, images=split.images, labels=split.labels)
    return split


def _examples(
    source: Source,
    ids: Sequence[int],
    shape: tuple[int, int, int],
    view: Callable[[np.ndarray], np.ndarray] | None,
) -> Iterator[tuple[np.ndarray, int]]:
    """Images of one shape and labels, read by threads, in order."""

    def read(example_id: int) -> tuple[np.ndarray, int]:
        example = source[example_id]
        image = np.asarray(example["image"])
        image = image if view is None else view(image)
        if image.shape != shape or image.dtype != np.uint8:
            raise ValueError(
                f"example {example_id} is {image.dtype} {list(image.shape)}, and others are "
                f"{list(shape)}; give one size with --image-size (image_size=)"
            )
        return image, int(example["label"])

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        remaining = iter(ids)
        while block := list(itertools.islice(remaining, _BLOCK)):
            yield from pool.map(read, block)


def _measured(
    parts: Mapping[str, Part],
    made: Mapping[str, Split | StreamedSplit],
    shape: tuple[int, int, int],
    view: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of some training images, the same ones whichever splits are read."""
    name = "train" if "train" in parts else "test"
    split = made.get(name)
    if isinstance(split, Split):
        return measure(split.images[evenly(len(split), _MEASURED)])
    source = parts[name].source
    found = _examples(source, evenly(len(source), _MEASURED), shape, view)
    return measure(np.stack([image for image, _ in found]))


def _tell_absent_classes(collection: Collection, train: Split | StreamedSplit | None) -> None:
    if not isinstance(train, Split):
        return
    counts = np.bincount(train.labels, minlength=collection.num_classes)
    absent = np.flatnonzero(counts[: collection.num_classes] == 0)
    if len(absent):
        shown = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        logging.getLogger("jaxkd").warning(
            "%d of the %d classes of %s have no training image: %s",
            len(absent), collection.num_classes, collection.name, shown,
        )  # fmt: skip


def files_digest(files: Sequence[Path]) -> str:
    """Identifies files on this machine: their paths, sizes and times."""
    found = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]
