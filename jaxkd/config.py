"""The configuration of each command, as typed dataclasses; the command line is made from them."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from jaxkd._extras import require

require("train", "tyro")

from tyro.conf import Positional  # noqa: E402

C = TypeVar("C")

# Fields that may differ between a run and its resumption: they change nothing, or only the rounding.
_HARMLESS = frozenset(
    {"run", "data_dir", "teacher", "devices", "steps_per_call", "eval_batch_size", "log_every",
     "checkpoint_seconds", "debug", "fork", "stream", "workers", "profile", "wandb",
     "cache", "seeds", "seeds_at_once",
     "distributed", "coordinator", "num_processes", "process_id", "peer_timeout"}
)  # fmt: skip

_EPOCHS = {"digits": 10}
_EPOCHS_ELSEWHERE = 240
_TEACHERS = {"digits": "digits-resnet20"}  # that ship with the package


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What training on labels and distillation share."""

    data: str = "digits"
    """Data set: digits (needs no download), cifar10, cifar100, imagenet2012, imagenet_resized/64x64, or the
    path of an .npz file with train_images, train_labels, test_images and test_labels."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets (array_record). Default: TFDS's own, ~/tensorflow_datasets."""
    epochs: int | None = None
    """Passes over the training images. The learning-rate schedule is stretched to fit. Default: 240, the
    literature's; 10 for digits."""
    stream: bool = False
    """Whether to bring every batch from the host, where the images do not fit on a device. ImageNet always
    comes so."""
    workers: int = 0
    """Processes that read and decode streamed images. Default: threads of this one."""
    batch_size: int = 64
    """Images an update, over all devices together."""
    accumulate: int = 1
    """Parts in which a batch goes through the networks, one after the other, to save memory; one update for
    all of them. Batch norm sees a part at a time."""
    batch_norm: Literal["global", "device"] = "global"
    """Whose examples give training's batch statistics: those of all devices, or of each device alone."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the student's activations. Parameters, statistics and losses stay float32; float16 comes with
    dynamic loss scaling. The teacher runs in float32."""
    learning_rate: float = 0.05
    """Of SGD; falls to a tenth after 62.5, 75 and 87.5 percent of the epochs. It is not scaled with the batch
    size. The literature takes 0.01 for MobileNet and ShuffleNet students."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Added to the gradient of all parameters, biases and batch norm included."""
    crop_padding: int | None = None
    """Pixels of zero padding before the random crop. Default: the data set's (CIFAR 4, digits 1)."""
    flip: bool | None = None
    """Whether to mirror images at random. Default: the data set's (CIFAR yes, digits no)."""
    seed: int = 0
    """Fixes initialisation, order and views; the same seed gives the same data to every method."""
    seeds: int = 1
    """How many runs, of seeds --seed, --seed + 1 and so on: each what it would be alone, in a folder of its
    own; then mean and deviation."""
    seeds_at_once: int | None = None
    """How many of these runs go on side by side, each on its own share of the devices. Default: as many as
    there are devices; one after the other with --cache fill, --profile, --wandb, --batch-norm device, and in
    several processes."""
    run: Path | None = None
    """Folder for everything that the run leaves behind. Default: under runs/, named after data, networks,
    method and seed. With --seeds, -seed0 and so on are added."""
    devices: int | None = None
    """How many local devices to use (of each process, if there are several). Default: all."""
    steps_per_call: int | None = None
    """Training steps inside one call of the compiled program. Default: 1 on CPU, 25 on GPU and TPU."""
    eval_batch_size: int = 256
    """Images a step of evaluation, over all devices together."""
    log_every: int = 100
    """Steps between lines in metrics.jsonl."""
    profile: int | None = None
    """Trace this many steps after compilation with JAX's profiler, into the run's folder."""
    wandb: str | None = None
    """Project on Weights & Biases to send the metrics to; needs wandb installed."""
    checkpoint_seconds: float = 60.0
    """A checkpoint is saved when the last one is older than this (looked at every --log-every steps and
    at the end of each epoch), and at the end."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "eval_batch_size",
            "log_every",
            "steps_per_call",
            "devices",
            "profile",
            "seeds",
            "seeds_at_once",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, got {value}")
        for name in ("momentum", "weight_decay", "seed", "checkpoint_seconds", "workers"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{_flag(name)} must not be negative, got {getattr(self, name)}")
        refuse_remote_paths(self)
        if self.seed >= 2**32:
            raise ValueError(
                f"--seed must be less than 2**32, which random keys are made of, got {self.seed}"
            )
        if self.momentum >= 1:
            raise ValueError(f"--momentum must be less than 1, got {self.momentum}")
        if (self.crop_padding or 0) < 0:
            raise ValueError(f"--crop-padding must not be negative, got {self.crop_padding}")
        if self.steps_per_call is not None and self.steps_per_call > self.log_every:
            raise ValueError(
                f"--steps-per-call {self.steps_per_call} would never be reached, since a call ends with each "
                f"--log-every {self.log_every} steps; lower the one or raise the other"
            )
        if self.data_dir is not None and (self.data == "digits" or self.data.endswith(".npz")):
            raise ValueError(
                f"--data-dir is for data sets of TensorFlow Datasets, and --data {self.data} is none; "
                "leave one of them out"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate}")
        if (self.seeds_at_once or 1) > self.seeds:
            raise ValueError(
                f"--seeds-at-once {self.seeds_at_once} is more than --seeds {self.seeds}; raise the one or "
                "lower the other"
            )
        if (self.seeds_at_once or 1) > 1 and self.one_at_a_time:
            raise ValueError(
                f"--seeds-at-once {self.seeds_at_once} and {self.one_at_a_time} do not go together, since "
                f"with {self.one_at_a_time} runs follow one another; leave out one of the two"
            )

    @property
    def num_epochs(self) -> int:
        """`epochs`, or the data set's own number."""
        return self.epochs or _EPOCHS.get(self.data, _EPOCHS_ELSEWHERE)

    def each_seed(self) -> list[Self]:
        """A configuration for each of the seeds."""
        if self.seeds == 1:
            return [self]
        folders = [self.run and self.run.with_name(f"{self.run.name}-seed{seed}") for seed in self._seeds]
        return [
            dataclasses.replace(self, seed=seed, seeds=1, seeds_at_once=None, run=folder)
            for seed, folder in zip(self._seeds, folders, strict=True)
        ]

    @property
    def one_at_a_time(self) -> str | None:
        """The option for which the runs of several seeds follow one another; None if there is none."""
        fields = vars(self)
        given = {
            "--profile": self.profile,  # JAX traces a whole process
            "--wandb": self.wandb,
            "--cache fill": fields.get("cache") == "fill",  # a cache has one writer
            "--batch-norm device": self.batch_norm == "device",  # the share would decide on the result
            "--distributed": fields.get("distributed"),
            "--coordinator": fields.get("coordinator"),
        }
        return next((option for option, value in given.items() if value), None)

    @property
    def _seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def identity(self) -> dict[str, Any]:
        """The fields that decide on the result, by name."""
        fields = {key: value for key, value in self.as_dict().items() if key not in _HARMLESS}
        return {**fields, "epochs": self.num_epochs}

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        fields = dataclasses.asdict(self)
        return {key: str(value) if isinstance(value, Path) else value for key, value in fields.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointRunConfig(RunConfig):
    """What a single run has besides: what it starts from, a closer look, and several processes."""

    fork: Path | None = None
    """The folder of another run, whose newest checkpoint (networks, optimiser and step) this one starts from,
    with other options and in a folder of its own. Student, data and --batch-size must be the same."""
    debug: bool = False
    """Look at every step; if one gives NaN or infinity, make it again, an operation at a time, and show where
    that arises. Slower, with the same numbers: on a run that failed, it goes on from the last checkpoint."""
    distributed: bool = False
    """Whether this is one of several processes that the environment (Cloud TPU, SLURM, Open MPI) tells apart;
    the same command is started in all of them."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the environment does not tell; needs --num-processes and --process-id."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which one this is, from 0. Process 0 alone reads and writes the run's folder."""
    peer_timeout: int = 60
    """Seconds without a sign of life from another process after which this one ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.debug and (self.steps_per_call or 1) > 1:
            raise ValueError(
                f"--debug makes one step a call; leave out --steps-per-call {self.steps_per_call}"
            )
        for flag, wanted in (("--debug", self.debug), ("--fork", self.fork)):
            if wanted and (self.distributed or self.coordinator):
                raise ValueError(f"{flag} is for one process; leave out --distributed and --coordinator")
        given = {"--coordinator": self.coordinator, "--num-processes": self.num_processes,
                 "--process-id": self.process_id}  # fmt: skip
        if len({value is None for value in given.values()}) > 1:
            absent = ", ".join(flag for flag, value in given.items() if value is None)
            raise ValueError(
                f"{', '.join(given)} go together, and {absent} is missing; "
                "where the environment tells all three, give --distributed alone"
            )
        if self.num_processes is not None and self.process_id is not None:
            if not 0 <= self.process_id < self.num_processes:
                raise ValueError(
                    f"--process-id must be from 0 to {self.num_processes - 1}, one less than "
                    f"--num-processes, got {self.process_id}"
                )
            if not (self.coordinator or "").rpartition(":")[2].isdigit():
                raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator}")
        if self.peer_timeout < 1:
            raise ValueError(f"--peer-timeout must be at least 1 second, got {self.peer_timeout}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(JointRunConfig):
    """Train a network on the labels alone: a teacher, or a student to compare with."""

    model: str = "resnet20"
    """Architecture; `jaxkd models` lists them."""

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        return self.run or Path("runs") / f"{_word(self.data)}-{self.model}-seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(JointRunConfig):
    """Distil a teacher into a student."""

    teacher: str
    """The folder of a teacher, or of the run that trained it, or a name in the zoo
    (~/.cache/jaxkd/teachers)."""
    student: str = "resnet8"
    """Architecture of the student; `jaxkd models` lists them."""
    method: str = "atkd"
    """kd: fixed temperature 4 on raw logits. lskd: temperature 2 on z-scores. atkd: the adaptive temperature,
    on z-scores."""
    temperature: str | None = None
    """A number, max_logit (the adaptive temperature) or max_logit_teacher. Default: the method's."""
    standardize: bool | None = None
    """Whether the softmax sees z-scores of the logits. Default: the method's."""
    kd_weight: float | None = None
    """Weight of the distillation loss. Default: the method's (kd 0.9, the others 9)."""
    ce_weight: float | None = None
    """Weight of the cross-entropy with the labels. Default: the method's (0.1)."""
    cache: str = "auto"
    """Where the teacher's logits come from. auto: from a cache of `jaxkd cache`, if there is one that fits,
    or else the teacher runs in every step. fill: the teacher runs ahead, an epoch at a time, and its logits
    are kept for later runs. off: the teacher runs in every step. Or a cache's folder, which must fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kd_weight", "ce_weight"):
            if not 0 <= (getattr(self, name) or 0.0) < math.inf:
                raise ValueError(f"{_flag(name)} must not be negative, got {getattr(self, name)}")
        if self.kd_weight == self.ce_weight == 0:
            raise ValueError("--kd-weight and --ce-weight are both 0: there is nothing to learn")

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        teacher = Path(self.teacher).name
        name = f"{_word(self.data)}-{teacher}-to-{self.student}-{self.method}-seed{self.seed}"
        return self.run or Path("runs") / name

    def method_options(self) -> dict[str, Any]:
        """What was set in place of the method's own values."""
        options = {
            "temperature": self.temperature,
            "standardize": self.standardize,
            "weight": self.kd_weight,
            "ce_weight": self.ce_weight,
        }
        return {key: value for key, value in options.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(RunConfig):
    """Compare: teacher, student alone, distilled with a fixed, and with the adaptive temperature; report.

    Ordinary runs, and a table and figures of them. Without options: the digits that scikit-learn ships, in
    about a minute on two CPU cores.
    """

    teacher: str | None = None
    """The folder of a pretrained teacher, or a name in the zoo. Default: for digits the one that ships with
    the package; else one is trained first."""
    teacher_model: str | None = None
    """Train a teacher of this architecture first. Default, where no pretrained one is at hand: resnet56."""
    student: str = "resnet8"
    """Architecture of the students."""
    methods: tuple[str, ...] = ("kd", "atkd")
    """Distillation methods to compare."""
    cache: str = "auto"
    """Where the teacher's logits come from, as for distill."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher and self.teacher_model:
            raise ValueError("--teacher is a trained one and --teacher-model trains one: give one of the two")
        if not self.methods:
            raise ValueError("--methods must name at least one method")

    @property
    def folder(self) -> Path:
        """Where the runs and the report go."""
        return self.run or Path("runs") / f"compare-{_word(self.data)}-seed{self.seed}"

    @property
    def pretrained(self) -> str | None:
        """`teacher`, or the one that ships for the data set; None if one is to be trained."""
        return self.teacher or (None if self.teacher_model else _TEACHERS.get(self.data))

    @property
    def teacher_architecture(self) -> str:
        """Of the teacher, if one is trained."""
        return self.teacher_model or "resnet56"

    def shared(self) -> dict[str, Any]:
        """The options that every run of the comparison gets."""
        names = {field.name for field in dataclasses.fields(RunConfig)} - {"run"}
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Compute a teacher's logits ahead, for all views of the training images or for those of some epochs.

    Training finds them by itself. Stop it with Ctrl-C; the same command goes on where it was.
    """

    teacher: str
    """The folder of a teacher, or of the run that trained it, or a name in the zoo."""
    data: str = "digits"
    """Data set, as for training."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets (array_record)."""
    epochs: int | None = None
    """Only the views that runs of so many epochs will see. Default: all views."""
    seed: int = 0
    """The seed of the run, if --epochs is given."""
    seeds: int = 1
    """How many runs, of seeds --seed, --seed + 1 and so on, if --epochs is given."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Precision of the stored logits. Default: that of the cache that is there, or float16."""
    crop_padding: int | None = None
    """Of the runs, as for training."""
    flip: bool | None = None
    """Of the runs, as for training."""
    out: Path | None = None
    """Folder of the cache. Default: where training looks for it, under ~/.cache/jaxkd/logits."""
    batch_size: int = 256
    """Views a step, over all devices together."""
    devices: int | None = None
    """How many local devices to use. Default: all."""

    def __post_init__(self) -> None:
        refuse_remote_paths(self)
        for name in ("epochs", "seeds", "batch_size", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, got {value}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")
        if self.epochs is None and (self.seed, self.seeds) != (0, 1):
            raise ValueError("--seed and --seeds choose views together with --epochs: give it too")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
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

    def __post_init__(self) -> None:
        refuse_remote_paths(self)
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
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

    def __post_init__(self) -> None:
        refuse_remote_paths(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a teacher's weights as .safetensors, under the names and in the layout of PyTorch code.

    Load them into the same architecture of RepDistiller or mdistiller with
    model.load_state_dict(safetensors.torch.load_file(FILE)).
    """

    teacher: Positional[str]
    """The folder of a teacher, or of a run, or a name in the zoo."""
    file: Positional[Path]
    """Where to: a file whose name ends in .safetensors."""

    def __post_init__(self) -> None:
        refuse_remote_paths(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """List the teachers in the zoo and those that ship with the package."""

    verify: bool = False
    """Read every teacher's weights and compare them with their digest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """List the architectures: parameters, batch-norm statistics, multiply-adds of one image, features."""

    names: Positional[tuple[str, ...]] = ()
    """Which ones; their features are listed, too. Default: all, without features."""
    num_classes: int | None = None
    """Number of logits. Default: 100, or 1000 for ImageNet's networks."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels. Default: 32 32 3, or 224 224 3 for ImageNet's networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A table and figures of some runs, finished or not."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, in the order of the table."""
    out: Path = Path("report")
    """Folder for report.md and the figures."""

    def __post_init__(self) -> None:
        refuse_remote_paths(self)


def from_file(command: type[C], path: Path) -> C:
    """The options that a run was started with.

    Args:
      command: the dataclass of the command that is wanted, `TrainConfig` or `DistillConfig`.
      path: the run's `config.json`.

    Raises:
      ValueError: it is not a run's, or of another command or version.
    """
    try:
        stored = json.loads(path.read_bytes())["config"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--config {path} is not the config.json of a run") from None
    types = typing.get_type_hints(command)
    if unknown := sorted(stored.keys() - types.keys()):
        raise ValueError(
            f"--config {path} has options that {command.__name__} has not: {', '.join(unknown)}; "
            "it is of another command or version"
        )

    def typed(key: str, value: Any) -> Any:
        if isinstance(value, str) and Path in (types[key], *typing.get_args(types[key])):
            return Path(value)
        return tuple(value) if isinstance(value, list) else value

    return command(**{key: typed(key, value) for key, value in stored.items()})


def refuse_remote(flag: str, path: Path | str | None) -> None:
    """Raises ValueError if a path is the address of an object store.

    >>> refuse_remote("--run", Path("runs/one"))
    """
    scheme, colon, rest = str(path or "").partition(":/")
    if colon and len(scheme) > 1 and scheme.isalnum():
        raise ValueError(
            f"{flag} must be a folder of this machine, got {scheme}://{rest.lstrip('/')}; mount the bucket "
            "(Cloud Storage: gcsfuse) and name the folder, or copy (gcloud storage rsync)"
        )


def refuse_remote_paths(config: Any) -> None:
    """`refuse_remote` for all of a command's paths."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) or field.name in ("teacher", "cache"):
                refuse_remote(_flag(field.name), path)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _word(data: str) -> str:
    return Path(data).stem
