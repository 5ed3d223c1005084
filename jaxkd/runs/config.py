"""The options of a run, composed from those of its parts."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from jaxkd.data.named import absolute
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
    """Options shared by training on labels and distillation."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        if self.seed + self.seeds > 2**32:
            raise ValueError(
                f"--seeds {self.seeds} from --seed {self.seed} reach 2**32, the range of random keys"
            )
        if self.warmup_epochs >= self.num_epochs:
            raise ValueError(
                f"--warmup-epochs {self.warmup_epochs} must be less than the number of epochs, "
                f"{self.num_epochs}"
            )
        if self.seeds > 1 and self.run is not None and not self.run.name:
            raise ValueError(f"--run {self.run} has no name that a seed could be added to; name a folder")
        if self.steps_per_call is not None and self.steps_per_call > self.log_every:
            raise ValueError(
                f"--steps-per-call {self.steps_per_call} would never be reached, since a call ends after "
                f"--log-every {self.log_every} steps; lower the first or raise the second"
            )
        if self.debug and (self.steps_per_call or 1) > 1:
            raise ValueError(
                f"--debug runs one step per call; leave out --steps-per-call {self.steps_per_call}"
            )
        for name, wanted in (("--debug", self.debug), ("--fork", self.fork)):
            if wanted and self.joint:
                raise ValueError(f"{name} is for one process; leave out --distributed and --coordinator")

    @property
    def num_epochs(self) -> int:
        """`epochs`, or the dataset's default."""
        return self.epochs or self.default_epochs

    def each_seed(self, *, named: bool = False) -> list[Self]:
        """The options of each seed's run; with several seeds, the folder names contain the seed.

        Args:
          named: whether a single run's folder name contains it too.
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
        """See `Options`; with the default number of epochs resolved."""
        return {**super().decisive(), "epochs": self.num_epochs}

    @property
    def folder(self) -> Path:
        """The folder for the run's files."""
        return self.run or Path("runs") / f"{self.short_data}-{self._what}-seed{self.seed}"

    @property
    def _what(self) -> str:
        """Networks and method, for the default folder."""
        raise TypeError(f"{type(self).__name__} is not a command")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Train a network on labels only: a teacher, or a baseline student."""

    model: str = option(default="resnet20", main=True)
    """Architecture; `jaxkd models` lists them."""

    @property
    def _what(self) -> str:
        return self.model


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(RunConfig):
    """Distil a teacher into a student."""

    teacher: str = option(main=True, free=True)
    """Teacher: its folder, the folder of the run that trained it, or a name in the zoo; `jaxkd teachers`
    lists the names."""
    student: str = option(default="resnet8", main=True)
    """Architecture of the student; `jaxkd models` lists them."""
    method: str = option(default="atkd", main=True)
    """Distillation method; `jaxkd methods` lists them. Its own options are --method.NAME."""
    teacher_size: int | None = None
    """Resize the teacher's images to this height and width, in pixels. Default: the teacher sees the
    student's images unchanged."""
    method_options: Any = dataclasses.field(default_factory=dict)
    """The method's options, by name."""
    cache: str = option(default="auto", free=True)
    """Source of the teacher's logits. auto: a matching cache from `jaxkd cache`, otherwise the teacher in
    every step. fill: the teacher runs ahead, one epoch at a time, and its logits are stored for later runs.
    off: the teacher in every step. Or the folder of a cache, which must match."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(1, "teacher_size")
        for name in ("teacher", "cache"):
            as_type(flag(name), getattr(self, name), Path)
        if not isinstance(self.method_options, dict):
            raise ValueError(f"method_options must be a dictionary, got {self.method_options!r:.100}")
        if self.cache == "fill" and self.joint:
            raise ValueError("--cache fill is for one process; build the cache with `jaxkd cache` first")

    def as_dict(self) -> dict[str, object]:
        """See `Options`; the folder of a teacher is absolute."""
        fields = super().as_dict()
        for name in ("teacher", "cache"):
            fields[name] = _absolute_folder(getattr(self, name))
        folders = {
            name: _absolute_folder(value)
            for name, value in self.method_options.items()
            if name.endswith("generator") and isinstance(value, str | Path)
        }
        fields["method_options"] = {**self.method_options, **folders}
        return fields

    @property
    def _what(self) -> str:
        return f"{Path(self.teacher).name}-to-{self.student}-{self.method}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Options):
    """Train an image generator against a teacher's answers: the first stage of MEKD.

    Stop it with Ctrl-C; the same command resumes it.
    """

    teacher: str = option(main=True)
    """Teacher: its folder, the folder of the run that trained it, or a name in the zoo. Only its answers are
    used."""
    data: str = option(default="digits", main=True)
    """Dataset, as for training; a part of its training images is used."""
    data_dir: Path | None = option(default=None, free=True)
    """Folder of prepared TensorFlow Datasets (array_record)."""
    out: Path = option(default=Path("runs/generator"), main=True)
    """Output folder of the generator."""
    epochs: int = option(default=200, main=True)
    """Passes over the selected images."""
    fraction: float = option(default=0.1, main=True)
    """Fraction of the training images to use."""
    seed: int = option(default=0, main=True)
    """Random seed."""
    width: int = 128
    """Channels of the generator's smallest map."""
    blocks: int | None = None
    """Blocks of the discriminator; each halves the image. Default: as many as leave 2 pixels, at most 4."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 2e-4
    """Adam learning rate, for both networks."""
    weight: float = 0.5
    """Weight of the reward for images with a confident teacher; 0 for none."""
    response: Literal["probability", "logit", "index"] = "probability"
    """The teacher's confidence: its largest probability; its largest logit; or, as in the published code, the
    number of its top class, paired with every image of the batch."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(1, "epochs", "width", "blocks", "batch_size")
        self.require(0, "seed", "learning_rate", "weight")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"--fraction must be above 0 and at most 1, got {self.fraction}")

    def as_dict(self) -> dict[str, object]:
        """See `Options`; the folder of a teacher and files of images are absolute."""
        return {
            **super().as_dict(), "teacher": _absolute_folder(self.teacher), "data": absolute(self.data)
        }  # fmt: skip


def _absolute_folder(name: str | Path) -> str:
    """A name, or the absolute path of a folder."""
    path = place(name)
    return str(path.absolute() if is_remote(path) or path.is_dir() else name)


def from_file(command: type[C], path: Path) -> C:
    """Reads options from a run's config.json, or from a file that a user wrote.

    A run's config.json has a checksum or checkpoints beside it: that run resumes, even if its folder was
    moved, and if the file is damaged or lost, the newest good checkpoint replaces it.  Any other file, such
    as an edited copy, is a user's own: it sets `run` itself.

    Args:
      command: the dataclass of the command, `TrainConfig` or `DistillConfig`.
      path: the file.

    Raises:
      ValueError: it is neither, is of another command or version, or is of a run with user objects.
      OSError: it cannot be read now.
    """
    path = place(path)
    folder = path.resolve().parent
    contents = _recorded(folder, path) if _is_recorded(path) else _own(path)
    stored = dict(contents["config"])
    known = {field.name for field in dataclasses.fields(command)}
    if unknown := sorted(stored.keys() - known):
        raise ValueError(
            f"--config {path} has options that {command.__name__} does not have: {', '.join(unknown)}; "
            "it is of another command or version"
        )
    if objects := contents.get("objects"):
        raise ValueError(
            f"--config {path} is of a run with user objects ({', '.join(objects)}), which a file cannot "
            "store; repeat the Python call that started it"
        )
    if _is_recorded(path):
        stored["run" if "run" in known else "out"] = folder
    try:
        return command(**stored)
    except (ValueError, TypeError) as error:
        raise ValueError(f"--config {path}: {error}") from None


def _is_recorded(path: Path) -> bool:
    """Whether a file is a run's own config.json, or would be if it existed."""
    beside = path.resolve().parent / "checkpoints"
    return path.name == "config.json" and (records.has_checksum(path) or bool(saved_steps(beside)))


def _recorded(folder: Path, path: Path) -> dict[str, Any]:
    known = recorded(folder)
    changed = "if you edited it, put your options in a copy under another name, and pass --run"
    if known.config is None:
        raise ValueError(f"--config {path}: {known.trouble}, and no checkpoint contains it; {changed}")
    if known.trouble is not None:
        logging.getLogger("jaxkd").warning(
            "%s; resuming with the options in checkpoint %s (%s)",
            known.trouble, known.step, changed,
        )  # fmt: skip
    return known.config


def _own(path: Path) -> dict[str, Any]:
    try:
        return records.check(records.parse(path), _OWN)
    except FileNotFoundError:
        raise ValueError(f"--config {path} does not exist") from None
    except ValueError as error:
        raise ValueError(f"--config {path} is not a valid config.json of a run: {error}") from None


_OWN = records.Schema(
    "the file", {name: field._replace(required=name == "config") for name, field in CONFIG.fields.items()}
)
