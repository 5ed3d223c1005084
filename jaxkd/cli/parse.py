"""From arguments to a command's options: the help is grouped, and each method has its own options.

A command's options are a flat dataclass that inherits from several.  On the command line, the main fields
come first, and the others are grouped by the class that defines them.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import sys
import textwrap
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union

import tyro

from jaxkd import __version__, methods
from jaxkd.options import Options
from jaxkd.runs.config import from_file

EXIT_WRONG_OPTIONS = 2
_REST = "Teacher cache"  # the heading for a command's own options besides the main ones


def parse(
    commands: Mapping[str, type[Options]], arguments: Sequence[str] | None, description: str
) -> tuple[str, Options]:
    """The command named by the arguments, and its options; exits with 2 if they are wrong.

    Args:
      commands: options by command name.
      arguments: by default the process's arguments.
      description: describes the whole program.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"jaxkd {__version__}")
        sys.exit(0)
    given, rest = _config_file(words)
    name = next((word for word in rest if not word.startswith("-")), None)
    if name is not None and name not in commands and not rest[0].startswith("--tyro-"):
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        wrong(f'unknown command "{name}"; {hint}The commands are {", ".join(commands)}')
    try:
        default = from_file(commands[name], given) if given is not None and name is not None else None
        forms = {
            command: _form(options, rest if command == name else [], default if command == name else None)
            for command, options in commands.items()
        }
    except ValueError as error:
        wrong(str(error))
    entries = tuple(
        Annotated[form, tyro.conf.subcommand(command, prefix_name=False)] for command, form in forms.items()
    )
    filled = tyro.cli(Union[entries], prog="jaxkd", description=description, args=rest)  # type: ignore[call-overload]  # noqa: UP007
    chosen = next(command for command, form in forms.items() if isinstance(filled, form))
    try:
        return chosen, _flatten(commands[chosen], filled, default)
    except ValueError as error:
        wrong(str(error))


def wrong(message: str) -> NoReturn:
    """Exits with a message: the options are wrong."""
    print(f"jaxkd: {message}", file=sys.stderr, flush=True)
    sys.exit(EXIT_WRONG_OPTIONS)


def _config_file(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    parser = argparse.ArgumentParser(prog="jaxkd", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE")
    known, rest = parser.parse_known_args(words)
    return known.config, rest


def _form(options: type[Options], words: Sequence[str], default: Any) -> type:
    """The dataclass from which tyro builds the command line."""
    hints = typing.get_type_hints(options, include_extras=True)
    fields = [field for field in dataclasses.fields(options) if field.name != "method_options"]
    owners = {
        field.name: next(
            c for c in reversed(options.__mro__) if field.name in vars(c).get("__annotations__", {})
        )
        for field in fields
    }
    # The command's own fields come first, then those of its bases, in order.
    fields.sort(key=lambda field: options.__mro__.index(owners[field.name]))
    grouped = any(field.metadata.get("main") for field in fields)
    top: list[tuple[str, Any, Any]] = []
    groups: dict[type, list[tuple[str, Any, Any]]] = {}
    for field in fields:
        owner = owners[field.name]
        entry = _entry(field, hints[field.name], _docs(owner)[field.name], default)
        in_front = field.metadata.get("main") or not grouped
        (top if in_front else groups.setdefault(owner, [])).append(entry)
    if "method_options" in hints:
        method = _value_of("--method", words) or (default.method if default is not None else "atkd")
        # Options that are stored with another method are not this one's.
        stored = default.method_options if default is not None and default.method == method else {}
        top.append(_method_group(method, stored, words))
    for owner, entries in groups.items():
        heading = _REST if owner is options else (owner.__doc__ or "").strip()
        made: Any = _dataclass(heading, entries, "")
        flat: Any = tyro.conf.OmitArgPrefixes
        top.append((_word(heading), flat[made], dataclasses.field(default_factory=made)))
    return _dataclass(options.__name__, top, options.__doc__)


def _dataclass(name: str, fields: list[tuple[str, Any, Any]], doc: str | None) -> Any:
    made = dataclasses.make_dataclass(_word(name), fields, kw_only=True, frozen=True)
    made.__doc__ = doc
    return made


def _word(heading: str) -> str:
    return heading.lower().replace(" ", "_")


_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "{True,False}"}


def _entry(field: Any, hint: Any, doc: str, default: Any) -> tuple[str, Any, Any]:
    value = field.default if default is None else getattr(default, field.name)
    optional = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    described: dict[str, Any] = {"help": doc}
    if value is None:  # the help text describes the default
        described["help_behavior_hint"] = ""
    if len(optional) == 1 and optional[0] in _METAVARS:
        described["metavar"] = _METAVARS[optional[0]]
    made = dataclasses.field() if value is dataclasses.MISSING else dataclasses.field(default=value)
    return field.name, Annotated[hint, tyro.conf.arg(**described)], made


def _method_group(method: str, given: Mapping[str, Any], words: Sequence[str]) -> tuple[str, Any, Any]:
    """The method's own options, `--method.NAME`."""
    known_options = methods.accepted(method)
    for word in words:
        option = word.partition("=")[0].removeprefix("--method.").removeprefix("no-").replace("-", "_")
        if word.startswith("--method.") and option not in known_options:
            methods.create(method, **{option: None})  # its error lists the options
    entries = [
        (
            name,
            Annotated[known.kind, tyro.conf.arg(help=known.help)],
            dataclasses.field(default=given.get(name, known.default)),
        )
        for name, known in known_options.items()
    ]
    made = _dataclass(f"{method} options", entries, f"Options of {method}: {methods.summary(method)}.")
    return (
        "method_options",
        _annotated(made, tyro.conf.arg(name="method")),
        dataclasses.field(default_factory=made),
    )


def _annotated(kind: Any, note: Any) -> Any:
    return Annotated[kind, note]


def _value_of(name: str, words: Sequence[str]) -> str | None:
    """The last value of an option among the words."""
    found = None
    for index, word in enumerate(words):
        if word == name and index + 1 < len(words):
            found = words[index + 1]
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def _flatten(options: type[Options], filled: Any, default: Any) -> Options:
    """The command's flat options, from tyro's result."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(filled):
        value = getattr(filled, field.name)
        if field.name == "method_options":
            known = methods.accepted(filled.method)
            chosen = {name: getattr(value, name) for name in known}
            # Only those that differ from the method's defaults: the record holds the user's choices.
            values[field.name] = {name: v for name, v in chosen.items() if v != known[name].default}
        elif dataclasses.is_dataclass(value):
            values |= {inner.name: getattr(value, inner.name) for inner in dataclasses.fields(value)}
        else:
            values[field.name] = value
    return options(**values)


@functools.cache
def _docs(cls: type) -> dict[str, str]:
    """The text below each field in a class's source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            value = text.value if isinstance(text, ast.Constant) else ""
            docs[statement.target.id] = " ".join(str(value).split())
    return docs
