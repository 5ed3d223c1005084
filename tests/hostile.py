"""Hostile and damaged weight files, and children with limits of memory and time to read them in.

Used by tests/test_hostile.py and experiments/attacks/run.py.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import os
import pickletools
import random
import resource
import signal
import struct
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch_writer

from jaxkd.files import npz
from jaxkd.teachers import torch_files

MIB = 1 << 20
MEMORY, SECONDS = 512 * MIB, 20

# Attacks

STORAGE = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{}\ntQ"


def tensor(storage: str, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> str:
    """A pickle's instructions (protocol 0) for a call of torch's _rebuild_tensor_v2."""

    def numbers(values: tuple[int, ...]) -> str:
        return "(" + "".join(f"I{value}\n" for value in values) + "t"

    return f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{numbers(size)}{numbers(stride)}I00\nNtR"


def state(body: str | bytes) -> bytes:
    """A dictionary with one entry, `fc.weight`, that `body` makes."""
    return b"(S'fc.weight'\n" + (body.encode() if isinstance(body, str) else body) + b"d."


def torch_zip(path: Path, pickled: bytes, count: int = 100, **options: Any) -> Path:
    """A zip with a pickle and a storage of float32."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", np.arange(count, dtype=np.float32).tobytes())
    return path


def foreign_memory(path: Path) -> Path:
    """Sets a storage's numbers to a matrix of a NumPy type's making, and begins at its last row."""
    matrix = "ctorch\nFloatStorage\n((l" + "(l" + "I0\na" * 20 + "a" + ("(l" + "I0\na" * 20 + "a") * 9 + "tR"
    storage = STORAGE.format(100) + "}S'numbers'\n" + matrix + "sb"
    return torch_zip(path, state(tensor(storage, 9, (189,), (1,))))


def changed_reader(path: Path) -> Path:
    """Sets an attribute of the function that rebuilds tensors."""
    return torch_zip(path, state("ctorch._utils\n_rebuild_tensor_v2\n}S'owned'\nI01\nsb"))


def changed_defaults(path: Path) -> Path:
    """Sets the reader's own defaults, which stay for the rest of the process."""
    return torch_zip(path, state("ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\n(I1\ntstb"))


def called_type(path: Path) -> Path:
    """Calls a storage's type."""
    return torch_zip(path, state("ctorch\nFloatStorage\n((I1\nI2\nltR"))


def huge_memo(path: Path) -> Path:
    """Remembers a value under a huge number."""
    return torch_zip(path, b"\x80\x02}r\xff\xff\xff\x1f.", 0)


def shared_storage(path: Path) -> Path:
    """A thousand tensors, each a different view of nearly all of one storage."""
    shared = STORAGE.format(2_000_000) + "p0\n"
    views = "".join(
        f"S'w{i}'\n" + tensor(shared if not i else "g0\n", i, (1_000_000,), (1,)) for i in range(1000)
    )
    return torch_zip(path, f"({views}d.".encode(), 2_000_000, compression=zipfile.ZIP_DEFLATED)


def packed_torch(path: Path) -> Path:
    """A storage of zeros, packed a thousand times smaller."""
    count = 200 * MIB
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", state(tensor(STORAGE.format(count), 0, (count,), (1,))))
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(count * 4 // (64 * MIB) + 1):
                member.write(bytes(64 * MIB))
    return path


def packed_npz(path: Path) -> Path:
    """An array of zeros, packed a thousand times smaller."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (800 * MIB,)}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.npy", "w", force_zip64=True) as member,
    ):
        member.write(header.getvalue())
        for _ in range(800 // 64 + 1):
            member.write(bytes(64 * MIB))
    return path


def overlapping_members(path: Path) -> Path:
    """A hundred members of a zip that share the bytes of the first."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", _npy("|u1", (10 * MIB,), bytes(10 * MIB)))
    contents = path.read_bytes()
    end = contents.rindex(b"PK\x05\x06")
    start = int.from_bytes(contents[end + 16 : end + 20], "little")
    entries = b"".join(contents[start:end].replace(b"w.npy", b"%05d" % i) for i in range(100))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 100, 100, len(entries), start, 0)
    path.write_bytes(contents[:start] + entries + tail)
    return path


def declared_npy(path: Path) -> Path:
    """An array whose header declares what the file does not hold."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", _npy("<f8", (1 << 33,), b""))
    return path


def nested_lists(path: Path) -> Path:
    """Lists of lists of the same list: sixty instructions, 2^60 values."""
    doubled = b"".join(b"0(lp%d\ng%d\nag%d\na" % (i + 1, i, i) for i in range(60))
    return torch_zip(path, state(b"(lp0\nI1\na" + doubled))


def nested_type_call(path: Path) -> Path:
    """The same, handed to a storage's type, which walks through it."""
    doubled = b"".join(b"0(lp%d\ng%d\nag%d\na" % (i + 1, i, i) for i in range(26))
    return torch_zip(path, state(b"ctorch\nFloatStorage\n((lp0\nI1\na" + doubled + b"tR"))


def ring(path: Path) -> Path:
    """A dictionary that holds itself as its state_dict."""
    return torch_zip(path, b"}p0\nS'state_dict'\ng0\ns.")


def tuple_keys(path: Path) -> Path:
    """A key whose hash takes 2^60 steps."""
    doubled = b"".join(b"0(g%d\ng%d\ntp%d\n" % (i, i, i + 1) for i in range(60))
    return torch_zip(path, b"I1\np0\n" + doubled + b"0}g60\nI1\ns.")


def deep_tuples(path: Path) -> Path:
    """A hundred thousand tuples, each in the next."""
    return torch_zip(path, state(b"I1\n" + b"\x85" * 100_000))


def endless_instructions(path: Path) -> Path:
    """Four million instructions that do nothing."""
    return torch_zip(path, b"N0" * 2_000_000 + b"}.")


def many_containers(path: Path) -> Path:
    """As many dictionaries and numbers as the limits allow: an honest file could hold them."""
    return torch_zip(path, b"}S'log'\n(" + b"}" * 249_000 + b"J\xff\xff\xff\x7f" * 250_000 + b"ls.")


def safetensors_header(path: Path) -> Path:
    """A header that declares more than the file."""
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def safetensors_overlap(path: Path) -> Path:
    """Ten thousand tensors that are the same megabyte."""
    entry = '"w%d":{"dtype":"U8","shape":[1048576],"data_offsets":[0,1048576]}'
    header = ("{" + ",".join(entry % i for i in range(10_000)) + "}").encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(MIB))
    return path


ATTACKS: dict[str, Callable[[Path], Path]] = {
    attack.__name__: attack
    for attack in (
        foreign_memory, changed_reader, changed_defaults, called_type, huge_memo, shared_storage,
        packed_torch, packed_npz, overlapping_members, declared_npy, nested_lists, nested_type_call,
        ring, tuple_keys, deep_tuples, many_containers, endless_instructions, safetensors_header,
        safetensors_overlap,
    )
}  # fmt: skip


def _npy(dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue() + data


# Good files, and what is done to them


def good_files(folder: Path, published: Path | None) -> dict[str, bytes]:
    """Files as PyTorch, safetensors and NumPy write them, and the published ones if they are at hand."""
    folder.mkdir(exist_ok=True)
    contents = torch_writer.checkpoint(np.random.default_rng(0))
    arrays = {"conv.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3), "fc.bias": np.ones(3)}
    paths = [
        torch_writer.save_zip(folder / "zip.pt", contents),
        torch_writer.save_zip(folder / "big-endian.pt", contents, order="big"),
        torch_writer.save_zip(folder / "protocol4.pt", contents, protocol=4),
        torch_writer.save_legacy(folder / "legacy.th", contents),
        folder / "weights.safetensors",
        folder / "stored.npz",
        folder / "packed.npz",
    ]
    safetensors.numpy.save_file(arrays, paths[4], {"format": "pt"})
    np.savez(paths[5], **arrays)
    np.savez_compressed(paths[6], **arrays)
    if published is not None and published.is_dir():
        paths += sorted(published.iterdir())
    return {path.name: path.read_bytes() for path in paths}


def mutated(contents: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One mutation of a file: what was done, and the file."""
    ways = [("bits", _bits), ("cut", _cut), ("splice", _splice), ("numbers", _numbers)]
    if contents.startswith(b"PK"):
        ways += [("inside, " + name, way) for name, way in ways] + [
            ("inside, instructions", _instructions)
        ] * 4
    elif contents.startswith(b"\x80"):
        ways += [("instructions", _instructions)] * 4
    elif contents[8:9] == b"{":
        ways += [("header", _header)] * 4
    name, way = rng.choice(ways)
    if not name.startswith("inside"):
        return name, way(contents, rng)
    # The archive's checksums would refuse nearly all of it: packed again, they are right.
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(contents)) as old, zipfile.ZipFile(packed, "w") as new:
        infos = old.infolist()
        structural = [info for info in infos if info.filename.endswith((".pkl", ".npy", "byteorder"))]
        target = rng.choice(structural)
        for info in infos:
            data = old.read(info)
            if info is target:
                way = _bits if way is _instructions and not data.startswith(b"\x80") else way
                data = way(data, rng)
            new.writestr(zipfile.ZipInfo(info.filename), data, rng.choice((info.compress_type, 0, 8)))
    return name, packed.getvalue()


def _place(contents: bytes, rng: random.Random) -> int:
    """Somewhere; half of the time near the beginning or the end, where a file's structure is."""
    near = min(len(contents), 2000)
    return rng.choice(
        (rng.randrange(len(contents) or 1), rng.randrange(len(contents) or 1), rng.randrange(near or 1),
         len(contents) - 1 - rng.randrange(near or 1))
    )  # fmt: skip


def _bits(contents: bytes, rng: random.Random) -> bytes:
    changed = bytearray(contents or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[_place(contents, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(contents: bytes, rng: random.Random) -> bytes:
    return contents[: _place(contents, rng)]


def _splice(contents: bytes, rng: random.Random) -> bytes:
    start, length, to = _place(contents, rng), rng.randrange(1, 200), _place(contents, rng)
    return contents[:to] + contents[start : start + length] + contents[to + rng.choice((0, length)) :]


def _numbers(contents: bytes, rng: random.Random) -> bytes:
    width, at = rng.choice((1, 2, 4, 8)), _place(contents, rng)
    number = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1), (1 << 8 * width) // 5))
    return contents[:at] + number.to_bytes(width, "little") + contents[at + width :]


def _instructions(contents: bytes, rng: random.Random) -> bytes:
    """Replaces, doubles, removes or swaps instructions of the pickle (of a legacy file, its fourth)."""
    start = 0
    places: list[int] = []
    for _ in range(5):
        try:
            mine = [place for _, _, place in pickletools.genops(contents[start : start + MIB])]
        except Exception:
            break
        places += [start + place for place in mine]
        start = places[-1] + 1
        if not contents.startswith(b"\x80", start):
            break
    if len(places) < 3:
        return _bits(contents, rng)
    for _ in range(rng.choice((1, 1, 3))):
        index = rng.randrange(len(places) - 1)
        at, after = places[index], places[index + 1]
        other = rng.randrange(len(places) - 1)
        instruction = contents[places[other] : places[other + 1]]
        code = ord(rng.choice(pickletools.opcodes).code)
        contents = rng.choice(
            (
                contents[:at] + bytes([code]) + contents[at + 1 :],
                contents[:at] + instruction + contents[after:],
                contents[:at] + instruction + contents[at:],
                contents[:at] + contents[after:],
            )
        )
        places = [place for place in places if place < len(contents)]
        if len(places) < 3:
            break
    return contents


def _header(contents: bytes, rng: random.Random) -> bytes:
    """Changes the header of a safetensors file and keeps its size right."""
    end = 8 + int.from_bytes(contents[:8], "little")
    header = rng.choice((_bits, _splice, _numbers, _digits))(contents[8:end], rng)
    return len(header).to_bytes(8, "little") + header + contents[end:]


def _digits(contents: bytes, rng: random.Random) -> bytes:
    places = [place for place, byte in enumerate(contents) if byte in b"0123456789"]
    at = rng.choice(places)
    return contents[:at] + rng.choice((b"0", b"9", b"99999999999", b"-1", b"1e9")) + contents[at + 1 :]


# Children


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a child fared that read a file.

    Attributes:
      kind: "refused", "read", or a fault: "crash", "hang", "memory", "foreign memory", "other error".
      text: the message.
      seconds: it took.
      megabytes: of memory, beyond what it began with.
    """

    kind: str
    text: str
    seconds: float
    megabytes: float

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("refused", "read")


def read_in_child(path: Path, *, memory: int = MEMORY, seconds: int = SECONDS) -> Outcome:
    """Reads a file in a child with so much more memory than this process has, and so much time."""
    receive, send = os.pipe()
    begun = time.monotonic()
    child = os.fork()
    if not child:
        try:
            os.close(receive)
            signal.alarm(seconds)  # by default it kills
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            most = _virtual() + memory
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            os.write(send, f"{_resident():.1f}\n".encode())
            os.write(send, _read(path).encode(errors="replace")[:2000])
        finally:
            os._exit(0)
    os.close(send)
    said = b""
    while chunk := os.read(receive, 4096):
        said += chunk
    os.close(receive)
    _, status, usage = os.wait4(child, 0)
    took = time.monotonic() - begun
    before, _, rest = said.decode(errors="replace").partition("\n")
    kind, _, text = rest.partition("\n")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind, text = ("hang" if number == signal.SIGALRM else "crash"), signal.Signals(number).name
    return Outcome(kind or "crash", text, took, max(0.0, usage.ru_maxrss / 1024 - float(before)))


def _read(path: Path) -> str:
    try:
        contents = torch_files.read(path)
        torch_files.read_metadata(path)
        if path.suffix == ".npz":
            npz.read(path)
    except ValueError as error:
        return f"refused\n{error}"
    except OSError as error:
        return f"{'memory' if 'memory' in str(error) else 'other error'}\n{error}"
    except BaseException as error:
        return f"other error\n{type(error).__name__}: {error}"
    raw = [path.read_bytes()]
    if raw[0].startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with contextlib.suppress(Exception):  # one that was damaged, and not needed
                    raw.append(archive.read(name))
    strangers = [name for name, array in arrays_in(contents) if not is_from(array, raw)]
    return f"foreign memory\n{strangers[:5]}" if strangers else f"read\n{len(contents)} entries"


def arrays_in(contents: dict[Any, Any], before: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in contents.items():
        if isinstance(value, np.ndarray):
            yield f"{before}{name}", value
        elif isinstance(value, dict):
            yield from arrays_in(value, f"{before}{name}.")


def is_from(array: np.ndarray, raw: Iterable[bytes]) -> bool:
    """Whether every number of an array is somewhere in some bytes."""
    raw = list(raw)
    variants = [array, array.byteswap()] if array.dtype.kind in "iufc" else [array]
    if array.dtype == np.float32:
        bits = np.ascontiguousarray(array).view(np.uint32)
        if not (bits & 0xFFFF).any():  # perhaps it was bfloat16
            upper = (bits >> 16).astype(np.uint16)
            variants += [upper, upper.byteswap()]
    if not array.size or any(variant.tobytes() in data for variant in variants for data in raw):
        return True
    return any(
        all(number.tobytes() in data for number in np.unique(variant)) for variant in variants for data in raw
    )


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _virtual() -> int:
    return _status("VmSize") * 1024


def _resident() -> float:
    return _status("VmRSS") / 1024


def fuzz(
    files: dict[str, bytes], count: int, folder: Path, *, seed: int = 0, keep: Path | None = None
) -> dict[tuple[str, str], collections.Counter[str]]:
    """Mutates files `count` times in all; the outcomes' kinds by file and mutation.

    Files that did harm are kept in `keep`.
    """
    tally: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for number in range(count):
        name = sorted(files)[number % len(files)]
        way, contents = mutated(files[name], random.Random(f"{seed} {number}"))
        path = folder / f"mutant{Path(name).suffix}"
        path.write_bytes(contents)
        outcome = read_in_child(path)
        tally[name, way][outcome.kind] += 1
        if outcome.is_fault and keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{seed}-{number}-{name}").write_bytes(contents)
            (keep / f"{seed}-{number}-{name}.txt").write_text(f"{way}: {outcome}\n")
    return dict(tally)
