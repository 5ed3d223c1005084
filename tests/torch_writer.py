"""Writes files as `torch.save` does, without PyTorch: for tests of the reader.

The pickler needs functions and classes that are importable as `torch._utils._rebuild_tensor_v2` and the like;
stand-ins are put under these names for as long as it works.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

KINDS = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long",
    "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
    "complex64": "ComplexFloat",
}  # fmt: skip


def function(module: str, name: str) -> Any:
    """A stand-in that pickles as `module.name`."""

    def stand_in(*_: Any) -> None:
        raise AssertionError

    stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, name, name
    return stand_in


REBUILD = function("torch._utils", "_rebuild_tensor_v2")
STORAGES = {kind: type(f"{kind}Storage", (), {"__module__": "torch"}) for kind in KINDS.values()}


class Call:
    """Pickles as a call: `Call("torch.device", "cpu")`."""

    def __init__(self, name: str, *arguments: Any) -> None:
        module, _, name = name.rpartition(".")
        self.function, self.arguments = function(module, name), arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int, order: str, *, legacy: bool) -> None:
        super().__init__(file, protocol)
        self.order, self.legacy = order, legacy
        self.storages: dict[str, bytes] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return None
        # An array here is the storage of the tensor around it: see `reducer_override`'s caller.
        key = str(len(self.storages))
        swapped = value if self.order == "little" or value.dtype.itemsize == 1 else value.byteswap()
        self.storages[key] = swapped.tobytes()
        storage = "storage", STORAGES[KINDS[value.dtype.name]], key, "cpu", value.size
        return (*storage, None) if self.legacy else storage

    def reducer_override(self, value: Any) -> Any:
        return (*value,) if isinstance(value, _Tensor) else NotImplemented


class _Tensor(tuple):
    """Function and arguments of a call, so that the array inside goes through `persistent_id`."""


def _wrapped(value: Any) -> Any:
    if isinstance(value, dict):
        wrapped = copy.copy(value)  # with its attributes and its default
        for key, part in value.items():
            wrapped[key] = _wrapped(part)
        return wrapped
    if isinstance(value, np.ndarray):
        stride = np.cumprod((1, *value.shape[:0:-1]))[::-1].tolist() if value.ndim else []
        flat = np.ascontiguousarray(value).reshape(-1)
        return _Tensor((REBUILD, (flat, 0, value.shape, tuple(stride), False, {})))
    return value


@contextlib.contextmanager
def _importable(value: Any) -> Iterator[None]:
    """Puts the stand-ins where pickle looks for them."""
    modules: dict[str, types.ModuleType] = {}

    def put(thing: Any) -> None:
        module = modules.setdefault(thing.__module__, types.ModuleType(thing.__module__))
        setattr(module, thing.__name__, thing)

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            for inner in part.values():
                walk(inner)
        elif isinstance(part, Call):
            put(part.function)
            for inner in part.arguments:
                walk(inner)

    for thing in (REBUILD, *STORAGES.values()):
        put(thing)
    walk(value)
    for name in [name for name in modules if "." in name]:
        modules.setdefault(name.partition(".")[0], types.ModuleType(name.partition(".")[0]))
    with mock.patch.dict(sys.modules, modules):
        yield


def pickled(contents: Any, order: str, protocol: int, *, legacy: bool) -> tuple[bytes, dict[str, bytes]]:
    file = io.BytesIO()
    with _importable(contents):
        pickler = _Pickler(file, protocol, order, legacy=legacy)
        pickler.dump(_wrapped(contents))
    return file.getvalue(), pickler.storages


def save_zip(path: Path, contents: Any, *, order: str = "little", protocol: int = 2, **options: Any) -> Path:
    """The container of today: a zip of one pickle and raw storages."""
    data, storages = pickled(contents, order, protocol, legacy=False)
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", order)
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers)
        archive.writestr("archive/version", "3\n")
    return path


def save_legacy(path: Path, contents: Any) -> Path:
    """The container before PyTorch 1.6: five pickles and raw storages."""
    data, storages = pickled(contents, "little", 2, legacy=True)
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    heads = (0x1950A86A20F9469CFC6C, 1001, machine)
    counts = {
        key: len(numbers) // size
        for (key, numbers), size in zip(storages.items(), _sizes(contents), strict=True)
    }
    path.write_bytes(
        b"".join(pickle.dumps(head, 2) for head in heads)
        + data
        + pickle.dumps(list(storages), 2)
        + b"".join(counts[key].to_bytes(8, "little") + numbers for key, numbers in storages.items())
    )
    return path


def _sizes(contents: Any) -> Iterator[int]:
    if isinstance(contents, dict):
        for value in contents.values():
            yield from _sizes(value)
    elif isinstance(contents, np.ndarray):
        yield contents.dtype.itemsize


def checkpoint(rng: np.random.Generator) -> dict[str, Any]:
    """What a training script leaves: weights of several types under "state_dict", and things beside them."""
    import argparse
    import collections
    import datetime

    weights = collections.OrderedDict(
        {
            "module.conv1.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "module.bn1.running_var": rng.random(4),
            "module.bn1.num_batches_tracked": np.array(7),
            "module.half": rng.standard_normal((2, 5)).astype(np.float16),
            "module.brain": rng.standard_normal(8).astype(ml_dtypes.bfloat16),
            "module.mask": rng.random((3, 2)) < 0.5,
        }
    )
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return {
        "state_dict": weights,
        "epoch": 3,
        "best_acc": np.float64(71.25),
        "args": argparse.Namespace(lr=0.1, arch="resnet20", milestones=[150, 180]),
        "shape": Call("torch.Size", (2, 3)),
        "device": Call("torch.device", "cuda", 0),
        "milestones": collections.Counter({150: 1, 180: 1}),
        "history": collections.defaultdict(list, {"loss": [2.5, 1.5]}),
        "saved": datetime.datetime(2024, 2, 29),
    }
