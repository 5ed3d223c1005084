"""The command line: one subcommand a job, its options made from the dataclasses of `jaxkd.config`.

Exit codes: 0 done; 1 failed, with a message; 2 the options are wrong; 75 stopped by a signal, and the same
command goes on; 76 another process of the run was lost, and the same command in all of them goes on from the
last checkpoint; 130 interrupted where there was nothing to save.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import jax
import tyro

from jaxkd import config as configs
from jaxkd._paths import cache_folder
from jaxkd.cpu import tune_cpu
from jaxkd.signals import Stopped, report
from jaxkd.storage import tree_digest
from jaxkd.training.distributed import PeerLostError, is_joint, leave
from jaxkd.training.side_by_side import is_at_work

EXIT_FAILED = 1
EXIT_PEER_LOST = 76

_DESCRIPTION = (
    "Knowledge distillation in JAX with a temperature that nobody has to tune. Begin with `jaxkd compare`. "
    "Every run can be stopped with Ctrl-C; the same command goes on where it was. With --config FILE, the "
    "config.json that a run wrote, train and distill take its options, unless others are given."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments ask for, and exits with its code."""
    try:
        command = _parse(arguments)
        tune_cpu()
        keep_compiled_programs()
        next(run for config, run in _COMMANDS.values() if isinstance(command, config))(command)
    except Stopped as stopped:
        sys.exit(report(stopped))
    except KeyboardInterrupt as interrupt:
        code = report(interrupt)
    except PeerLostError as error:
        _failed(error)
        code = EXIT_PEER_LOST
    except (ValueError, TypeError, ImportError, FloatingPointError, OSError) as error:
        code = _failed(error)
    except Exception:
        if not is_joint():
            raise
        traceback.print_exc()  # Python's usual end would wait for the other processes, and they for this one
        code = EXIT_FAILED
    else:
        return
    leave(code, at_once=is_at_work())


def keep_compiled_programs() -> None:
    """Keeps compiled programs for later processes, under `~/.cache/jaxkd/compiled`.

    JAX's own variables go first: `JAX_COMPILATION_CACHE_DIR` names another folder, and
    `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A run compiles some small programs too, and by default those under a second are not kept.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _parse(arguments: Sequence[str] | None) -> Any:
    first = argparse.ArgumentParser(prog="jaxkd", add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, metavar="FILE")
    known, rest = first.parse_known_args(arguments)
    commands = []
    for name, (config, _) in _COMMANDS.items():
        given = known.config is not None and name in rest[:1]
        default = configs.from_file(config, known.config) if given else tyro.MISSING_NONPROP
        commands.append(Annotated[config, tyro.conf.subcommand(name, default=default, prefix_name=False)])
    return tyro.cli(Union[tuple(commands)], prog="jaxkd", description=_DESCRIPTION, args=rest)  # type: ignore[call-overload]  # noqa: UP007


def _compare(config: configs.CompareConfig) -> None:
    from jaxkd.compare import compare

    table = compare(config, say=_say)
    _say(f"\n{table}\ntable and figures: {config.folder / 'report'}")


def _train(config: configs.TrainConfig) -> None:
    from jaxkd.training import train

    train(config, say=_say)


def _distill(config: configs.DistillConfig) -> None:
    from jaxkd.training import distill

    distill(config, say=_say)


def _cache(config: configs.CacheConfig) -> None:
    from jaxkd.training import build_cache

    build_cache(config, say=_say)


def _evaluate(config: configs.EvaluateConfig) -> None:
    from jaxkd import data, teachers
    from jaxkd.training import evaluate

    teacher = teachers.load(config.teacher)
    dataset = data.load(
        config.data or teacher.description.data, data_dir=config.data_dir, splits=(config.split,)
    )
    scores = evaluate(
        teacher, dataset, split=config.split, batch_size=config.batch_size, devices=config.devices
    )
    count = len(dataset.splits[config.split])
    _say(f"{teacher.name} on all {count:,} {config.split} images: {_scores(scores)}")


def _import(config: configs.ImportConfig) -> None:
    from jaxkd import data, teachers
    from jaxkd.training import evaluate

    description = _description(config)
    variables = teachers.import_torch(
        config.file,
        model=description.model,
        num_classes=description.num_classes,
        image_shape=description.image_shape,
        **description.model_options,
    )
    folder = config.out or teachers.zoo() / f"{Path(description.data).stem}-{description.model}"
    taken = config.out is None and (folder / "teacher.json").is_file()
    if taken and teachers.describe(folder).digest != tree_digest(variables):
        raise ValueError(f"{folder} holds another teacher; name another folder with --out")
    teachers.save(folder, variables, description)
    _say(f"{config.file} imported as {description.model} into {folder}")
    try:
        dataset = data.load(description.data, data_dir=config.data_dir, splits=("test",))
    except (FileNotFoundError, ValueError) as error:
        _say(f"not evaluated: {error}")
        return
    _say(f"evaluating it on {len(dataset.splits['test']):,} test images ...")
    scores = evaluate(teachers.Teacher(folder.name, description, variables, digest=""), dataset)
    teachers.save(folder, variables, dataclasses.replace(description, test_accuracy=scores["accuracy"]))
    _say(f"on all {len(dataset.splits['test']):,} test images: {_scores(scores)}")


def _description(config: configs.ImportConfig) -> Any:
    """What a file to import holds: what the options say, what itself says, what is usual."""
    from jaxkd import teachers
    from jaxkd.data.datasets import FACTS, load

    known = teachers.described_in(config.file)
    data = config.data or (known.data if known else "cifar100")
    options = {"shortcut": config.shortcut} if config.shortcut else {}
    if known is not None:
        given: dict[str, Any] = {"model": config.model, "data": data, "mean": config.mean, "std": config.std}
        given["model_options"] = options or None
        return dataclasses.replace(known, **{name: value for name, value in given.items() if value})
    if config.model is None:
        raise ValueError(f"{config.file} does not say what it is; name its architecture with --model")
    facts = FACTS.get(data) or load(data, splits=("test",))
    return teachers.Description(
        model=config.model,
        num_classes=facts.num_classes,
        image_shape=facts.image_shape,
        mean=config.mean or facts.mean,
        std=config.std or facts.std,
        data=data,
        source=f"imported from {config.file.name}",
        model_options=options,
    )


def _export(config: configs.ExportConfig) -> None:
    from jaxkd import teachers

    teacher = teachers.load(config.teacher)
    teachers.export_torch(teacher, config.file)
    _say(f"{teacher.name} ({teacher.description.model}) exported to {config.file}")


def _teachers(config: configs.TeachersConfig) -> None:
    from jaxkd import _markdown as markdown
    from jaxkd import teachers

    found = teachers.survey()
    entries = [entry for entry in found.values() if isinstance(entry, teachers.Entry)]
    rows, damaged = [], len(found) - len(entries) if config.verify else 0
    for entry in entries:
        about = entry.description
        accuracy = "-" if about.test_accuracy is None else f"{about.test_accuracy:.2f}"
        rows.append([entry.name, about.model, about.data, about.source, entry.digest[:12], accuracy])
        if config.verify:
            try:
                teachers.load(entry.folder)
            except ValueError as error:
                damaged += 1
                _say(str(error))
    _say(markdown.table(["name", "model", "data", "source", "digest", "accuracy"], rows, left=5))
    _say(f"{len(entries)} teacher(s), in {teachers.zoo()} and in the package")
    if damaged:
        raise ValueError(f"{damaged} of {len(found)} teachers are damaged")
    if config.verify:
        _say("all weights and descriptions have their checksums")


def _models(config: configs.ModelsConfig) -> None:
    from jaxkd import models
    from jaxkd.models import summary

    # ImageNet's networks are told by their name; the others are for CIFAR's images.
    found = []
    for name in config.names or models.names():
        classes, shape = (1000, (224, 224, 3)) if name.startswith("imagenet") else (100, (32, 32, 3))
        classes = classes if config.num_classes is None else config.num_classes
        found.append(models.describe(name, classes, config.image_shape or shape))
    _say(summary.table(found))
    for network in found if config.names else []:
        _say(summary.details(network))


def _report(config: configs.ReportConfig) -> None:
    from jaxkd.report import report

    table = report(config.runs, config.out)
    _say(f"{table}\ntable and figures: {config.out}")


_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "compare": (configs.CompareConfig, _compare),
    "train": (configs.TrainConfig, _train),
    "distill": (configs.DistillConfig, _distill),
    "cache": (configs.CacheConfig, _cache),
    "evaluate": (configs.EvaluateConfig, _evaluate),
    "import": (configs.ImportConfig, _import),
    "export": (configs.ExportConfig, _export),
    "teachers": (configs.TeachersConfig, _teachers),
    "models": (configs.ModelsConfig, _models),
    "report": (configs.ReportConfig, _report),
}


def _scores(scores: dict[str, float]) -> str:
    return (
        f"accuracy {scores['accuracy']:.2f} %, top-5 {scores['accuracy_top5']:.2f} %, "
        f"cross-entropy {scores['ce']:.4f}"
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _failed(error: Exception) -> int:
    if os.environ.get("JAXKD_TRACEBACK"):
        raise error
    print(f"jaxkd: {error}\n(JAXKD_TRACEBACK=1 shows where)", file=sys.stderr, flush=True)
    return EXIT_FAILED
