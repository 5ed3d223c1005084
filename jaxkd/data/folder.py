"""Images in folders, one folder per class: the layout of torchvision's `ImageFolder`::

    PATH/train/CLASS/*.png    PATH/test/CLASS/*.jpg      (test, validation, val or valid)
    PATH/CLASS/*.png                                     (a fifth is held out as the test split)

Classes are numbered in the alphabetical order of their folders, as torchvision does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxkd.data.collection import TEST_NAMES, Collection, Part, evenly, files_digest
from jaxkd.data.pixels import SIXTEEN_BITS, as_pixels, channels_of
from jaxkd.files.places import is_remote

PREFIX = "folder:"
_ENDINGS = (".png", ".jpg", ".jpeg")
_OTHER_PICTURES = (".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".heic", ".avif", ".jp2", ".npy")
_LOOKED_AT = 1024
# PNG files: the first bytes, and the position of the bit depth.
_PNG, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24


def open_folder(path: str | Path) -> Collection:
    """The contents of an image folder; pixels are not read.

    Args:
      path: the folder.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it does not have the layout above, or contains images that are not PNG or JPEG.
    """
    if is_remote(path):
        raise ValueError(
            f"a folder of pictures must lie on this machine, got {path}: copy it (gcloud storage rsync), or "
            "prepare it as a set of TensorFlow Datasets, which is read from a bucket"
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; name one that holds a folder of pictures for each class")
    named = {name: root / name for name in ("train", *TEST_NAMES) if (root / name).is_dir()}
    if named and "train" not in named:
        raise ValueError(f"{root} has {', '.join(named)} and no train; put the training images there")
    folders = named if "train" in named else {"train": root}
    classes = _classes(folders["train"])
    files = {name: _files(folder, classes) for name, folder in folders.items()}
    pictures = {name: Pictures(tuple(found), 3) for name, found in files.items()}
    channels, sides, sizes = _look(pictures["train"])
    return Collection(
        name=root.resolve().name,
        parts={
            name: Part(
                dataclasses.replace(each, channels=channels),
                digest := _digest(each, folders[name]),
                f"{files_digest([path for path, _ in each.files])} {digest}",  # the classes' numbers too
            )
            for name, each in pictures.items()
        },
        num_classes=len(classes),
        image_shape=(*sides, channels),
        sizes=sizes,
    )


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Files and their classes as examples.

    Attributes:
      files: paths and class numbers.
      channels: of all images: 1 for grey, 3 for colour.
    """

    files: tuple[tuple[Path, int], ...]
    channels: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, example_id: int) -> Mapping[str, Any]:
        path, label = self.files[example_id]
        return {"image": read_picture(path, self.channels), "label": label}


def read_picture(path: Path, channels: int) -> np.ndarray:
    """The pixels of a PNG or JPEG file, uint8 `[H, W, C]`, rotated according to the EXIF tag.

    Raises:
      ValueError: it is another kind of file, damaged, has 16 bits, or is in colour although `channels` is 1.
    """
    with _opened(path) as picture:
        try:
            return as_pixels(ImageOps.exif_transpose(picture), channels)
        except (OSError, SyntaxError) as error:  # Pillow's for a broken PNG
            raise ValueError(f"{path} is damaged ({error}); replace or remove it") from None
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None


def _opened(path: Path) -> Image.Image:
    """An image with its header read; refuses 16 bits, which Pillow would silently cut to 8."""
    with path.open("rb") as file:
        head = file.read(_PNG_DEPTH + 1)
    if head.startswith(_PNG) and head[_PNG_DEPTH:] == b"\x10":
        raise ValueError(f"{path} {SIXTEEN_BITS}")
    try:
        return Image.open(path, formats=("PNG", "JPEG"))
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as PNG or JPEG ({error}); replace or remove it") from None


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes(folder: Path) -> list[str]:
    names = _names(folder)
    if len(names) < 2:
        raise ValueError(
            f"{folder} must hold a folder of pictures for each class, two at least, and it holds "
            f"{', '.join(names) or 'none'}"
        )
    if all(name.isdigit() for name in names) and names != sorted(names, key=int):
        logging.getLogger("jaxkd").warning(
            "classes are numbered in alphabetical order, so %s is class %d; pad the folders' names with "
            "zeros for the order of numbers",
            names[-1], len(names) - 1,
        )  # fmt: skip
    return names


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """The pictures below a split's folder, in order, with their class numbers."""
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := [name for name in _names(folder) if name not in numbers]:
        raise ValueError(f"{folder} has classes that the training images have not: {', '.join(unknown[:8])}")
    found, others = [], []
    for name in _names(folder):
        for path in sorted(_visible(folder / name)):
            if path.suffix.lower() in _ENDINGS:
                found.append((path, numbers[name]))
            elif path.suffix.lower() in _OTHER_PICTURES:
                others.append(path)
    if others:
        raise ValueError(
            f"{folder} holds {len(others)} pictures that are not PNG or JPEG, such as {others[0]}; convert "
            "or remove them"
        )
    if not found:
        raise ValueError(f"{folder} holds no {', '.join(_ENDINGS)} file in a class's folder")
    return found


def _visible(folder: Path) -> Iterator[Path]:
    """The files below a folder, links followed; hidden ones and those in hidden folders are left out."""
    for place, folders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(one) for one in (Path(place), *Path(place).parents)}
        folders[:] = [
            name
            for name in folders
            # A link to a folder that it lies in would have no end.
            if not name.startswith(".") and os.path.realpath(Path(place, name)) not in above
        ]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _look(pictures: Pictures) -> tuple[int, tuple[int | None, int | None], str]:
    """Channels, height and width by the headers of some files; sizes in words if they differ."""
    channels, sizes = 1, set()
    for example_id in evenly(len(pictures), _LOOKED_AT):
        path, _ = pictures.files[example_id]
        with _opened(path) as picture:
            try:
                channels = max(channels, channels_of(picture))
            except ValueError as error:
                raise ValueError(f"{path} {error}") from None
            width, height = picture.size
            # The camera was held upright.  (Of a PNG file, to ask would be to read it all.)
            turned = picture.format == "JPEG" and picture.getexif().get(0x0112, 1) >= 5
            sizes.add((width, height) if turned else (height, width))
    if len(sizes) == 1:
        return channels, sizes.pop(), ""
    heights, widths = zip(*sizes, strict=True)
    return (
        channels,
        (None, None),
        f" (from {min(heights)} to {max(heights)} high, {min(widths)} to {max(widths)} wide)",
    )


def _digest(pictures: Pictures, root: Path) -> str:
    """Identifies the files independently of the folder's path: relative names, classes and sizes."""
    facts = [(str(path.relative_to(root)), label, path.stat().st_size) for path, label in pictures.files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
