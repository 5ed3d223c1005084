"""The options of a run, put together from those of its parts."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from jaxkd.data.options import DataOptions
from jaxkd.files import records
from jaxkd.files.places import is_remote, place
from jaxkd.options import Options, as_type, flag, option
from jaxkd.runs.checkpoint import saved_steps
from jaxkd.runs.options import DeviceOptions, OutputOptions
from jaxkd.runs.record import CONFIG, recorded
from jaxkd.training.options import TrainingOptions

C = TypeVar("C", bound=Options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(DataOptions, TrainingOptions, DeviceOptions, OutputOptions):
    """What training on labels and distillation share."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        if self.steps_per_call is not None and self.steps_per_call > self.log_every:
            raise ValueError(
                f"--steps-per-call {self.steps_per_call} would never be reached, since a call ends with each "
                f"--log-every {self.log_every} steps; lower the one or raise the other"
            )
        if self.debug and (self.steps_per_call or 1) > 1:
            raise ValueError(
                f"--debug makes one step a call; leave out --steps-per-call {self.steps_per_call}"
            )
        for name, wanted in (("--debug", self.debug), ("--fork", self.fork)):
            if wanted and self.joint:
                raise ValueError(f"{name} is for one process; leave out --distributed and --coordinator")

    @property
    def num_epochs(self) -> int:
        """`epochs`, or the data set's own number."""
        return self.epochs or self.default_epochs

    def each_seed(self, *, named: bool = False) -> list[Self]:
        """The options of each of the seeds' runs; their folders have the seed's name if there are several.

        Args:
          named: whether the folder of a single run has it, too.
        """
        if self.seeds == 1 and not named:
            return [self]
        return [
            dataclasses.replace(
                self, seed=seed, seeds=1, run=self.run and self.run.with_name(f"{self.run.name}-seed{seed}")
            )
            for seed in range(self.seed, self.seed + self.seeds)
        ]

    def decisive(self) -> dict[str, Any]:
        """See `Options`; with the number of epochs that a default stands for."""
        return {**super().decisive(), "epochs": self.num_epochs}

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        return self.run or Path("runs") / f"{self.short_data}-{self._what}-seed{self.seed}"

    @property
    def _what(self) -> str:
        """Networks and method, for the default folder."""
        raise TypeError(f"{type(self).__name__} is no command")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Train a network on the labels alone: a teacher, or a student to compare with."""

    model: str = option("resnet20", main=True)
    """Architecture; `jaxkd models` lists them."""

    @property
    def _what(self) -> str:
        return self.model


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(RunConfig):
    """Distil a teacher into a student."""

    teacher: str = option(main=True, free=True)
    """Teacher: its folder, or that of the run that trained it, or a name in the zoo; `jaxkd teachers` lists
    those with names."""
    student: str = option("resnet8", main=True)
    """Architecture of the student; `jaxkd models` lists them."""
    method: str = option("atkd", main=True)
    """Distillation method; `jaxkd methods` lists them. Its own options are --method.NAME."""
    teacher_size: int | None = None
    """Height and width that the teacher's images are resized to, pixels. Default: the teacher sees the
    student's images as they are."""
    method_options: Any = dataclasses.field(default_factory=dict)
    """Options of the method by name."""
    cache: str = option("auto", free=True)
    """Where the teacher's logits come from. auto: a cache of `jaxkd cache` that fits, or else the teacher in
    every step. fill: the teacher runs ahead, an epoch at a time, and its logits are kept for later runs. off:
    the teacher in every step. Or the folder of a cache, which must fit."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(1, "teacher_size")
        for name in ("teacher", "cache"):
            as_type(flag(name), getattr(self, name), Path)
        if not isinstance(self.method_options, dict):
            raise ValueError(f"method_options must be a dictionary, got {self.method_options!r:.100}")
        if self.cache == "fill" and self.joint:
            raise ValueError("--cache fill is for one process; make the cache with `jaxkd cache` first")

    def as_dict(self) -> dict[str, object]:
        """See `Options`; the folder of a teacher is absolute."""
        fields = super().as_dict()
        for name in ("teacher", "cache"):
            path = place(getattr(self, name))
            if is_remote(path) or path.is_dir():
                fields[name] = str(path.absolute())
        return fields

    @property
    def _what(self) -> str:
        return f"{Path(self.teacher).name}-to-{self.student}-{self.method}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Options):
    """Train a generator of images against a teacher's answers: the first stage of MEKD.

    Stop it with Ctrl-C; the same command goes on where it was.
    """

    teacher: str = option(main=True)
    """Teacher: its folder, or that of the run that trained it, or a name in the zoo. Only its answers are
    used."""
    data: str = option("digits", main=True)
    """Data set, as for training; a part of its training images is looked at."""
    data_dir: Path | None = option(None, free=True)
    """Folder of prepared TensorFlow Datasets (array_record)."""
    out: Path = option(Path("runs/generator"), main=True)
    """Folder of the generator."""
    epochs: int = option(200, main=True)
    """Passes over the part of the images."""
    fraction: float = option(0.1, main=True)
    """The part of the training images that is at hand."""
    seed: int = option(0, main=True)
    """Decides on everything random."""
    width: int = 128
    """Channels of the generator's small map."""
    blocks: int | None = None
    """Blocks of the discriminator, each of which halves the image. Default: as many as leave 2 pixels, at
    most 4."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 2e-4
    """Of Adam, for both networks."""
    weight: float = 0.5
    """Weight of the reward for images of which the teacher is sure; 0 for none."""
    response: Literal["probability", "logit", "index"] = "probability"
    """How sure the teacher is: its largest probability; or its largest logit; or, as in the published code,
    the number of its first choice, paired with every image of the batch."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(1, "epochs", "width", "blocks", "batch_size")
        self.require(0, "seed", "learning_rate", "weight")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"--fraction must lie above 0 and at most at 1, got {self.fraction}")


def from_file(command: type[C], path: Path) -> C:
    """The options that a run was started with, or those of a file that somebody wrote.

    The config.json of a run has a checksum beside it, or checkpoints: that run goes on, wherever its folder
    was moved to, and if the file is damaged or lost, the newest good checkpoint says what it said.  Any other
    file is its user's own, such as an edited copy: `run` is what it says.

    Args:
      command: the dataclass of the command that is wanted, `TrainConfig` or `DistillConfig`.
      path: the file.

    Raises:
      ValueError: it is neither, or of another command or version, or of a run with own objects.
      OSError: it cannot be read now.
    """
    path = place(path)
    folder = path.resolve().parent
    contents = _recorded(folder, path) if _is_recorded(path) else _own(path)
    stored = dict(contents["config"])
    known = {field.name for field in dataclasses.fields(command)}
    if unknown := sorted(stored.keys() - known):
        raise ValueError(
            f"--config {path} has options that {command.__name__} has not: {', '.join(unknown)}; "
            "it is of another command or version"
        )
    if objects := contents.get("objects"):
        raise ValueError(
            f"--config {path} is of a run with own objects ({', '.join(objects)}), which a file does not "
            "hold; make the call in Python again that began it"
        )
    if _is_recorded(path):
        stored["run" if "run" in known else "out"] = folder
    try:
        return command(**stored)
    except (ValueError, TypeError) as error:
        raise ValueError(f"--config {path}: {error}") from None


def _is_recorded(path: Path) -> bool:
    """Whether a file is a run's own config.json, or would be if it were there."""
    beside = path.resolve().parent / "checkpoints"
    return path.name == "config.json" and (records.has_checksum(path) or bool(saved_steps(beside)))


def _recorded(folder: Path, path: Path) -> dict[str, Any]:
    known = recorded(folder)
    changed = "if you have changed it, give your options in a copy of another name, with --run"
    if known.config is None:
        raise ValueError(f"--config {path}: {known.trouble}, and no checkpoint says what it said; {changed}")
    if known.trouble is not None:
        logging.getLogger("jaxkd").warning(
            "%s; taking the options of checkpoint %s, with which the run goes on (%s)",
            known.trouble, known.step, changed,
        )  # fmt: skip
    return known.config


def _own(path: Path) -> dict[str, Any]:
    try:
        return records.check(records.parse(path), _OWN)
    except FileNotFoundError:
        raise ValueError(f"--config {path} is not there") from None
    except ValueError as error:
        raise ValueError(f"--config {path} is not the config.json of a run, nor like one: {error}") from None


_OWN = records.Schema(
    "the file", {name: field._replace(required=name == "config") for name, field in CONFIG.fields.items()}
)
