"""Options of the commands that are no runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from jaxkd.options import Options, refuse_remote_paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Evaluate a trained network on every example of a split."""

    teacher: Positional[str]
    """The folder of a teacher, or of a run, or a name in the zoo."""
    data: str | None = None
    """Data set, as for training. Default: the one that the network was trained on."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets (array_record)."""
    split: Literal["test", "train"] = "test"
    """Which examples."""
    batch_size: int = 256
    """Images a step, over all devices together."""
    devices: int | None = None
    """How many local devices to use. Default: all."""

    def check(self) -> None:
        """See `Options`."""
        refuse_remote_paths(self)
        self.require(1, "batch_size", "devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig(Options):
    """Turn a file of PyTorch weights into a teacher, and evaluate it if the data are at hand.

    Nothing in the file is executed, and PyTorch is not needed. A file that `jaxkd export` wrote says itself
    what it is; for any other one give --model and --data.
    """

    file: Positional[Path]
    """.pt, .pth, .th, .safetensors or .npz; parameter names of RepDistiller, mdistiller, the ResNets of
    pytorch-cifar-models and pytorch_resnet_cifar10, or, for imagenet_resnet*, torchvision."""
    model: str | None = None
    """Architecture, such as resnet56; `jaxkd models` lists them."""
    shortcut: Literal["A", "B"] | None = None
    """For CIFAR ResNets: A, without weights, as in the original ones; B, with projections, as in the
    distillation literature. Default: B."""
    rename: Annotated[tuple[str, ...], UseAppendAction] = ()
    """OLD=NEW: a part of a name in the file, and what it is called here; may be given several times."""
    prefix: str | None = None
    """What stands before the names of the network in the file, if it holds several."""
    data: str | None = None
    """The data set that it was trained on, as for training: it tells the classes, and the network is
    evaluated on it. Default: cifar100."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets (array_record)."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that its inputs were normalised with. Default: the distillation literature's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    out: Path | None = None
    """Where to put it. Default: the zoo (~/.cache/jaxkd/teachers), under data and model."""

    def check(self) -> None:
        """See `Options`."""
        refuse_remote_paths(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Write a teacher's weights as .safetensors, under the names and in the layout of PyTorch code.

    Load them into the same architecture of RepDistiller or mdistiller with
    model.load_state_dict(safetensors.torch.load_file(FILE)).
    """

    teacher: Positional[str]
    """The folder of a teacher, or of a run, or a name in the zoo."""
    file: Positional[Path]
    """Where to: a file whose name ends in .safetensors."""

    def check(self) -> None:
        """See `Options`."""
        refuse_remote_paths(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachersConfig(Options):
    """List the teachers in the zoo and those that ship with the package."""

    verify: bool = False
    """Read every teacher's weights and compare them with their digest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsConfig(Options):
    """List the architectures: parameters, batch-norm statistics, multiply-adds of one image, features."""

    names: Positional[tuple[str, ...]] = ()
    """Which ones; their features are listed, too. Default: all, without features."""
    num_classes: int | None = None
    """Number of logits. Default: 100, or 1000 for ImageNet's networks."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels. Default: 32 32 3, or 224 224 3 for ImageNet's networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Tables and figures of some runs, finished or not: means, deviations, differences and intervals."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, or of several of these, in the order of the table."""
    out: Path = Path("report")
    """Folder for report.md, table.tex, table.csv and the figures."""
    baseline: str | None = None
    """The method that others are compared with, by its name in the table. Default: kd, or the students
    alone."""

    def check(self) -> None:
        """See `Options`."""
        refuse_remote_paths(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsConfig(Options):
    """List the distillation methods, or the options of some."""

    names: Positional[tuple[str, ...]] = ()
    """Which ones; their options are listed, too. Default: all, without options."""
