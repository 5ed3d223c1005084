"""Teachers in folders: saving, finding by path or name, describing, loading."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import models, storage
from jaxkd._paths import cache_folder
from jaxkd.differences import differing_keys
from jaxkd.files.places import is_remote, place
from jaxkd.files.whole import current, names_in
from jaxkd.teachers import hub, record
from jaxkd.teachers.exchange import described_in, import_torch, variable_shapes
from jaxkd.teachers.teacher import Description, Teacher

_SHIPPED = Path(__file__).with_name("zoo")


def zoo() -> Path:
    """The folder where teachers are looked up by name: `$JAXKD_TEACHERS`, or `~/.cache/jaxkd/teachers`."""
    return place(os.environ.get("JAXKD_TEACHERS") or cache_folder() / "teachers")


def save(folder: str | Path, variables: Mapping[str, Any], description: Description) -> None:
    """Saves a network as a teacher.

    Args:
      folder: created if needed; an existing teacher is replaced atomically.
      variables: `{"params": ..., "batch_stats": ...}`.
      description: describes them.

    Raises:
      ValueError: the folder holds something other than a teacher, which is kept; the teacher is a function;
        or the variables are not those of the network that is described.
      OSError: it cannot be written.
    """
    if description.model == "function":
        raise ValueError(
            "a teacher made by from_function cannot be saved, since its code is not stored; build it from a "
            "Flax module with from_network"
        )
    variables = dict(variables)
    if not (description.own or description.method):
        variables = {name: tree for name, tree in variables.items() if jax.tree.leaves(tree)}
        _require_variables(variables, description)
    with storage.replacing(place(folder), record.is_teacher) as new:
        digest = storage.save_tree(new / record.VARIABLES, variables)
        files = storage.file_digests(new / record.VARIABLES)
        record.write(new, dataclasses.asdict(description), digest, files)


def _require_variables(variables: Mapping[str, Any], description: Description) -> None:
    """Raises ValueError unless the variables have the names and the shapes of the network's."""

    def shapes(tree: Any) -> dict[str, list[int]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): list(jnp.shape(leaf)) for path, leaf in leaves}

    wanted = variable_shapes(description.create_model(), description.image_shape)
    for name, pair in differing_keys(shapes(variables), shapes(wanted)).items():
        found, expected = ("absent" if shape is None else shape for shape in pair)
        raise ValueError(
            f"these are not the variables of {description.model} for {description.num_classes} classes and "
            f"images {list(description.image_shape)}: {name} is {found} and not {expected}; nothing was saved"
        )


def locate(path_or_name: str | Path) -> Path:
    """Finds the folder of a teacher, writing nothing; arguments and errors are those of `load`."""
    named = place(path_or_name)
    candidates = [named, named / "model"]
    if not is_remote(named):
        candidates += [zoo() / path_or_name, _SHIPPED / path_or_name]
    for folder in candidates:
        if (current(folder) / record.DESCRIPTION).is_file():
            return folder
    names = [name for root in (zoo(), _SHIPPED) for name in names_in(root)]
    near = difflib.get_close_matches(str(path_or_name), names, n=1)
    hint = f'; did you mean "{near[0]}"? Looked' if near else ": looked"
    raise FileNotFoundError(
        f'no teacher "{path_or_name}"{hint} for '
        f"{record.DESCRIPTION} in {', '.join(dict.fromkeys(map(str, candidates)))}; "
        "`jaxkd teachers` lists the names, `jaxkd train` trains a teacher, and `jaxkd import` imports one"
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """A teacher's folder, without reading its weights.

    Attributes:
      name: for tables.
      folder: the teacher's folder.
      description: the teacher's description.
      digest: the digest of the variables.
      files: digests of the variables' files, if recorded.
    """

    name: str
    folder: Path
    description: Description
    digest: str
    files: Mapping[str, str] | None = None


def describe(path_or_name: str | Path) -> Entry:
    """Reads the description in a teacher's folder; arguments and errors are those of `load`."""
    folder = locate(path_or_name)
    return storage.reading(folder, lambda there: _entry(folder, there))


def _entry(folder: Path, there: Path) -> Entry:
    """The entry of a folder, whose contents are in `there`."""
    stored = record.read(there)
    try:
        description = Description(**stored.fields)
    except ValueError as error:
        raise storage.DamagedError(f"{folder / record.DESCRIPTION} is damaged: {error}") from None
    # A run keeps its network in a folder `model`; the run's folder has the user's name.
    whole = folder if is_remote(folder) else folder.absolute()  # "." and "model" have a name, too
    name = whole.parent.name if whole.name == "model" else whole.name
    return Entry(name, folder, description, stored.digest, stored.files)


def load(path_or_name: str | Path, *, network: models.Like | None = None, method: Any = None) -> Teacher:
    """Loads a teacher.

    Args:
      path_or_name: the folder of a teacher, the folder of a run that trained one, a name in the zoo, or
        `hf:OWNER/NAME` for self-describing weights on the Hugging Face Hub (see `jaxkd.teachers.hub`).
      network: the network itself, if it is not one of `models.names()`: a Flax Linen or NNX module, or a
        `Network`.
      method: the `Method` itself, if one that is not in `methods.names()` predicts in the network's place.

    Returns:
      The teacher: `.logits(images)`, `.features(images)`, `.name`, `.num_classes`.

    Raises:
      FileNotFoundError: there is no such teacher.
      ValueError: it is damaged, its format is unknown, or it needs a user's network that was not passed.
      OSError: it cannot be read now.

    >>> import jax.numpy as jnp
    >>> from jaxkd import teachers
    >>> teacher = teachers.load("digits-resnet20")
    >>> teacher.logits(jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape
    (2, 10)
    """
    if hub.is_address(path_or_name):
        return _from_hub(str(path_or_name))
    folder = locate(path_or_name)

    def read(there: Path) -> Teacher:
        entry = _entry(folder, there)
        about = entry.description
        forward: Any = None
        if network is not None and not about.own:
            raise ValueError(
                f"{folder} holds {about.model}, which is one of models.names(); load it without network="
            )
        if about.own:
            if network is None:
                raise ValueError(
                    f"{folder} holds the weights of a user's network, {about.model}; "
                    f"load it with teachers.load({str(path_or_name)!r}, network=...)"
                )
            forward = models.as_network(network, about.num_classes).forward
            shapes = jax.eval_shape(lambda: forward.init(0, about.image_shape))
        elif about.method:
            forward = models.from_linen(about.create_model()).forward
        else:
            try:
                shapes = variable_shapes(about.create_model(), about.image_shape)
            except ValueError as error:
                raise ValueError(f"{folder / record.DESCRIPTION}: {error}") from None
        if about.method:
            forward, shapes = models.Evaluated(_Answering(forward, _method(folder, about, method))), None
        stored = there / record.VARIABLES
        if entry.files is None:
            variables = storage.load_tree(stored, shapes, entry.digest)
        else:
            with storage.checked_copy(stored, entry.files) as copy:
                variables = storage.load_tree(copy, shapes, entry.digest, checked=True, name=stored)
        return Teacher(entry.name, about, variables, entry.digest, forward)

    return storage.reading(folder, read)


def _from_hub(address: str) -> Teacher:
    """A teacher from a self-describing repository."""
    about = described_in(address)
    if about is None:
        raise ValueError(
            f"{address} does not say what it is; import it: jaxkd import {address} --model NAME --data NAME"
        )
    variables = import_torch(
        address,
        model=about.model,
        num_classes=about.num_classes,
        image_shape=about.image_shape,
        **about.model_options,
    )
    name = address.removeprefix(hub.PREFIX).partition("@")[0].split("/")[1]
    return Teacher(name, about, variables, storage.tree_digest(variables))


@dataclasses.dataclass(frozen=True)
class _Answering:
    """A network, and a method that predicts in its place; variables `{"student": ..., "method": ...}`."""

    forward: Any
    method: Any

    def apply(self, variables: Any, images: jax.Array) -> models.Outputs:
        outputs, _ = self.forward(variables["student"], images, train=False, where=None, rngs=None)
        logits = self.method.apply(variables["method"], outputs, method="predict")
        return models.Outputs(logits, outputs.features)


def _method(folder: Path, about: Description, given: Any) -> Any:
    from jaxkd import methods

    if given is None and about.method["name"] not in methods.names():
        raise ValueError(
            f"{folder} predicts with your own method {about.method['name']}; load it with "
            f"teachers.load({str(folder)!r}, method=...)"
        )
    return given or methods.create(about.method["name"], **about.method["options"])


def available() -> list[Entry]:
    """The teachers in the zoo and in the package; unreadable ones are skipped with a warning.

    >>> from jaxkd import teachers
    >>> "digits-resnet20" in [entry.name for entry in teachers.available()]
    True
    """
    return [entry for entry in survey().values() if isinstance(entry, Entry)]


def survey() -> dict[Path, Entry | str]:
    """Every folder in the zoo and in the package that should be a teacher: its entry, or its error."""
    found: dict[Path, Entry | str] = {}
    for root in (zoo(), _SHIPPED):
        for folder in (root / name for name in names_in(root)):
            if not (current(folder) / record.DESCRIPTION).is_file():
                continue
            try:
                found[folder] = describe(folder)
            except (ValueError, OSError) as error:
                logging.getLogger("jaxkd").warning("skipping %s: %s", folder, error)
                found[folder] = str(error)
    return found
