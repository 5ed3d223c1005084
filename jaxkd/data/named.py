"""Datasets by name: digits, CIFAR, ImageNet, any of TensorFlow Datasets, folders and `.npz` files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxkd._names import unknown
from jaxkd.data.augment import CropFlip
from jaxkd.data.cifar import find_archive, read_archive
from jaxkd.data.collection import Collection, Part, assemble
from jaxkd.data.datasets import Dataset, Split, from_arrays
from jaxkd.data.folder import PREFIX, open_folder
from jaxkd.data.streaming import Arrays
from jaxkd.data.tfds_source import is_known, known_names, open_tfds
from jaxkd.files import npz
from jaxkd.files.places import is_remote, place


@dataclasses.dataclass(frozen=True)
class Facts:
    """Metadata of a dataset, known before its images are read; names and units as in `Dataset`."""

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: CropFlip
    resized_crop: bool = False


_CIFAR_CROP = CropFlip(padding=4, flip=True)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTS = {
    # A mirrored digit is another sign, and four of eight pixels are too many to lose.
    "digits": Facts((8, 8, 1), 10, (0.3054,), (0.3753,), CropFlip(padding=1, flip=False)),
    # The constants of the distillation literature's code.
    "cifar10": Facts((32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), _CIFAR_CROP),
    "cifar100": Facts((32, 32, 3), 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), _CIFAR_CROP),
    # Cropped and flipped on the host.
    "imagenet2012": Facts(
        (224, 224, 3), 1000, _IMAGENET_MEAN, _IMAGENET_STD, CropFlip(padding=0, flip=False), resized_crop=True
    ),
    # CIFAR's padding, an eighth of the side.
    "imagenet_resized/64x64": Facts(
        (64, 64, 3), 1000, _IMAGENET_MEAN, _IMAGENET_STD, CropFlip(padding=8, flip=True)
    ),
}


def without_version(name: str) -> str:
    """The name of a data set of TFDS without its version: cifar100 of cifar100:3.0.2."""
    return name.partition(":")[0]


def facts_of(name: str) -> Facts | None:
    """What is known of a data set before it is read; None if nothing."""
    return FACTS.get(without_version(name))


def names() -> tuple[str, ...]:
    """The built-in names; `load` also takes other TFDS names, folders and `.npz` files."""
    return tuple(FACTS)


def is_path(name: str) -> bool:
    """Whether a dataset's name is a folder or a file."""
    return name.startswith(PREFIX) or Path(name).suffix == ".npz"


def absolute(name: str) -> str:
    """A dataset's name, with an absolute path if it has a path.

    >>> absolute("cifar100"), absolute("folder:/data/../pets")
    ('cifar100', 'folder:/data/../pets')
    """
    if not is_path(name):
        return name
    if is_remote(name):
        return str(place(name))
    prefix = PREFIX if name.startswith(PREFIX) else ""
    return prefix + str(Path(name.removeprefix(PREFIX)).expanduser().absolute())


def short_name(name: str) -> str:
    """A dataset's name for use in a folder name.

    >>> [short_name(n) for n in ("cifar100", "a/mine.npz", "folder:/data/pets", "eurosat/rgb:2.0.0")]
    ['cifar100', 'mine', 'pets', 'eurosat-rgb-2.0.0']
    """
    if is_path(name):
        return Path(absolute(name).removeprefix(PREFIX)).stem
    return name.replace("/", "-").replace(":", "-")


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    splits: Sequence[str] = ("train", "test"),
    image_size: int | None = None,
    resized_crop: bool = False,
) -> Dataset:
    """Loads a dataset.

    Args:
      name: "digits" (needs no file and no network), "cifar10", "cifar100", "imagenet2012",
        "imagenet_resized/64x64"; any other TensorFlow Datasets image classification dataset, such as
        "svhn_cropped" or "eurosat/rgb"; "folder:PATH", with one folder of images per class (see
        `jaxkd.data.folder`); or the path of an `.npz` file with the arrays `train_images`, `train_labels`,
        `test_images`, `test_labels` and, optionally, the number `num_classes`.
      data_dir: the folder of prepared TFDS datasets, by default TFDS's own (`~/tensorflow_datasets`); for
        CIFAR also a folder with one of the authors' archives.
      splits: which of "train" and "test" to read.
      image_size: height and width in pixels; images of another size are resized and cropped.
      resized_crop: ImageNet's recipe, as for `imagenet2012`: random resized crops in training, on the host;
        the central crop in evaluation.

    Returns:
      The dataset, in memory if its training images take at most 1 GiB, otherwise streamed; see
      `jaxkd.data.collection.assemble` for all rules.

    Raises:
      ValueError: the name is unknown, the images differ in size, or a file does not fit.
      FileNotFoundError: the data do not exist and could not be downloaded.

    >>> from jaxkd import data
    >>> digits = data.load("digits")
    >>> len(digits.splits["train"]), len(digits.splits["test"]), digits.image_shape, digits.num_classes
    (1437, 360, (8, 8, 1), 10)
    >>> data.load("digits", image_size=32).image_shape
    (32, 32, 1)
    """
    return assemble(_open(name, data_dir), splits, image_size=image_size, resized_crop=resized_crop)


def require_known(name: str, data_dir: str | Path | None = None) -> None:
    """Raises ValueError unless `load` accepts a name, without reading images."""
    if name in FACTS or is_path(name) or is_known(name, data_dir):
        return
    others = known_names()
    also = f", folder:PATH, an .npz file, or any of the {len(others)} names of TensorFlow Datasets"
    raise unknown("data set", name, [*FACTS, *others], shown=FACTS, also=also)


def _open(name: str, data_dir: str | Path | None) -> Collection:
    if name.startswith(PREFIX):
        return open_folder(name.removeprefix(PREFIX))
    if Path(name).suffix == ".npz":
        return _open_npz(place(name))
    if name == "digits":
        parts = _digits()
    elif found := find_archive(name, data_dir):
        parts = {split: Part(source, found[1].md5) for split, source in read_archive(*found).items()}
    else:
        try:
            opened = open_tfds(name, data_dir)
        except ValueError:
            require_known(name, data_dir)
            raise
        if facts_of(name) is None:
            return opened
        parts = dict(opened.parts)
    known = facts_of(name)
    assert known is not None
    return Collection(
        name, parts, known.num_classes, known.image_shape, known.mean, known.std, known.augmentation,
        known.resized_crop,
    )  # fmt: skip


def _digits() -> dict[str, Part]:
    """The 1,797 handwritten digits of scikit-learn; the last fifth, in its order, is the test set."""
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    cut = len(images) * 4 // 5
    return {
        "train": Part(Arrays(images[:cut], labels[:cut]), "digits"),
        "test": Part(Arrays(images[cut:], labels[cut:]), "digits"),
    }


def _open_npz(path: Path) -> Collection:
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; name an .npz file that exists, or one of {', '.join(names())}"
        )
    arrays = npz.read(path)
    wanted = [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]
    if missing := [key for key in wanted if key not in arrays]:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}; it holds {', '.join(arrays)}")
    train, test = ((arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    try:
        num_classes = int(arrays["num_classes"]) if "num_classes" in arrays else None
        dataset = from_arrays(train, test, num_classes=num_classes, name=path.name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return of_dataset(dataset)


def of_dataset(dataset: Dataset) -> Collection:
    """An in-memory dataset as a collection, to be resized."""
    parts = {
        name: Part(Arrays(split.images, split.labels), dataset.digest)
        for name, split in dataset.splits.items()
        if isinstance(split, Split)
    }
    return Collection(
        dataset.name, parts, dataset.num_classes, dataset.image_shape, dataset.mean, dataset.std,
        dataset.augmentation,
    )  # fmt: skip
