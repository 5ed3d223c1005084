"""Weight files that mean harm or are damaged: refused, or read correctly, within memory and time."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch_writer

from jaxkd.files import limits, npz, pickles
from jaxkd.teachers import torch_files

# Forking a process that has started JAX's threads may hang it: children are forked by one that has not.
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits and memory are Linux's")
SCRIPT = Path(__file__).parents[1] / "experiments" / "attacks" / "run.py"


def run_script(*arguments: object, seconds: int) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@LINUX
def test_attacks_are_refused_within_memory_and_time(tmp_path: Path) -> None:
    """Under half a gigabyte and 20 seconds each; before, they took up to 9 GB, a minute, or other memory."""
    table = run_script("--only", "weights", "--out", tmp_path, seconds=300)
    for name in hostile.ATTACKS:
        line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
        assert "| refused |" in line or name in ("huge_memo", "many_containers"), line


@LINUX
def test_mutated_files_do_no_harm(tmp_path: Path) -> None:
    table = run_script("--only", "mutations", "--mutations", 150, "--out", tmp_path, seconds=300)
    assert "150 mutations" in table
    assert "No crash, no hang" in table


@LINUX
@pytest.mark.slow
def test_thousands_of_mutated_files_do_no_harm(tmp_path: Path, shared_data: Path) -> None:
    arguments = (
        "--only",
        "mutations",
        "--mutations",
        3000,
        "--seed",
        1,
        "--published",
        shared_data / "teachers",
        "--out",
        tmp_path,
    )
    assert "No crash, no hang" in run_script(*arguments, seconds=3000)


@LINUX
@pytest.mark.slow
def test_records_places_and_users_do_no_harm(tmp_path: Path) -> None:
    assert "no traceback, no harm" in run_script(
        "--only", "records", "places", "--out", tmp_path, seconds=3000
    )


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("foreign_memory", "calls torch.FloatStorage with other arguments"),
        ("called_type", "calls torch.FloatStorage with other arguments"),
        ("changed_reader", r"sets attributes of something \(BUILD\)"),
        ("changed_defaults", r"sets attributes of something \(BUILD\)"),
        ("ring", "a container holds itself"),
        ("tuple_keys", "a tuple is the key of a dictionary"),
        ("deep_tuples", "nested deeper than 64"),
        ("endless_instructions", "more than 500,000 instructions"),
        ("shared_storage", "name more than 4 times the 8,000,000 bytes"),
        ("declared_npy", "declares 8,589,934,592 values of 8 bytes and holds 0 bytes"),
        ("overlapping_members", "members claim 1,048,588,800 bytes"),
    ],
)
def test_the_message_says_what_was_asked_for(tmp_path: Path, attack: str, message: str) -> None:
    path = hostile.ATTACKS[attack](tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=message):
        torch_files.read(path)


def test_a_file_changes_nothing_for_the_next(tmp_path: Path) -> None:
    good = torch_writer.save_zip(tmp_path / "good.pt", {"w": np.arange(3.0)})
    for attack in (hostile.changed_reader, hostile.changed_defaults, hostile.foreign_memory):
        with pytest.raises(ValueError, match="refused to read"):
            torch_files.read(attack(tmp_path / "evil.pt"))
        np.testing.assert_array_equal(torch_files.read(good)["w"], [0, 1, 2])


def test_instructions_that_weights_do_not_need_are_refused() -> None:
    for code in sorted({*range(256)} - {code[0] for code in pickles._OPCODES} - {ord(".")}):
        with pytest.raises(pickles.ForbiddenError, match=f"instruction {code:#04x}"):
            pickles.load(bytes([code]) + b"\0" * 20)


def test_every_instruction_on_an_empty_stack_is_an_error_of_ours() -> None:
    for code in range(256):
        for rest in (b"", b"\xff" * 12, b"0\n0\n", b"-1\n-1\n", b"(" * 3):
            with pytest.raises(ValueError):  # noqa: PT011 - any message
                pickles.load(bytes([code]) + rest)


def test_values_are_inert(tmp_path: Path) -> None:
    contents = torch_files.read(
        torch_writer.save_zip(tmp_path / "c.pt", torch_writer.checkpoint(np.random.default_rng(0)))
    )

    def check(value: object) -> None:
        if isinstance(value, dict):
            for part in value.values():
                check(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                check(part)
        else:
            assert type(value) in (int, float, str, bool, np.ndarray, pickles.Inert), value
            assert not isinstance(value, np.ndarray) or not value.dtype.hasobject

    check(contents)
    with pytest.raises(AttributeError):
        contents["device"].name = "other"


def test_a_mutation_is_the_same_each_time(tmp_path: Path) -> None:
    files = hostile.good_files(tmp_path, None)
    for name, contents in files.items():
        ways = {hostile.mutated(contents, random.Random(f"{name} {seed}"))[0] for seed in range(40)}
        assert len(ways) >= 5
        one, two = (hostile.mutated(contents, random.Random(7)) for _ in range(2))
        assert one == two


def test_foreign_numbers_are_noticed() -> None:
    own = np.arange(4, dtype=np.float32)
    assert hostile.is_from(own, [own.tobytes()])
    assert hostile.is_from(own[::-1], [own.tobytes()])
    assert not hostile.is_from(own + 0.1, [own.tobytes()])


def test_npz_reads_what_numpy_writes(tmp_path: Path) -> None:
    arrays = {
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "text": np.array(["cat", "dog"]),
        "empty": np.zeros((0, 3), np.uint8),
        "scalar": np.float32(2),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        read = npz.read(tmp_path / "a.npz")
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype
            assert read[name].flags.writeable
    np.savez(tmp_path / "o.npz", o=np.array([{}], object))
    with pytest.raises(
        ValueError, match=r"o\.npy is of type object; only arrays of numbers or text are read"
    ):
        npz.read(tmp_path / "o.npz")
    np.savez(tmp_path / "s.npz", s=np.zeros(2, [("a", "f4"), ("b", "i4")]))
    with pytest.raises(ValueError, match="only arrays of numbers or text are read"):
        npz.read(tmp_path / "s.npz")


def test_short_memory_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))

    def short(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(npz, "_array", short)
    for read in (torch_files.read, npz.read):
        with pytest.raises(OSError, match=r"there is not enough memory to read it.*a\.npz"):
            read(tmp_path / "a.npz")


def test_limits_are_published() -> None:
    text = (Path(__file__).parents[1] / "docs" / "teachers.md").read_text()
    for number in (
        limits.PICKLE_OPCODES, limits.UNROLLED_VALUES, limits.ZIP_MEMBERS, limits.NESTING,
        limits.UNPACKED_RATIO, limits.SHARED_RATIO, limits.SAFETENSORS_HEADER_BYTES // limits.MIB,
        limits.UNPACKED_BYTES // limits.MIB,
    ):  # fmt: skip
        assert f"{number:,}" in text
