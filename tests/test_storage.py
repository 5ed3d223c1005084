"""Files and folders: whole or not at all, whatever moment a process is killed at."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from jaxkd import storage


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    for word in ("old", "new"):
        with storage.replacing(folder) as fresh:
            (fresh / word).write_text(word)
    assert contents(folder) == {"new": "new"}
    with pytest.raises(NotADirectoryError), storage.replacing(folder) as fresh:
        ((fresh / "half").write_text("half"), (fresh / "half" / "more").touch())
    assert contents(folder) == {"new": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


class Killed(BaseException):
    pass


def test_a_kill_at_any_rename_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL runs no handlers: the n-th rename or removal and all that come after it do not happen."""
    outcomes = []
    for survived in range(5):
        folder = tmp_path / str(survived) / "teacher"
        with storage.replacing(folder) as fresh:
            (fresh / "old").write_text("old")
        with monkeypatch.context() as patch:
            left = survived

            def dying(real):  # type: ignore[no-untyped-def]
                def call(*arguments, **options):  # type: ignore[no-untyped-def]
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise Killed
                    return real(*arguments, **options)

                return call

            patch.setattr(Path, "rename", dying(Path.rename))
            patch.setattr(storage.shutil, "rmtree", dying(storage.shutil.rmtree))
            try:
                with storage.replacing(folder) as fresh:
                    (fresh / "new").write_text("new")
            except Killed:
                pass
        storage.recover(folder)
        storage.remove_unfinished(folder.parent)
        found = contents(folder)
        assert found in ({"old": "old"}, {"new": "new"})
        outcomes.append(next(iter(found)))
        with storage.replacing(folder) as fresh:
            (fresh / "last").write_text("last")
        assert contents(folder) == {"last": "last"}
        assert [path.name for path in folder.parent.iterdir()] == ["teacher"]
    assert outcomes[:2] == ["old", "old"]
    assert outcomes[-1] == "new"


def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_text(tmp_path / "words", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_text(tmp_path / "words", "new")
    assert contents(tmp_path) == {"words": "old"}


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"seed": \xff')
    with pytest.raises(storage.DamagedError, match=r"a\.json is damaged: it is not JSON"):
        storage.read_json(tmp_path / "a.json")


def test_a_tree_comes_back_with_and_without_its_structure(tmp_path: Path) -> None:
    tree = {"a": np.arange(3, dtype=np.float32), "b": {"c": np.int32(2), "empty": {}}}
    digest = storage.save_tree(tmp_path / "tree", tree)
    for like in (tree, None):
        back = storage.load_tree(tmp_path / "tree", like, digest)
        np.testing.assert_array_equal(back["a"], tree["a"])
        assert (back["b"]["c"], back["b"]["empty"]) == (2, {})


def test_threads_may_save_at_the_same_time(tmp_path: Path) -> None:
    """Orbax alone takes one thread's signals for another's, and waits for ever or fails."""
    failures: list[BaseException] = []

    def save_some(name: int) -> None:
        try:
            for number in range(10):
                storage.save_tree(tmp_path / f"{name}-{number}", {"a": np.full(1000, name)})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=save_some, args=(name,), daemon=True) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
