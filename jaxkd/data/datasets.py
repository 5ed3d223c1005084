"""Data sets by name: digits (shipped with scikit-learn), CIFAR and ImageNet through TFDS, or any arrays."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxkd._names import unknown
from jaxkd.data.augment import Augmentation, CropFlip
from jaxkd.data.host_views import CentralCrop, RandomResizedCrop
from jaxkd.data.order import epoch_order
from jaxkd.data.streaming import StreamedSplit
from jaxkd.data.tfds_source import open_tfds, read_tfds
from jaxkd.files import npz
from jaxkd.files.places import place


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, uint8 `[N, H, W, C]`, and their labels, int32 `[N]`; an example's id is its index."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 [N, H, W, C], got {self.images.dtype} {list(self.images.shape)}; "
                "convert pixels in [0, 1] with (255 * images).round().astype('uint8')"
            )
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
        # JAX knows neither another byte order nor a type of more than 32 bits.
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
    """A data set with what training has to know about it.

    Attributes:
      name: for the record.
      splits: "train" and "test" (only those that were asked for), in memory or streamed.
      num_classes: how many labels there are, from 0.
      mean: of each channel, of pixels in [0, 1].
      std: of each channel, likewise.
      augmentation: of training images, unless a run names another one.
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return next(iter(self.splits.values())).image_shape

    @functools.cached_property
    def digest(self) -> str:
        """A hash of every pixel and label and of what is done with them, to tell data sets apart.

        Of a streamed split it takes the split's own digest and its views.
        """
        sha = hashlib.sha256(repr((self.num_classes, self.mean, self.std, self.augmentation)).encode())
        for name, split in sorted(self.splits.items()):
            if isinstance(split, StreamedSplit):
                sha.update(f"{name} {split.digest} {split.train_view} {split.eval_view}".encode())
                continue
            sha.update(f"{name} {split.images.shape}".encode())
            sha.update(split.images.tobytes())
            sha.update(split.labels.astype(np.int64).tobytes())
        return sha.hexdigest()[:16]


def names() -> tuple[str, ...]:
    """The names that `load` accepts, besides paths of `.npz` files."""
    return tuple(_LOADERS)


def load(
    name: str, *, data_dir: str | Path | None = None, splits: Sequence[str] = ("train", "test")
) -> Dataset:
    """Loads a data set.

    Args:
      name: "digits" (needs no file and no network), "cifar10", "cifar100", "imagenet2012",
        "imagenet_resized/64x64", or the path of an `.npz` file with the arrays `train_images`,
        `train_labels`, `test_images` and `test_labels`.
      data_dir: for CIFAR and ImageNet, the TFDS folder; by default TFDS's own (`~/tensorflow_datasets`).
      splits: which splits to read.

    Returns:
      The data set, in memory; ImageNet streamed, with its validation split as "test".

    Raises:
      ValueError: the name is unknown, or the arrays do not fit.
      FileNotFoundError: the data are not there and could not be downloaded.

    >>> from jaxkd import data
    >>> digits = data.load("digits")
    >>> len(digits.splits["train"]), len(digits.splits["test"]), digits.image_shape, digits.num_classes
    (1437, 360, (8, 8, 1), 10)
    """
    require_known(name)
    return _LOADERS[name](data_dir, splits) if name in _LOADERS else _load_npz(place(name), splits)


def require_known(name: str) -> None:
    """Raises ValueError unless `load` accepts a name, without reading anything."""
    if name not in _LOADERS and Path(name).suffix != ".npz":
        raise unknown("data set", name, _LOADERS, also=", or an .npz file")


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
    """Makes a data set of arrays.

    Args:
      train: images, uint8 `[N, H, W, C]`, and labels `[N]`; None if only evaluation is wanted.
      test: the same for the test split.
      num_classes: by default the largest label plus one.
      mean: of each channel of pixels in [0, 1]; by default that of the training images.
      std: likewise.
      augmentation: of training images; by default none.
      name: for the record.

    >>> import numpy as np
    >>> from jaxkd import data
    >>> images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 1])
    >>> data.from_arrays((images, labels), (images, labels), mean=(0.5,) * 3, std=(0.2,) * 3).num_classes
    3
    """
    pairs = {"test": test} if train is None else {"train": train, "test": test}
    splits = {key: Split(np.asarray(x), np.asarray(y)) for key, (x, y) in pairs.items()}
    measured = next(iter(splits.values())).images
    return Dataset(
        name=name,
        splits=splits,
        num_classes=num_classes or 1 + max(int(split.labels.max()) for split in splits.values()),
        mean=_channels(measured.mean((0, 1, 2)) / 255) if mean is None else tuple(mean),
        std=_channels(np.maximum(measured.std((0, 1, 2)), 1) / 255) if std is None else tuple(std),
        augmentation=augmentation or CropFlip(padding=0, flip=False),
    )


def hold_out(dataset: Dataset, fraction: float) -> Dataset:
    """Takes a part of the training split in place of the test split.

    Args:
      dataset: with a training split in memory.
      fraction: of the training examples, between 0 and 1; at least one is held out, and at least one is left.

    Returns:
      A data set whose "test" are the held out examples; which ones depends on their number alone.

    Raises:
      ValueError: the training split is streamed, or has fewer than two examples.

    >>> from jaxkd import data
    >>> digits = hold_out(data.load("digits"), 0.1)
    >>> len(digits.splits["train"]), len(digits.splits["test"])
    (1293, 144)
    """
    train = dataset.splits["train"]
    if isinstance(train, StreamedSplit) or len(train) < 2:
        raise ValueError(
            f"no part of {dataset.name} can be held out: its training split is streamed or has one example"
        )
    count = min(max(round(len(train) * fraction), 1), len(train) - 1)
    order = epoch_order(len(train), seed=0, epoch=0)  # epochs of training begin with 1
    parts = {"train": np.sort(order[count:]), "test": np.sort(order[:count])}
    splits = {name: Split(train.images[ids], train.labels[ids]) for name, ids in parts.items()}
    return dataclasses.replace(dataset, name=f"{dataset.name}-holdout", splits=splits)


def _channels(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def _load_npz(path: Path, splits: Sequence[str]) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; name an .npz file that exists, or one of {', '.join(names())}"
        )
    arrays = npz.read(path)
    wanted = [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]
    if missing := [key for key in wanted if key not in arrays]:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}; it holds {', '.join(arrays)}")
    # Both splits are read whatever is asked for: the classes and the normalisation rest on them.
    train, test = ((arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    whole = from_arrays(train, test, name=path.name)
    return dataclasses.replace(whole, splits={name: whole.splits[name] for name in splits})


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a data set before its images are read; names and units as in `Dataset`."""

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: CropFlip


FACTS = {
    # A mirrored digit is another sign, and four of eight pixels are too many to lose.
    "digits": Facts((8, 8, 1), 10, (0.3054,), (0.3753,), CropFlip(padding=1, flip=False)),
    # The constants of the distillation literature's code.
    "cifar10": Facts(
        (32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), CropFlip(padding=4, flip=True)
    ),
    "cifar100": Facts(
        (32, 32, 3), 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), CropFlip(padding=4, flip=True)
    ),
}


# ImageNet, streamed: views on the host for training and for evaluation.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STREAMED: dict[str, tuple[RandomResizedCrop | None, CentralCrop | None]] = {
    "imagenet2012": (RandomResizedCrop(224), CentralCrop(224, resize=256)),
    "imagenet_resized/64x64": (None, None),
}
FACTS |= {
    # Cropped and mirrored on the host.
    "imagenet2012": Facts(
        (224, 224, 3), 1000, _IMAGENET_MEAN, _IMAGENET_STD, CropFlip(padding=0, flip=False)
    ),
    # CIFAR's padding, an eighth of the side.
    "imagenet_resized/64x64": Facts(
        (64, 64, 3), 1000, _IMAGENET_MEAN, _IMAGENET_STD, CropFlip(padding=8, flip=True)
    ),
}


def _known(name: str, parts: Mapping[str, Split | StreamedSplit]) -> Dataset:
    facts = FACTS[name]
    return Dataset(name, parts, facts.num_classes, facts.mean, facts.std, facts.augmentation)


def _load_digits(_: str | Path | None, splits: Sequence[str]) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn; the last fifth, in its order, is the test set."""
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    cut = len(images) * 4 // 5
    parts = {"train": Split(images[:cut], labels[:cut]), "test": Split(images[cut:], labels[cut:])}
    return _known("digits", {name: parts[name] for name in splits})


def _load_cifar(name: str, data_dir: str | Path | None, splits: Sequence[str]) -> Dataset:
    return _known(name, {split: Split(*read_tfds(name, split, data_dir)) for split in splits})


def _load_streamed(name: str, data_dir: str | Path | None, splits: Sequence[str]) -> Dataset:
    parts = {}
    for split in splits:
        source, digest = open_tfds(name, "validation" if split == "test" else split, data_dir)
        train_view, eval_view = _STREAMED[name]
        parts[split] = StreamedSplit(source, FACTS[name].image_shape, digest, train_view, eval_view)
    return _known(name, parts)


_LOADERS: dict[str, Callable[[str | Path | None, Sequence[str]], Dataset]] = {
    "digits": _load_digits,
    **{name: functools.partial(_load_cifar, name) for name in ("cifar10", "cifar100")},
    **{name: functools.partial(_load_streamed, name) for name in _STREAMED},
}
