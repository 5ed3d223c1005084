"""Options of the commands other than runs."""

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
    """Data set, as for training. Default: the one that the network was trained on."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets (array_record), or of CIFAR's own archive."""
    image_size: int | None = None
    """Height and width that images are resized to, pixels. Default: those that the network was trained on."""
    resized_crop: bool | None = None
    """ImageNet's central crop, as for training. Default: as the run had it."""
    split: Literal["test", "train"] = "test"
    """Split to evaluate."""
    batch_size: int = 256
    """Images in a step, over all devices."""
    devices: int | None = None
    """Number of local devices. Default: all."""

    def check(self) -> None:
        """See `Options`."""
        self.require(1, "batch_size", "devices", "image_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig(Options):
    """Import PyTorch weights or a Flax checkpoint as a teacher, and evaluate it if the data set is prepared.

    Nothing in the file is executed, and PyTorch is not needed. A file that `jaxkd export` wrote describes
    itself; any other file needs --model and --data.
    """

    file: Positional[Path]
    """.pt, .pth, .th, .safetensors, .npz, or hf:OWNER/NAME on the Hugging Face Hub; parameter names of
    RepDistiller, mdistiller, the ResNets of pytorch-cifar-models and pytorch_resnet_cifar10, or, for
    imagenet_resnet*, torchvision and timm. Or the folder of an Orbax checkpoint."""
    model: str | None = None
    """Architecture, such as resnet56; `jaxkd models` lists them."""
    shortcut: Literal["A", "B"] | None = None
    """For CIFAR ResNets: A, without weights, as in the original ones; B, with projections, as in the
    distillation literature. Default: B."""
    rename: Annotated[tuple[str, ...], UseAppendAction] = ()
    """OLD=NEW: replaces OLD by NEW in the parameter names of the file; may be given several times."""
    prefix: str | None = None
    """Prefix of the network's parameter names, if the file holds several networks."""
    data: str | None = None
    """Data set that the network was trained on, as for training: it gives the number of classes, and the
    network is evaluated on it. Default: cifar100."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets (array_record), or of CIFAR's own archive."""
    image_size: int | None = None
    """Height and width of the network's images, pixels. Default: those of the data set."""
    resized_crop: bool = False
    """ImageNet's central crop in the evaluation, as for training."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel in the normalisation of its inputs. Default: the distillation literature's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel in the normalisation of its inputs. Default: as the mean."""
    out: Path | None = None
    """Output folder. Default: a folder of the zoo (~/.cache/jaxkd/teachers), named by data set and model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Write a teacher's weights as .safetensors, under the names and in the layout of PyTorch code.

    Load them into the same architecture of RepDistiller or mdistiller with
    model.load_state_dict(safetensors.torch.load_file(FILE)).
    """

    teacher: Positional[str]
    """The folder of a teacher, or of a run, or a name in the zoo."""
    file: Positional[Path]
    """Output file; its name ends in .safetensors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachersConfig(Options):
    """List the teachers in the zoo and those that ship with the package."""

    verify: bool = False
    """Read the weights of every teacher and compare them with their checksum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsConfig(Options):
    """List the architectures: parameters, batch-norm statistics, multiply-adds of one image, features."""

    names: Positional[tuple[str, ...]] = ()
    """Architectures, with their features. Default: all, without features."""
    num_classes: int | None = None
    """Number of logits. Default: 100, or 1000 for ImageNet's networks."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels. Default: 32 32 3, or 224 224 3 for ImageNet's networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Tables and figures of runs, finished or not: means, standard deviations, differences, intervals."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, or folders that hold such folders, in the order of the table."""
    out: Path = Path("report")
    """Folder for report.md, table.tex, table.csv and the figures."""
    baseline: str | None = None
    """Baseline of the comparison: a method, by its name in the table. Default: kd, or the students trained
    alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsConfig(Options):
    """List the distillation methods, or the options of some."""

    names: Positional[tuple[str, ...]] = ()
    """Methods, with their options. Default: all, without options."""
