"""Options of the data, and the dataset that they name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxkd.data.augment import Augmentation, CropFlip
from jaxkd.data.collection import hold_out
from jaxkd.data.datasets import Dataset
from jaxkd.data.named import absolute, is_path, load, short_name, without_version
from jaxkd.options import Options, option

_EPOCHS = {"digits": 10, "cifar10": 240, "cifar100": 240, "imagenet2012": 100, "imagenet_resized/64x64": 100}
_EPOCHS_ELSEWHERE = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Images"""

    data: str = option(default="digits", main=True)
    """Dataset: digits (no download), cifar10, cifar100, imagenet2012; any other TensorFlow Datasets image
    classification dataset by name, such as svhn_cropped; folder:PATH, with one folder of PNG or JPEG images
    per class; or the path of an .npz file with train_images, train_labels, test_images, test_labels."""
    data_dir: Path | None = option(default=None, free=True)
    """Folder of prepared TensorFlow Datasets (array_record), or of CIFAR's own archive. Default:
    ~/tensorflow_datasets."""
    image_size: int | None = None
    """Resize images to this height and width, in pixels. Default: their own size."""
    resized_crop: bool = False
    """Random resized crops in training and a central crop in evaluation, as for imagenet2012."""
    crop_padding: int | None = None
    """Pixels of zero padding before the random crop. Default: the dataset's (CIFAR 4, digits 1)."""
    flip: bool | None = None
    """Random horizontal flips. Default: the dataset's (CIFAR yes, digits no)."""
    holdout: float | None = None
    """Fraction of the training images to hold out for validation, in place of the test split. Every seed
    holds out the same images. Default: none."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(0, "crop_padding")
        self.require(1, "image_size")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise ValueError(f"--holdout must be between 0 and 1, such as 0.1, got {self.holdout}")
        if self.data_dir is not None and (self.data == "digits" or is_path(self.data)):
            raise ValueError(
                f"--data-dir is for TensorFlow Datasets, but --data {self.data} is not one of them; leave "
                "out one of the two options"
            )

    def as_dict(self) -> dict[str, object]:
        """See `Options`; a file or folder of images has an absolute path."""
        return {**super().as_dict(), "data": absolute(self.data)}

    @property
    def default_epochs(self) -> int:
        """The number of epochs in the dataset's recipe."""
        return _EPOCHS.get(without_version(self.data), _EPOCHS_ELSEWHERE)

    def load(self, splits: Sequence[str] = ("train", "test"), *, given: Dataset | None = None) -> Dataset:
        """The dataset, or one that is given in its place; with its part for validation held out.

        Args:
          splits: what to read.
          given: a dataset as an object.

        Raises:
          ValueError: there is no such dataset, or an option of reading comes with an object.
        """
        of_reading = {"data_dir": None, "image_size": None, "resized_crop": False}
        if given and (
            without := [name for name, default in of_reading.items() if getattr(self, name) != default]
        ):
            raise ValueError(
                f"{', '.join(without)}: only for data that are read by name, and data= is a Dataset; give "
                "them to the function that makes it (data.load, data.from_examples)"
            )
        dataset = given or load(
            self.data,
            data_dir=self.data_dir,
            splits=splits,
            image_size=self.image_size,
            resized_crop=self.resized_crop,
        )
        return dataset if self.holdout is None else hold_out(dataset, self.holdout)

    @property
    def short_data(self) -> str:
        """The dataset's name in a folder name."""
        return short_name(self.data)

    def augmentation(self, dataset: Dataset) -> Augmentation:
        """The dataset's augmentation, changed by the options."""
        own = dataset.augmentation
        if self.crop_padding is None and self.flip is None:
            return own
        if not isinstance(own, CropFlip):
            raise ValueError(
                f"--crop-padding and --flip change a CropFlip, but {dataset.name} has {own}; leave them out"
            )
        return own.changed(self.crop_padding, self.flip)
