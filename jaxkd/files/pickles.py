"""Interprets the part of the pickle language that files of tensors need, into inert values.

A pickle is a program that builds objects by calling functions.  Nothing is called here: each instruction
pushes, pops or groups plain values, and the few names that checkpoints really hold become records that only
say what they are (`Storage`, `Tensor`, `Inert`).  Arrays are built of them in `jaxkd.files.tensors`, when the
pickle has ended.  Every other name and instruction is refused.
"""

from __future__ import annotations

import codecs
import dataclasses
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxkd.files import limits

_MARKED_CODES = ("latin1", "latin-1", "iso-8859-1")
_MAX_INT_KEY = 1 << 60  # Python hashes larger ones modulo 2^61 - 1, and so a file could make them collide
_MAX_NUMBER = 1 << 48  # of an offset, size or stride
_MAX_NUMPY_BYTES = 64


class ForbiddenError(ValueError):
    """A pickle asks for what is not needed for weights."""


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """What a pickle imports, unopened."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """The flat numbers behind tensors: of what type, under which key, how many."""

    kind: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage, its reach not yet compared with the storage's."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Inert:
    """Something that is not a weight, such as a device or a path: its name and its plain arguments."""

    name: str
    arguments: tuple[Any, ...] = ()


class Ordered(dict):
    """An OrderedDict; what PyTorch hangs on it (`_metadata`) is dropped."""

    __slots__ = ()


class Namespace(dict):
    """An `argparse.Namespace`, as the dictionary of its fields."""

    __slots__ = ()


class NumpyType:
    """A NumPy dtype such as `f8`; its byte order comes in a later instruction."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"


@dataclasses.dataclass(frozen=True, slots=True)
class NumpyScalar:
    """A NumPy number: its type and its bytes."""

    dtype: NumpyType
    data: bytes


class Pickled(NamedTuple):
    """What a pickle held.

    Attributes:
      value: dictionaries, lists, tuples, plain values and the records above.
      storages: all that it referred to, by key.
      end: the byte after it.
    """

    value: Any
    storages: dict[str, Storage]
    end: int


def load(data: bytes, start: int = 0) -> Pickled:
    """Interprets the pickle that begins at byte `start` of `data`.

    Raises:
      ForbiddenError: it asks for more than weights need.
      ValueError: it is damaged, or beyond the limits.
    """
    return _Interpreter(data, start).run()


_STORAGE_KINDS = frozenset(
    f"{kind}Storage"
    for kind in (
        "Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat",
        "ComplexDouble",
    )
)  # fmt: skip
_REBUILD = frozenset(("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"))
_QUANTISED = ("_rebuild_qtensor", "QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage")
_SCALAR_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_SETS = ("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset")
# Called with plain arguments, they stay what they are: a name and arguments.
_PLAIN_CALLS = frozenset(
    (
        "torch.device", "builtins.complex", "__builtin__.complex", "datetime.datetime", "datetime.date",
        "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    )
)  # fmt: skip
_CALLS = frozenset(
    (
        "collections.OrderedDict", "collections.defaultdict", "collections.Counter", "argparse.Namespace",
        "torch.Size", "numpy.dtype", "_codecs.encode", *_SETS,
    )
)  # fmt: skip
# What a defaultdict is made with.
_FACTORIES = frozenset(
    f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "int", "float")
)
_TORCH_DTYPES = frozenset(
    ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
     "complex64", "complex128")
)  # fmt: skip


def _is_known(name: Name) -> bool:
    if str(name) in _CALLS or str(name) in _PLAIN_CALLS or str(name) in _FACTORIES:
        return True
    if name.module == "torch._utils":
        return name.name in _REBUILD
    if name.module in _SCALAR_MODULES:
        return name.name == "scalar"
    if name.module == "torch.storage":
        return name.name in _STORAGE_KINDS
    return name.module == "torch" and (name.name in _STORAGE_KINDS or name.name in _TORCH_DTYPES)


def _shown(text: str) -> str:
    """A text of the file, for a message: no control characters, not endless."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 100 else f"{text[:100]}..."


class _Interpreter:
    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._at = data, start
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}
        self._copied = 0

    def run(self) -> Pickled:
        # A pickle has at least as many bytes as instructions, so this also ends.
        for _ in range(limits.PICKLE_OPCODES):
            code = self._byte()
            if code == _STOP:
                return Pickled(self._pop(), self._storages, self._at)
            execute = _EXECUTE[code]
            if execute is None:
                raise ForbiddenError(
                    f"it uses the pickle instruction {code:#04x}, which is not needed for weights; "
                    "save model.state_dict() alone and import that"
                )
            execute(self)
        raise ValueError(f"the pickle has more than {limits.PICKLE_OPCODES:,} instructions")

    # Bytes

    def _byte(self) -> int:
        if self._at >= len(self._data):
            raise ValueError("the pickle ends in the middle")
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self._at:
            raise ValueError(f"the pickle ends in the middle: {count:,} bytes are missing")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._bytes(width), "little")

    def _line(self, longest: int = limits.NAME_LENGTH) -> bytes:
        end = self._data.find(b"\n", self._at, self._at + longest + 1)
        if end < 0:
            raise ValueError(f"a line of the pickle is longer than {longest} bytes")
        line = self._bytes(end - self._at)
        self._at += 1
        return line

    # Stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        self._need(1)
        return self._stack.pop()

    def _top(self) -> Any:
        self._need(1)
        return self._stack[-1]

    def _need(self, count: int) -> None:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
            raise ValueError("the pickle takes more values than there are")

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("the pickle has no mark where it needs one")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _copies(self, count: int) -> None:
        """Values that no instruction of its own has made; they must not outgrow the instructions."""
        self._copied += count
        if self._copied > limits.PICKLE_OPCODES:
            raise ValueError(f"the pickle copies more than {limits.PICKLE_OPCODES:,} values")

    # Values

    def _number(self, line: bytes) -> None:
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))

    def _long(self, count: int) -> None:
        if count > limits.INTEGER_BYTES:
            raise ValueError(f"an integer has {count:,} bytes; at most {limits.INTEGER_BYTES} are read")
        self._push(int.from_bytes(self._bytes(count), "little", signed=True))

    def _text(self, width: int) -> None:
        self._push(self._bytes(self._unsigned(width)).decode())

    def _old_text(self, raw: bytes) -> None:
        """Text of Python 2, which did not tell it from bytes."""
        try:
            self._push(raw.decode())
        except UnicodeDecodeError:
            self._push(raw)

    def _quoted(self) -> None:
        line = self._line(max(limits.NAME_LENGTH, len(self._data)))
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("a text of the pickle has no quotes")
        self._old_text(codecs.escape_decode(line[1:-1])[0])

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the pickle imports something that has no name")
        found = Name(module, name)
        if _is_known(found):
            self._push(found)
        elif name in _QUANTISED:
            raise ForbiddenError(
                f"it holds quantised tensors ({_shown(str(found))}); import the weights from before they "
                "were quantised, or save them after .dequantize()"
            )
        elif module.startswith("__torch__"):
            raise ForbiddenError("it is a TorchScript module; save its state_dict() and import that")
        else:
            raise ForbiddenError(
                f"it asks for {_shown(str(found))}, which is not needed for weights and could run code; "
                "save model.state_dict() alone and import that"
            )

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _persistent(self) -> None:
        persistent_id = self._pop()
        if (
            not isinstance(persistent_id, tuple)
            or len(persistent_id) not in (5, 6)
            or persistent_id[0] != "storage"
        ):
            raise ForbiddenError("it refers to something outside that is not a storage")
        _, kind, key, _, count, *view = persistent_id
        if not isinstance(kind, Name) or kind.name not in _STORAGE_KINDS:
            raise ForbiddenError("a storage is of an unknown type")
        if type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("a storage's key or size is not one")
        if view not in ([], [None]):
            raise ValueError("views of storages are not supported")
        storage = Storage(kind.name, key, count)
        if self._storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {_shown(key)} is declared twice, with different types or sizes")
        self._push(self._storages[key])

    # Containers

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("the pickle sets items of what is not a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise ValueError("the pickle appends to what is not a list")
        target.extend(values)

    def _dictionary(self) -> None:
        values = self._pop_to_mark()
        self._push({})
        self._set_items(values)

    def _tuple(self, count: int) -> None:
        self._need(count)
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._push(values)

    def _remember(self, index: int) -> None:
        self._memo[index] = self._top()

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError("the pickle recalls what it has not remembered")
        self._push(self._memo[index])

    # Calls, none of which calls anything

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ForbiddenError("it calls something that is not a function's name; that could run code")
        self._push(self._call(str(function), function, arguments))

    def _call(self, name: str, function: Name, arguments: tuple[Any, ...]) -> Any:
        if function.name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _tensor(arguments)
        if function.name == "_rebuild_parameter" and arguments and isinstance(arguments[0], Tensor):
            return arguments[0]
        if name == "collections.OrderedDict" and len(arguments) <= 1:
            return self._ordered(*arguments)
        if name == "collections.defaultdict":
            return Ordered()  # its items follow; what it makes of absent ones is of no use here
        if name == "argparse.Namespace" and not arguments:
            return Namespace()
        if (
            (name == "torch.Size" and [type(value) for value in arguments] == [tuple])
            or (name == "collections.Counter" and [type(value) for value in arguments] == [dict])
            or (name in _SETS and [type(value) for value in arguments] == [list])
        ):
            return arguments[0]
        if name == "numpy.dtype" and arguments and isinstance(arguments[0], str):
            return NumpyType(arguments[0])
        if function.name == "scalar" and len(arguments) == 2:
            return _numpy_scalar(*arguments)
        if name == "_codecs.encode" and len(arguments) == 2 and arguments[1] in _MARKED_CODES:
            return _as_bytes(arguments[0])
        if name in _PLAIN_CALLS and all(_is_plain(value) for value in arguments):
            return Inert(name, arguments)
        raise ForbiddenError(f"it calls {_shown(name)} with other arguments than checkpoints do")

    def _ordered(self, pairs: Any = ()) -> Ordered:
        if not isinstance(pairs, (list, tuple)):
            raise ValueError("an OrderedDict is made of something else than pairs")
        self._copies(len(pairs))
        ordered = Ordered()
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise ValueError("an OrderedDict is made of something else than pairs")
            ordered[_key(pair[0])] = pair[1]
        return ordered

    def _new_object(self) -> None:
        arguments, cls = self._pop(), self._pop()
        if not isinstance(cls, Name) or str(cls) != "argparse.Namespace" or arguments != ():
            raise ForbiddenError("it makes an object that is not needed for weights; that could run code")
        self._push(Namespace())

    def _build(self) -> None:
        """BUILD, which sets attributes: kept from a Namespace, the byte order of a dtype, else nothing."""
        state, target = self._pop(), self._top()
        if type(target) is Namespace and isinstance(state, dict):
            self._copies(len(state))
            target.update(state)
        elif type(target) is NumpyType and isinstance(state, tuple) and len(state) > 1:
            if state[1] not in ("<", ">", "|", "="):
                raise ValueError("a NumPy type has an unknown byte order")
            target.order = state[1]
        elif type(target) is not Ordered:
            raise ForbiddenError(
                "it sets attributes of something (BUILD); save model.state_dict() alone and import that"
            )


def _key(value: Any) -> Any:
    if not _is_plain(value) or (type(value) is int and abs(value) > _MAX_INT_KEY):
        raise ValueError(
            f"a {type(value).__name__} is the key of a dictionary; texts and small numbers are read"
        )
    return value


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str, bytes)


def _as_bytes(text: Any) -> Any:
    """Python 3's encoding of bytes in protocol 2; long ones are never numbers and stay text."""
    if type(text) is not str:
        raise ValueError("bytes are made of something else than text")
    return text.encode("latin-1") if len(text) <= _MAX_NUMPY_BYTES else text


def _numpy_scalar(dtype: Any, data: Any) -> NumpyScalar:
    if isinstance(data, str):
        data = data.encode()
    if type(dtype) is not NumpyType or type(data) is not bytes or len(data) > _MAX_NUMPY_BYTES:
        raise ValueError("a NumPy number is not made of a type and its bytes")
    return NumpyScalar(dtype, data)


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    if not arguments or not isinstance(arguments[0], Storage):
        raise ForbiddenError("a tensor is built of something that is not a storage")
    if len(arguments) < 4 or not isinstance(arguments[2], tuple) or not isinstance(arguments[3], tuple):
        raise ValueError("a tensor is built without a size or a stride")
    if any(arguments[6:]):
        raise ValueError("a tensor is conjugated or negated lazily; save it after .resolve_conj()")
    storage, offset, size, stride = arguments[:4]
    if len(size) != len(stride) or len(size) > limits.DIMENSIONS:
        raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    if any(type(value) is not int or not 0 <= value <= _MAX_NUMBER for value in (offset, *size, *stride)):
        raise ValueError("an offset, size or stride is not a whole number from 0")
    return Tensor(storage, offset, size, stride)


_STOP = ord(".")
_I = _Interpreter
# The instructions by their byte, as pickletools names them; what is absent is refused.
_OPCODES: dict[bytes, Callable[[_Interpreter], object]] = {
    b"\x80": lambda i: i._byte(),  # PROTO
    b"\x95": lambda i: i._bytes(8),  # FRAME
    b"(": lambda i: i._marks.append(len(i._stack)),  # MARK
    b"0": _I._pop,  # POP
    b"1": _I._pop_to_mark,  # POP_MARK
    b"2": lambda i: i._push(i._top()),  # DUP
    b"N": lambda i: i._push(None),
    b"\x88": lambda i: i._push(True),
    b"\x89": lambda i: i._push(False),
    b"I": lambda i: i._number(i._line(limits.INTEGER_BYTES)),
    b"J": lambda i: i._long(4),
    b"K": lambda i: i._push(i._byte()),
    b"M": lambda i: i._push(i._unsigned(2)),
    b"L": lambda i: i._push(int(i._line(limits.INTEGER_BYTES).rstrip(b"L"))),
    b"\x8a": lambda i: i._long(i._byte()),  # LONG1
    b"\x8b": lambda i: i._long(i._unsigned(4)),  # LONG4
    b"F": lambda i: i._push(float(i._line(limits.INTEGER_BYTES))),
    b"G": lambda i: i._push(struct.unpack(">d", i._bytes(8))[0]),
    b"S": _I._quoted,
    b"T": lambda i: i._old_text(i._bytes(i._unsigned(4))),
    b"U": lambda i: i._old_text(i._bytes(i._byte())),
    b"V": lambda i: i._push(i._line(len(i._data)).decode("raw-unicode-escape")),
    b"X": lambda i: i._text(4),
    b"\x8c": lambda i: i._text(1),
    b"\x8d": lambda i: i._text(8),
    b"B": lambda i: i._push(i._bytes(i._unsigned(4))),
    b"C": lambda i: i._push(i._bytes(i._byte())),
    b"\x8e": lambda i: i._push(i._bytes(i._unsigned(8))),
    b"]": lambda i: i._push([]),
    b"l": lambda i: i._push(i._pop_to_mark()),
    b"a": lambda i: i._append([i._pop()]),
    b"e": lambda i: i._append(i._pop_to_mark()),
    b")": lambda i: i._push(()),
    b"t": lambda i: i._push(tuple(i._pop_to_mark())),
    b"\x85": lambda i: i._tuple(1),
    b"\x86": lambda i: i._tuple(2),
    b"\x87": lambda i: i._tuple(3),
    b"}": lambda i: i._push({}),
    b"d": _I._dictionary,
    b"s": lambda i: i._set_items([i._pop(), i._pop()][::-1]),
    b"u": lambda i: i._set_items(i._pop_to_mark()),
    b"\x8f": lambda i: i._push([]),  # EMPTY_SET: a list, so that nothing is hashed
    b"\x90": lambda i: i._append(i._pop_to_mark()),  # ADDITEMS
    b"\x91": lambda i: i._push(i._pop_to_mark()),  # FROZENSET
    b"c": lambda i: i._global(i._line().decode(), i._line().decode()),
    b"\x93": _I._stack_global,
    b"Q": _I._persistent,
    b"R": _I._reduce,
    b"\x81": _I._new_object,
    b"b": _I._build,
    b"p": lambda i: i._remember(int(i._line(20))),
    b"q": lambda i: i._remember(i._byte()),
    b"r": lambda i: i._remember(i._unsigned(4)),
    b"\x94": lambda i: i._remember(len(i._memo)),  # MEMOIZE
    b"g": lambda i: i._recall(int(i._line(20))),
    b"h": lambda i: i._recall(i._byte()),
    b"j": lambda i: i._recall(i._unsigned(4)),
}
_EXECUTE: list[Callable[[_Interpreter], object] | None] = [None] * 256
for _code, _execute in _OPCODES.items():
    _EXECUTE[_code[0]] = _execute
