"""Files and folders in a bucket: whole or not at all, one writer at a time, whatever the store does."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator (pip install '.[test]')")

from bucket_server import refusing_after

from jaxkd.files import leases, places, whole
from jaxkd.files.leases import Lease
from jaxkd.files.places import BucketPath, is_remote, place
from jaxkd.options import as_type

BOX = "gs://kd-bucket/there/box"


def test_a_place_is_a_path_of_this_machine_or_of_a_bucket() -> None:
    assert place("runs/a") == Path("runs/a")
    assert not is_remote("runs/a")
    folder = place("gs://kd-bucket/runs/a/")
    assert (str(folder), folder.name, str(folder.parent)) == (
        "gs://kd-bucket/runs/a",
        "a",
        "gs://kd-bucket/runs",
    )
    assert is_remote(folder)
    assert is_remote("gs://kd-bucket")
    assert str(folder / "b" / "c.json") == "gs://kd-bucket/runs/a/b/c.json"
    assert str(folder.with_name("a-seed1")) == "gs://kd-bucket/runs/a-seed1"
    assert (folder.absolute(), folder.resolve(), place(folder)) == (folder, folder, folder)
    assert isinstance(folder, BucketPath)
    assert (folder.bucket, folder.key) == ("kd-bucket", "runs/a")
    # What command lines and `Path` make of it.
    assert str(place(Path("gs://kd-bucket/runs/a"))) == "gs://kd-bucket/runs/a"
    assert str(as_type("--run", Path("gs://kd-bucket/a"), Path)) == "gs://kd-bucket/a"


@pytest.mark.parametrize("address", ["s3://bucket/a", "az://bucket/a", "https://example.org/a"])
def test_other_stores_are_refused_by_name(address: str) -> None:
    with pytest.raises(ValueError, match=rf"--run: {address}.* accepted"):
        as_type("--run", Path(address), Path | None)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [place(path) for path in ("~/runs/a", "~", "a/~", "~a")] == [
        tmp_path / "runs" / "a", tmp_path, Path("a/~"), Path("~a")
    ]  # fmt: skip


def test_a_bucket_has_to_be_named() -> None:
    with pytest.raises(ValueError, match=r"--run: gs:// names no bucket; accepted is gs://BUCKET/FOLDER"):
        as_type("--run", "gs://", Path | None)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("google") else known(name)
    )
    monkeypatch.setattr(places, "_CLIENTS", {})
    with pytest.raises(
        ImportError, match=r"google.cloud.storage; type: pip install 'jaxkd-distillation\[gcs\]'"
    ):
        place(BOX).read_bytes()


def test_objects_are_like_files(server: Any) -> None:
    file = place("gs://kd-bucket/a/b.txt")
    assert not file.exists()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    whole.write_text(file, "grüße")
    assert file.read_text() == "grüße"
    assert (file.is_file(), file.is_dir(), file.parent.is_dir(), file.parent.is_file()) == (
        True,
        False,
        True,
        False,
    )
    assert file.stat().st_size == 7
    assert list(place("gs://kd-bucket/a").iterdir()) == [file]
    assert [path.name for path in place("gs://kd-bucket").iterdir()] == ["a"]
    with file.open("rb") as opened:
        assert opened.read(2) == b"gr"
    file.rename("gs://kd-bucket/a/c.txt")
    assert server.names() == ["a/c.txt"]


def fill(folder: Path, word: str, replaceable: bool = True) -> None:
    """Writes three files, the last of which names the others' contents."""
    with whole.replacing(folder, lambda _: replaceable) as new:
        (new / "parts").mkdir()
        for part in ("a", "b"):
            (new / "parts" / part).write_text(f"{word} {part}")
        (new / "about").write_text(word)


def contents(folder: Path) -> str:
    """The word of `fill`, if all three files have it."""

    def read(there: Path) -> str:
        word = (there / "about").read_text()
        parts = {part: (there / "parts" / part).read_text() for part in ("a", "b")}
        if parts != {part: f"{word} {part}" for part in parts}:
            raise ValueError(f"not whole: {word} {parts}")
        return word

    return whole.reading(folder, read)


def test_a_folder_is_written_and_replaced(server: Any) -> None:
    fill(place(BOX), "one", replaceable=False)
    assert contents(place(BOX)) == "one"
    fill(place(BOX), "two")
    assert contents(place(BOX)) == "two"
    assert server.names() == ["there/box/about", "there/box/parts/a", "there/box/parts/b"]
    assert whole.names_in(place("gs://kd-bucket/there")) == ["box"]


def test_something_else_stays(server: Any) -> None:
    place(BOX).joinpath("photos", "cat.png").write_bytes(b"meow")
    with pytest.raises(
        ValueError, match=r"there/box holds something else \(photos\), and nothing was changed"
    ):
        fill(place(BOX), "one", replaceable=False)
    place("gs://kd-bucket/there/file").write_bytes(b"")
    with pytest.raises(ValueError, match="there/file is a file"):
        fill(place("gs://kd-bucket/there/file"), "one")
    assert server.names() == ["there/box/photos/cat.png", "there/file"]


def test_a_block_that_fails_leaves_the_folder_as_it_was(server: Any) -> None:
    fill(place(BOX), "one")
    with contextlib.suppress(KeyError), whole.replacing(place(BOX), lambda _: True) as new:
        (new / "about").write_text("two")
        raise KeyError
    assert contents(place(BOX)) == "one"
    assert len(server.names()) == 3


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", [None, "old"])
def test_cut_off_at_any_request_it_is_whole(
    server: Any, before: str | None, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old or new for readers; the next writer clears up, and never takes what is unfinished for whole."""
    monkeypatch.setattr(leases, "SECONDS", 0.2)
    for count in range(0, 100, step):
        folder = place(f"gs://kd-bucket/{before}/{count}/box")
        if before:
            fill(folder, before)
        with server.failing(refusing_after(count)):
            try:
                fill(folder, "new")
                done = True
            except PermissionError:
                done = False
        try:
            assert contents(folder) in {before, "new"} - {None}
        except FileNotFoundError:
            assert before is None
            assert whole.names_in(folder.parent) == []
        fill(folder, "newer")
        assert contents(folder) == "newer"
        assert sorted(folder.parent.objects()) == ["box/about", "box/parts/a", "box/parts/b"]
        if done:
            break
    assert 10 < count < 60


def test_what_killed_writers_left_is_removed(server: Any) -> None:
    for count in (4, 6, 7, 8, 10):
        folder = place(f"gs://kd-bucket/all/{count}")
        with server.failing(refusing_after(count)), pytest.raises(PermissionError):
            fill(folder, "new")
    place("gs://kd-bucket/all/other.txt").write_bytes(b"mine")
    parent = place("gs://kd-bucket/all")
    whole.remove_unfinished(parent)
    assert not [name for name in parent.objects() if "jaxkd" in name]
    assert place("gs://kd-bucket/all/other.txt").exists()
    for name in whole.names_in(parent):
        assert contents(parent / name) == "new"


def test_a_reader_meets_a_replacement(server: Any) -> None:
    folder, seen = place(BOX), []
    fill(folder, "0")
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(contents(folder))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 6):
        fill(folder, str(number))
    done.set()
    reader.join()
    assert seen == sorted(seen)
    assert len(seen) > 5


def test_a_lease_keeps_others_out_while_its_holder_lives(server: Any) -> None:
    first = Lease(place(BOX) / ".lock", BOX)
    with pytest.raises(ValueError, match=rf"another process is working on {BOX}: process \d+ on "):
        Lease(place(BOX) / ".lock", BOX)
    first.close()
    Lease(place(BOX) / ".lock", BOX).close()
    assert server.names() == []


def test_a_lease_that_was_left_is_taken_over_after_its_time(server: Any) -> None:
    first = Lease(place(BOX) / ".lock", BOX)
    first._closed.set()  # the heart stops
    first._thread.join()
    said: list[str] = []
    start = time.monotonic()
    second = Lease(place(BOX) / ".lock", BOX, say=said.append)
    assert 1.0 < time.monotonic() - start < 10
    assert "watching" in said[0]
    with pytest.raises(OSError, match="was taken over by process"):
        first.require()
    first.close()  # of what it does not hold, it removes nothing
    second.require()
    second.close()
    assert server.names() == []


@pytest.mark.parametrize("beats", [False, True])
def test_a_lease_survives_lost_answers(server: Any, beats: bool) -> None:
    """What was written though the answer was lost is its own, and not another's."""
    lost = [0]

    def lose(method: str, path: str, query: dict[str, str]) -> bool:
        if method == "POST" and (query["ifGenerationMatch"] != "0") == beats and not lost[0]:
            lost[0] += 1
            return True
        return False

    server.lost = lose
    lease = Lease(place(BOX) / ".lock", BOX)
    lease.require()
    lease.require()
    assert lost == [1]
    lease.close()
    assert server.names() == []


def test_a_lease_is_closed_though_its_last_heartbeat_had_no_answer(server: Any) -> None:
    lease = Lease(place(BOX) / ".lock", BOX)
    lease._closed.set()
    lease._thread.join()
    place(f"{BOX}/.lock").put(lease._contents)
    lease.close()
    assert server.names() == []


def test_a_missing_bucket_is_no_missing_file(server: Any) -> None:
    absent = place("gs://kd-absent/a")
    for ask in (absent.read_bytes, absent.exists, absent.is_dir, lambda: absent.put(b"")):
        with pytest.raises(
            OSError, match="there is no bucket kd-absent; make it with `gcloud storage"
        ) as said:
            ask()
        assert not isinstance(said.value, FileNotFoundError)


def test_a_store_that_refuses_is_named_with_the_remedy(server: Any) -> None:
    with server.failing(lambda *_: 403):
        with pytest.raises(PermissionError, match="role Storage Object Admin on the bucket kd-bucket"):
            place(BOX).put(b"")
        with pytest.raises(PermissionError):
            place(BOX).exists()


def test_a_store_that_fails_and_comes_back_is_waited_for(server: Any) -> None:
    place(BOX).put(b"one")
    server.stop()
    threading.Timer(1.0, server.start).start()
    assert place(BOX).read_bytes() == b"one"
    busy = [503, 429, None]
    with server.failing(lambda *_: busy.pop(0) if busy else None):
        place(BOX).put(b"two")
    assert server.contents("there/box") == b"two"


def test_a_store_that_does_not_come_back_is_an_error(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RETRY_SECONDS", 1.0)
    server.stop()
    with pytest.raises(OSError, match=r"the store failed for 1 seconds \(.*there/box"):
        place(BOX).put(b"one")


def test_an_answer_that_takes_too_long_is_asked_for_again(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_REQUEST_SECONDS", 0.5)
    waits = [1.5, 0.0]
    with server.failing(lambda *_: time.sleep(waits.pop(0) if waits else 0.0)):
        place(BOX).put(b"one")
    assert place(BOX).read_bytes() == b"one"


def test_damage_on_the_way_is_not_believed(server: Any) -> None:
    place(BOX).put(b"one")
    server.storage.objects["kd-bucket"]["there/box"]["crc32c"] = "AAAAAA=="
    with pytest.raises(OSError, match="the store failed"):
        place(BOX).read_bytes()
