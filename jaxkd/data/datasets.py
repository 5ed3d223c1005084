"""A dataset for training: uint8 images of one size, class numbers, and their metadata."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxkd._names import describe_object
from jaxkd.data.augment import Augmentation, CropFlip
from jaxkd.data.pixels import not_uint8
from jaxkd.data.streaming import StreamedSplit


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, uint8 `[N, H, W, C]`, and their labels, int32 `[N]`; an example's id is its index."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(not_uint8(self.images.dtype, self.images.shape))
        if self.images.shape[3] not in (1, 3, 4) and self.images.shape[1] in (1, 3, 4):
            raise ValueError(
                f"images must be [N, H, W, C], and {list(self.images.shape)} looks like [N, C, H, W]; "
                "convert it with images.transpose(0, 2, 3, 1)"
            )
        if self.labels.shape != self.images.shape[:1] or not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(
                f"labels must be integers [{len(self.images)}], one for each image, "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if not len(self.labels):
            raise ValueError("a split must hold at least one example, got none")
        if int(self.labels.max()) >= 2**31 or int(self.labels.min()) < 0:
            raise ValueError(
                f"labels must be class numbers from 0, got {self.labels.min()} to {self.labels.max()}"
            )
        # JAX supports neither other byte orders nor more than 32 bits.
        object.__setattr__(self, "labels", self.labels.astype(np.int32))

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of every pixel: labels are left out, since a teacher does not see them."""
        sha = hashlib.sha256(repr(self.images.shape).encode())
        sha.update(np.ascontiguousarray(self.images).data)
        return sha.hexdigest()[:16]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def labels_of(self, ids: Sequence[int]) -> list[int]:
        """The labels of some examples."""
        return [int(self.labels[example_id]) for example_id in ids]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset with its metadata for training.

    Attributes:
      name: for the record.
      splits: "train" and "test" (only the requested ones), in memory or streamed.
      num_classes: number of classes; labels start at 0.
      mean: mean of each channel, for pixels in [0, 1].
      std: standard deviation of each channel.
      augmentation: for training images, unless a run sets another one.
    """

    name: str
    splits: Mapping[str, Split | StreamedSplit]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    def __post_init__(self) -> None:
        shapes = {name: split.image_shape for name, split in self.splits.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{self.name}: images must have one size in all splits, got {shapes}")
        for name, split in self.splits.items():
            if isinstance(split, Split):
                low, high = int(split.labels.min()), int(split.labels.max())
                if low < 0 or high >= self.num_classes:
                    raise ValueError(
                        f"{self.name}: labels of split {name!r} reach from {low} to {high}, "
                        f"but num_classes={self.num_classes} admits 0 to {self.num_classes - 1}"
                    )
            channels = split.image_shape[-1]
            if not len(self.mean) == len(self.std) == channels:
                raise ValueError(
                    f"{self.name}: mean and std need one value for each of {channels} channels, "
                    f"got {self.mean} and {self.std}"
                )
            if not all(
                0 <= mean <= 1 and 0 < std <= 1 for mean, std in zip(self.mean, self.std, strict=True)
            ):
                raise ValueError(
                    f"{self.name}: mean and std must be those of pixels in [0, 1], got {self.mean} and "
                    f"{self.std}; divide those of pixels up to 255 by 255"
                )
        # The digest hashes their text, and NumPy's numbers have another one than Python's.
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        bounded = {name: self._bounded(split) for name, split in self.splits.items()}
        object.__setattr__(self, "splits", bounded)

    def _bounded(self, split: Split | StreamedSplit) -> Split | StreamedSplit:
        """A split whose labels are held against the number of classes as they are read."""
        if isinstance(split, Split):
            return split
        own = copy.copy(split)
        object.__setattr__(own, "num_classes", self.num_classes)
        return own

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return next(iter(self.splits.values())).image_shape

    @functools.cached_property
    def digest(self) -> str:
        """A hash of every pixel, every label and their processing, which identifies the dataset.

        For a streamed split it uses the split's own digest and its views.
        """
        own = (self.num_classes, self.mean, self.std, self.augmentation)
        sha = hashlib.sha256(describe_object(own).encode())
        for name, split in sorted(self.splits.items()):
            if isinstance(split, StreamedSplit):
                views = describe_object(split.train_view), describe_object(split.eval_view)
                sha.update(" ".join((name, split.digest, *views)).encode())
                continue
            sha.update(f"{name} {split.images.shape}".encode())
            sha.update(np.ascontiguousarray(split.images).data)
            sha.update(split.labels.astype(np.int64).tobytes())
        return sha.hexdigest()[:16]


def from_arrays(
    train: tuple[np.ndarray, np.ndarray] | None,
    test: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a dataset from arrays.

    Args:
      train: images, uint8 `[N, H, W, C]`, and labels `[N]`; None if only evaluation is wanted.
      test: the same for the test split.
      num_classes: by default the largest label plus one, and then every smaller class must have an example.
      mean: mean of each channel of pixels in [0, 1]; by default that of the training images.
      std: standard deviation of each channel.
      augmentation: for training images; by default none.
      name: for the record.

    Raises:
      ValueError: the arrays do not fit; or labels start at 1 or have gaps, and `num_classes` is not given.

    >>> import numpy as np
    >>> from jaxkd import data
    >>> images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 1])
    >>> data.from_arrays((images, labels), (images, labels), mean=(0.5,) * 3, std=(0.2,) * 3).num_classes
    3
    """
    pairs = {"test": test} if train is None else {"train": train, "test": test}
    splits = {key: Split(np.asarray(x), np.asarray(y)) for key, (x, y) in pairs.items()}
    if mean is None or std is None:
        measured = measure(next(iter(splits.values())).images)
        mean = measured[0] if mean is None else mean
        std = measured[1] if std is None else std
    return Dataset(
        name=name,
        splits=splits,
        num_classes=num_classes or count_classes([split.labels for split in splits.values()]),
        mean=tuple(mean),
        std=tuple(std),
        augmentation=augmentation or CropFlip(padding=0, flip=False),
    )


def count_classes(labels: Sequence[np.ndarray]) -> int:
    """The number of classes in the labels of all splits: the largest label plus one.

    Raises:
      ValueError: a label is negative; or a smaller class has no example, for example if labels start at 1.

    >>> count_classes([np.array([0, 2]), np.array([1])])
    3
    """
    found = np.unique(np.concatenate(labels))
    if found[0] < 0:
        raise ValueError(f"labels must be class numbers from 0, got {found[0]}")
    count = int(found[-1]) + 1
    if len(found) == count:
        return count
    if len(found) == count - found[0]:
        raise ValueError(
            f"labels reach from {found[0]} to {found[-1]}, and class numbers begin with 0: pass labels - "
            f"{found[0]}; or, if smaller classes exist and have no example, say num_classes={count}"
        )
    absent = np.setdiff1d(np.arange(min(count, int(found[0]) + len(found) + 5)), found)[:5]
    raise ValueError(
        f"labels reach from {found[0]} to {found[-1]} and have gaps, such as "
        f"{', '.join(map(str, absent))}: number the {len(found)} classes with numpy.unique(labels, "
        "return_inverse=True)[1], over all splits together; or, if those classes exist and have no example, "
        f"say num_classes={count}"
    )


def measure(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of pixels in [0, 1], uint8 `[N, H, W, C]`.

    >>> measure(np.full((2, 4, 4, 1), 51, np.uint8))
    ((0.2,), (0.0039,))
    """
    values, means, deviations = np.arange(256), [], []
    for channel in range(images.shape[-1]):
        # From counts: a mean in floating point would need eight times the images' memory.
        parts = (images[start : start + 256, ..., channel] for start in range(0, len(images), 256))
        counts = sum(np.bincount(part.ravel(), minlength=256) for part in parts)
        mean = np.average(values, weights=counts)
        std = np.average((values - mean) ** 2, weights=counts) ** 0.5
        means.append(round(float(mean) / 255, 4))
        deviations.append(round(max(float(std), 1.0) / 255, 4))
    return tuple(means), tuple(deviations)
