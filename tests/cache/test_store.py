"""The store of a teacher's logits: rows come back, damage is found, what was cut off is not there."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.cache.store import DTYPES, CacheKey, TeacherCache

KEY = CacheKey("a1", "resnet8", (0.5, 0.4), (0.2, 0.25), "train", "b2", 10, 3, "crop")


def rows_of(codes: np.ndarray, dtype: str = "float32") -> np.ndarray:
    return np.asarray(jnp.asarray(np.stack([codes, codes / 7, -codes], axis=-1), dtype))


def filled(folder: Path, *runs: list[int], dtype: str = "float32") -> TeacherCache:
    cache = TeacherCache.create(folder, KEY, dtype)
    with cache.writing():
        for run in runs:
            codes = np.array(run)
            cache.append(codes, rows_of(codes, dtype))
    return cache


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back(tmp_path: Path, dtype: str) -> None:
    made = filled(tmp_path, [5, 2, 9], [100, 7], dtype=dtype)
    for cache in (made, TeacherCache(tmp_path, KEY)):
        assert len(cache) == 5
        assert cache.dtype == dtype
        assert cache.num_bytes == 5 * 3 * np.dtype(dtype).itemsize
        wanted = np.array([[7, 100], [2, 7]])
        np.testing.assert_array_equal(cache.fetch(cache.locate(wanted))[0], rows_of(wanted, dtype))
        assert cache.missing(np.array([8, 5, 1, 8])).tolist() == [1, 8]
        with pytest.raises(ValueError, match="lacks 2 of 3 views"):
            cache.locate(np.array([1, 5, 8]))


def test_an_empty_cache_lacks_everything(tmp_path: Path) -> None:
    TeacherCache.create(tmp_path, KEY)
    cache = TeacherCache(tmp_path, KEY)
    assert (len(cache), cache.dtype, cache.num_bytes) == (0, "float16", 0)
    assert cache.missing(np.array([3, 1])).tolist() == [1, 3]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheKey)])
def test_a_cache_of_anything_else_is_refused(tmp_path: Path, field: str) -> None:
    filled(tmp_path, [1])
    value = getattr(KEY, field)
    other = {str: "other", int: 77, tuple: (0.1, 0.1)}[type(value)]
    changed = dataclasses.replace(KEY, **{field: other})
    assert changed.digest != KEY.digest
    with pytest.raises(ValueError, match=rf"does not fit; different: {field} \(there .*, here .*jaxkd cache"):
        TeacherCache(tmp_path, changed)


def test_another_precision_or_format_and_no_cache_are_refused(tmp_path: Path) -> None:
    filled(tmp_path / "there", [1])
    with pytest.raises(ValueError, match="holds float32, not float16"):
        TeacherCache.create(tmp_path / "there", KEY, "float16")
    with pytest.raises(FileNotFoundError, match=r"no teacher cache in .*build one with `jaxkd cache`"):
        TeacherCache(tmp_path / "absent", KEY)
    for contents, message in (
        ("{}", "checksum mismatch"),
        ("[]", "holds no object but a list"),
        ("[" * 100_000, "it is not JSON"),
        ('{"format": 1, "key": {}, "dtype": "float16"}', "has format 1, not 3; move"),
    ):
        (tmp_path / "there" / "cache.json").write_text(contents)
        with pytest.raises(ValueError, match=message):
            TeacherCache(tmp_path / "there", KEY)


def test_every_flipped_bit_of_cache_json_is_found(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    file = tmp_path / "cache.json"
    good = file.read_bytes()
    for bit in range(8 * len(good)):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"cache\.json"):
            TeacherCache(tmp_path, KEY)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("damage", ["lost", "flipped", "nested"])
def test_a_lost_or_damaged_cache_json_is_made_again(
    tmp_path: Path, dtype: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, [5, 2, 9], [7], dtype=dtype)
    file = tmp_path / "cache.json"
    if damage == "lost":
        file.unlink()
    else:
        file.write_bytes(
            b"[" * 100_000 if damage == "nested" else file.read_bytes().replace(b"0.25", b"0.35")
        )
    with pytest.raises((FileNotFoundError, ValueError), match=r"cache\.json.*`jaxkd cache`"):
        TeacherCache(tmp_path, KEY)
    cache = TeacherCache.create(tmp_path, KEY)
    assert "it was rebuilt" in caplog.text
    assert (len(cache), cache.dtype) == (4, dtype)
    wanted = np.array([7, 5])
    np.testing.assert_array_equal(cache.fetch(cache.locate(wanted))[0], rows_of(wanted, dtype))
    assert len(TeacherCache(tmp_path, KEY)) == 4


def test_rows_are_not_taken_for_those_of_another_teacher(tmp_path: Path) -> None:
    """Before, a cache without its cache.json was adopted by whoever came first."""
    filled(tmp_path, [5, 2, 9])
    (tmp_path / "cache.json").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="rows there do not belong to this teacher and these data"):
        TeacherCache.create(tmp_path, dataclasses.replace(KEY, teacher="b1"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["codes.bin", "logits.bin", "segments.jsonl"])
def test_a_damaged_segment_is_named_left_out_and_replaced(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, [1, 2, 3], [4, 5], [6])
    contents = bytearray((tmp_path / name).read_bytes())
    contents[len(contents) * 9 // 20] ^= 4  # in the second segment's digest, or in the first's rows
    (tmp_path / name).write_bytes(contents)
    with caplog.at_level(logging.WARNING):
        cache = TeacherCache(tmp_path, KEY)
    number = 1 if name == "segments.jsonl" else 0
    assert f"skipping segment {number} of the teacher cache {tmp_path}" in caplog.text
    lost = np.array([[1, 2, 3], [4, 5]][number])
    assert cache.missing(np.arange(1, 7)).tolist() == lost.tolist()
    with cache.writing():
        cache.append(lost, rows_of(lost))
    caplog.clear()
    for whole in (cache, TeacherCache(tmp_path, KEY)):
        np.testing.assert_array_equal(whole.fetch(whole.locate(np.arange(1, 7)))[0], rows_of(np.arange(1, 7)))
    assert not caplog.text


def test_files_of_someone_else_are_not_cut(tmp_path: Path) -> None:
    for name in ("codes.bin", "logits.bin"):
        (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"codes\.bin and logits\.bin, which are not of a teacher cache"):
        TeacherCache.create(tmp_path, KEY)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "codes.bin": b"precious", "logits.bin": b"precious"
    }  # fmt: skip


def test_what_cannot_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path, [1, 2, 3])

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(np, "fromfile", fail)
        with pytest.raises(OSError, match="too many open files"), cache.writing():
            pass
    assert len(TeacherCache(tmp_path, KEY)) == 3


def test_a_line_with_more_rows_than_there_are_is_left_out(tmp_path: Path) -> None:
    filled(tmp_path, [1, 2, 3], [4])
    lines = (tmp_path / "segments.jsonl").read_text().splitlines()
    many = {**json.loads(lines[1]), "rows": 4_000_000_000_000}
    (tmp_path / "segments.jsonl").write_text(f"{lines[0]}\n{json.dumps(many)}\n")
    assert len(TeacherCache(tmp_path, KEY)) == 3


@pytest.mark.parametrize("lost", ["line", "rows and line", "half of the rows, though the line is there"])
def test_what_a_killed_writer_left_behind_does_not_count(tmp_path: Path, lost: str) -> None:
    filled(tmp_path, [1, 2, 3])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    filled(tmp_path, [4, 5])
    if lost.startswith("half"):
        (tmp_path / "logits.bin").write_bytes((tmp_path / "logits.bin").read_bytes()[:-12])
    else:
        (tmp_path / "segments.jsonl").write_bytes((tmp_path / "segments.jsonl").read_bytes()[:-9])
        if lost == "rows and line":
            (tmp_path / "logits.bin").write_bytes(before["logits.bin"] + b"1234567")
    cache = TeacherCache(tmp_path, KEY)
    assert cache.missing(np.arange(1, 6)).tolist() == [4, 5]
    filled(tmp_path, [5, 4, 6])
    cache = TeacherCache(tmp_path, KEY)
    assert len(cache) == 6
    np.testing.assert_array_equal(cache.fetch(cache.locate(np.arange(1, 7)))[0], rows_of(np.arange(1, 7)))


def test_only_one_process_writes_and_rows_must_fit(tmp_path: Path) -> None:
    cache, other = filled(tmp_path, [1]), TeacherCache(tmp_path, KEY)
    with (
        cache.writing(),
        pytest.raises(ValueError, match="another process is filling the teacher cache"),
        other.writing(),
    ):
        pass
    with cache.writing():
        for wrong in (rows_of(np.arange(2)), rows_of(np.arange(1), "float16")):
            with pytest.raises(ValueError, match=r"logits must be float32 \[1, 3\], got"):
                cache.append(np.arange(1), wrong)
