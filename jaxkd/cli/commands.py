"""The commands; each is also a Python call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxkd.cache.options import CacheConfig
from jaxkd.cli.options import (
    EvaluateConfig,
    ExportConfig,
    ImportConfig,
    MethodsConfig,
    ModelsConfig,
    ReportConfig,
    TeachersConfig,
)
from jaxkd.cli.parse import wrong
from jaxkd.files.places import place
from jaxkd.options import Options
from jaxkd.progress import print_line
from jaxkd.runs.config import DistillConfig, GeneratorConfig, RunConfig, TrainConfig
from jaxkd.storage import tree_digest


def check_names(options: Options) -> None:
    """Exits, as for other wrong options, if a name is unknown."""
    from jaxkd import data, methods, models

    try:
        if isinstance(options, RunConfig):
            options.recipe(1, 1).transformation()
        if isinstance(options, TrainConfig):
            models.create(options.model)
        if isinstance(options, DistillConfig):
            models.create(options.student)
            methods.create(options.method, **options.method_options)
        for name in options.names if isinstance(options, ModelsConfig) else ():
            models.create(name)
        for name in options.names if isinstance(options, MethodsConfig) else ():
            methods.accepted(name)
        if isinstance(options, ImportConfig) and options.model is not None:
            models.create(options.model)
        with_data = RunConfig | CacheConfig | GeneratorConfig | EvaluateConfig | ImportConfig
        if isinstance(options, with_data) and options.data is not None:
            data.require_known(options.data, options.data_dir)
    except ValueError as error:
        wrong(str(error))


def _train(config: TrainConfig) -> None:
    from jaxkd.runs import train

    train(config, say=print_line)


def _distill(config: DistillConfig) -> None:
    from jaxkd.runs import distill

    distill(config, say=print_line)


def _cache(config: CacheConfig) -> None:
    from jaxkd.cache import build_cache

    build_cache(config, say=print_line)


def _generator(config: GeneratorConfig) -> None:
    from jaxkd.runs.generator import train_generator

    train_generator(config, say=print_line)


def _evaluate(config: EvaluateConfig) -> None:
    from jaxkd import data, teachers
    from jaxkd.runs import evaluate

    teacher = teachers.load(config.teacher)
    run = _options_of_run(place(config.teacher))
    dataset = data.load(
        config.data or run.get("data") or teacher.description.data,
        data_dir=config.data_dir or (None if config.data else run.get("data_dir")),
        splits=(config.split,),
        image_size=config.image_size or _side(teacher.description.image_shape),
        resized_crop=run.get("resized_crop", False) if config.resized_crop is None else config.resized_crop,
    )
    scores = evaluate(
        teacher, dataset, split=config.split, batch_size=config.batch_size, devices=config.devices
    )
    count = len(dataset.splits[config.split])
    print_line(f"{teacher.name} on all {count:,} {config.split} images: {_scores(scores)}")


def _side(image_shape: tuple[int, int, int]) -> int | None:
    """The height and width of square images; None for others."""
    height, width, _ = image_shape
    return height if height == width else None


def _options_of_run(folder: Path) -> dict[str, Any]:
    """The options of a run, for its data's path and views: its network records only the data's name."""
    from jaxkd.runs.record import recorded

    if not (folder / "model").is_dir():
        return {}
    known = recorded(folder).config
    return dict(known["config"]) if known else {}


def _import(config: ImportConfig) -> None:
    from jaxkd import data, teachers
    from jaxkd.models.torch_find import renaming
    from jaxkd.runs import evaluate

    description = _description(config)
    known: dict[str, Any] = {"num_classes": description.num_classes, "image_shape": description.image_shape}
    if config.file.is_dir():
        if config.rename:
            raise ValueError(
                "--rename is for the names in a PyTorch file; leave it out for a checkpoint's folder"
            )
        variables = teachers.from_checkpoint(
            config.file, description.model, prefix=config.prefix, **known, **description.model_options
        ).variables
    else:
        variables = teachers.import_torch(
            config.file,
            model=description.model,
            rename=renaming(config.rename) or None,
            prefix=config.prefix,
            **known,
            **description.model_options,
        )
    folder = config.out or teachers.zoo() / f"{data.short_name(description.data)}-{description.model}"
    if (folder / "teacher.json").is_file() and teachers.describe(folder).digest != tree_digest(variables):
        raise ValueError(f"{folder} holds another teacher; name another folder with --out")
    teacher = teachers.Teacher(folder.name, description, variables, digest="")
    dataset, trouble = None, None
    try:
        dataset = _load(config, description.data, description.image_shape)
    except (FileNotFoundError, ValueError) as error:
        trouble = error
    else:
        teacher.require_fit(dataset)
    teachers.save(folder, variables, description)
    print_line(f"{config.file} imported as {description.model} into {folder}")
    if dataset is None:
        print_line(f"not evaluated: {trouble}")
        return
    print_line(f"evaluating it on {len(dataset.splits['test']):,} test images ...")
    scores = evaluate(teacher, dataset)
    teachers.save(folder, variables, dataclasses.replace(description, test_accuracy=scores["accuracy"]))
    print_line(f"on all {len(dataset.splits['test']):,} test images: {_scores(scores)}")


def _load(config: ImportConfig, name: str, image_shape: tuple[int, int, int] | None) -> Any:
    """The test split for evaluating an imported network, at the size of its images."""
    from jaxkd import data

    return data.load(
        name,
        data_dir=config.data_dir,
        splits=("test",),
        image_size=config.image_size or (_side(image_shape) if image_shape else None),
        resized_crop=config.resized_crop,
    )


def _description(config: ImportConfig) -> Any:
    """The description of an imported file: from the options, from the file itself, or from defaults."""
    from jaxkd import teachers
    from jaxkd.data.named import absolute, facts_of

    known = teachers.described_in(config.file)
    data = absolute(config.data) if config.data else (known.data if known else "cifar100")
    options = {"shortcut": config.shortcut} if config.shortcut else {}
    if known is not None:
        given: dict[str, Any] = {"model": config.model, "data": data, "mean": config.mean, "std": config.std}
        given["model_options"] = options or None
        if config.image_size is not None:
            given["image_shape"] = (config.image_size, config.image_size, known.image_shape[2])
        return dataclasses.replace(known, **{name: value for name, value in given.items() if value})
    if config.model is None:
        raise ValueError(f"{config.file} does not say what it is; name its architecture with --model")
    own_size = config.image_size is None and not config.resized_crop
    facts = (facts_of(data) if own_size else None) or _load(config, data, None)
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


def _export(config: ExportConfig) -> None:
    from jaxkd import teachers

    teacher = teachers.load(config.teacher)
    teachers.export_torch(teacher, config.file)
    print_line(f"{teacher.name} ({teacher.description.model}) exported to {config.file}")


def _teachers(config: TeachersConfig) -> None:
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
                print_line(str(error))
    print_line(markdown.table(["name", "model", "data", "source", "digest", "accuracy"], rows, left=5))
    print_line(f"{len(entries)} teacher(s), in {teachers.zoo()} and in the package")
    if damaged:
        raise ValueError(f"{damaged} of {len(found)} teachers are damaged")
    if config.verify:
        print_line("all weights and descriptions have their checksums")


def _models(config: ModelsConfig) -> None:
    from jaxkd import models
    from jaxkd.models import summary

    # Networks for ImageNet have "imagenet" in their name; the others are for CIFAR's images.
    found = []
    for name in config.names or models.names():
        classes, shape = (1000, (224, 224, 3)) if name.startswith("imagenet") else (100, (32, 32, 3))
        classes = classes if config.num_classes is None else config.num_classes
        found.append(models.describe(name, classes, config.image_shape or shape))
    print_line(summary.table(found))
    for network in found if config.names else []:
        print_line(summary.details(network))


def _report(config: ReportConfig) -> None:
    from jaxkd.runs.report import report

    table = report(config.runs, config.out, config.baseline)
    print_line(f"{table}\ntable and figures: {config.out}")


def _methods(config: MethodsConfig) -> None:
    from jaxkd import _markdown as markdown
    from jaxkd import methods
    from jaxkd.methods import listing

    print_line(listing.table(config.names or None))
    for name in config.names:
        known = methods.accepted(name).items()
        options = [[f"--method.{option.replace('_', '-')}", str(o.default), o.help] for option, o in known]
        print_line(markdown.table([f"option of {name}", "default", "what it is"], options, left=3))


COMMANDS: dict[str, tuple[type[Options], Callable[[Any], None]]] = {
    "distill": (DistillConfig, _distill),
    "train": (TrainConfig, _train),
    "evaluate": (EvaluateConfig, _evaluate),
    "report": (ReportConfig, _report),
    "cache": (CacheConfig, _cache),
    "generator": (GeneratorConfig, _generator),
    "import": (ImportConfig, _import),
    "export": (ExportConfig, _export),
    "teachers": (TeachersConfig, _teachers),
    "models": (ModelsConfig, _models),
    "methods": (MethodsConfig, _methods),
}


def _scores(scores: dict[str, float]) -> str:
    return (
        f"accuracy {scores['accuracy']:.2f} %, top-5 {scores['accuracy_top5']:.2f} %, "
        f"cross-entropy {scores['ce']:.4f}"
    )
