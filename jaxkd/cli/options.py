"""Options of the commands that are not runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from jaxkd.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Evaluate a trained network on every example of a split."""

    teacher: Positional[str]
    """The folder of a teacher, or of a run, or a name in the zoo."""
    data: str | None = None
    """Dataset, as for training. Default: the one that the network was trained on."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets (array_record), or of CIFAR's own archive."""
    image_size: int | None = None
    """Resize images to this height and width, in pixels. Default: the network's training size."""
    resized_crop: bool | None = None
    """ImageNet's central crop, as for training. Default: the run's setting."""
    split: Literal["test", "train"] = "test"
    """Split to evaluate."""
    batch_size: int = 256
    """Images per step, over all devices."""
    devices: int | None = None
    """Number of local devices. Default: all."""

    def check(self) -> None:
        """See `Options`."""
        self.require(1, "batch_size", "devices", "image_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig(Options):
    """Import PyTorch weights or a Flax checkpoint as a teacher, and evaluate it if the dataset is prepared.

    Nothing in the file is executed, and PyTorch is not needed. A file written by `jaxkd export`, or by timm
    with its config.json, describes itself; any other file needs --model, and --data if it was not trained on
    CIFAR-100.
    """

    file: Positional[Path]
    """.pt, .pth, .th, .safetensors, .npz, or hf:OWNER/NAME on the Hugging Face Hub; parameter names of
    RepDistiller, mdistiller, the ResNets of pytorch-cifar-models and pytorch_resnet_cifar10, or, for
    imagenet_resnet*, torchvision and timm. Or the folder of an Orbax checkpoint."""
    model: str | None = None
    """Architecture, such as resnet56; `jaxkd models` lists them."""
    shortcut: Literal["A", "B"] | None = None
    """For CIFAR ResNets: A, without weights, as in the original; B, with projections, as in the distillation
    literature. Default: B."""
    rename: Annotated[tuple[str, ...], UseAppendAction] = ()
    """OLD=NEW: replace OLD with NEW in the parameter names of the file; may be repeated."""
    prefix: str | None = None
    """Prefix of the network's parameter names, if the file holds several networks."""
    data: str | None = None
    """Dataset that the network was trained on, as for training: it sets the number of classes, and the
    network is evaluated on it. Default: cifar100."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets (array_record), or of CIFAR's own archive."""
    image_size: int | None = None
    """Height and width of the network's images, in pixels. Default: the dataset's."""
    resized_crop: bool = False
    """ImageNet's central crop in the evaluation, as for training."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel for input normalisation. Default: the dataset's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel for input normalisation. Default: the dataset's."""
    out: Path | None = None
    """Output folder. Default: a folder in the zoo (~/.cache/jaxkd/teachers), named by dataset and model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Write a teacher's weights as .safetensors, with PyTorch's names and layout.

    Load them into the same architecture of RepDistiller or mdistiller with
    model.load_state_dict(safetensors.torch.load_file(FILE)).
    """

    teacher: Positional[str]
    """The folder of a teacher, or of a run, or a name in the zoo."""
    file: Positional[Path]
    """Output file; must end in .safetensors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachersConfig(Options):
    """List the teachers in the zoo and those that ship with the package."""

    verify: bool = False
    """Read the weights of every teacher and verify their checksums."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsConfig(Options):
    """List the architectures: parameters, batch-norm statistics, multiply-adds per image, features."""

    names: Positional[tuple[str, ...]] = ()
    """Architectures, with their features. Default: all, without features."""
    num_classes: int | None = None
    """Number of logits. Default: 100, or 1000 for ImageNet's networks."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels. Default: 32 32 3, or 224 224 3 for ImageNet's networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Report runs, finished or not, in tables and figures: means, deviations, differences, intervals."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, or folders that contain such folders, in the order of the table."""
    out: Path = Path("report")
    """Folder for report.md, table.tex, table.csv and the figures."""
    baseline: str | None = None
    """Baseline of the comparison: a method's name in the table. Default: kd, or the students alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsConfig(Options):
    """List the distillation methods, or the options of some."""

    names: Positional[tuple[str, ...]] = ()
    """Methods, with their options. Default: all, without options."""
