"""Files and folders: whole or not at all, whatever moment a process is killed at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxkd import storage
from jaxkd.files import records, whole


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def holds_words(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {"old", "new", "last"}


def fill(folder: Path, word: str) -> None:
    with storage.replacing(folder, holds_words) as fresh:
        (fresh / word).write_text(word)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    for word in ("old", "new"):
        fill(folder, word)
    assert contents(folder) == {"new": "new"}
    with pytest.raises(NotADirectoryError), storage.replacing(folder, holds_words) as fresh:
        ((fresh / "half").write_text("half"), (fresh / "half" / "more").touch())
    assert contents(folder) == {"new": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_only_what_may_be_replaced_is(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    fill(folder, "old")  # an empty one may always be
    (folder / "thesis.tex").write_text("years")
    with pytest.raises(
        ValueError, match=r"holds something else \(old, thesis\.tex\), and nothing was changed"
    ):
        fill(folder, "new")
    assert contents(folder) == {"old": "old", "thesis.tex": "years"}
    # It came while the new one was being filled.
    other = tmp_path / "other"

    def come_late() -> None:
        with storage.replacing(other, holds_words) as fresh:
            (fresh / "new").write_text("new")
            other.mkdir()
            (other / "thesis.tex").write_text("years")

    with pytest.raises(ValueError, match="nothing was changed"):
        come_late()
    assert contents(other) == {"thesis.tex": "years"}
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        fill(tmp_path / "file", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "thesis"]


def test_a_neighbour_that_is_not_ours_stays(tmp_path: Path) -> None:
    """The old contents wait beside the new ones for a moment; what is there of another kind is not theirs."""
    fill(tmp_path / "teacher", "old")
    for name in (".teacher.old", ".teacher.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years")
    made_long_ago(tmp_path)
    fill(tmp_path / "teacher", "new")
    for name in (".teacher.old", ".teacher.new"):
        assert contents(tmp_path / name) == {"thesis.tex": "years"}


def test_of_a_link_its_target_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "real" / "teacher", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "teacher")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real" / "teacher") == {"new": "new"}
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["teacher"]


class Killed(BaseException):
    pass


def test_a_kill_at_any_rename_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL runs no handlers: the n-th rename or removal and all that come after it do not happen."""
    outcomes = []
    for survived in range(5):
        folder = tmp_path / str(survived) / "teacher"
        fill(folder, "old")
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
            patch.setattr(whole.shutil, "rmtree", dying(whole.shutil.rmtree))
            with contextlib.suppress(Killed):
                fill(folder, "new")
        before = sorted(path.name for path in folder.parent.iterdir())
        found = storage.reading(folder, contents)
        assert found in ({"old": "old"}, {"new": "new"})
        assert sorted(path.name for path in folder.parent.iterdir()) == before  # reading changes nothing
        assert whole.names_in(folder.parent) == ["teacher"]
        outcomes.append(next(iter(found)))
        made_long_ago(folder.parent)
        fill(folder, "last")
        assert contents(folder) == {"last": "last"}
        assert [path.name for path in folder.parent.iterdir()] == ["teacher"]
    assert outcomes[:2] == ["old", "old"]
    assert outcomes[-1] == "new"


def made_long_ago(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (0, 0))


WRITER = """
import sys, time
from pathlib import Path
from jaxkd.files import records, whole
end = time.monotonic() + float(sys.argv[2])
count = 0
while time.monotonic() < end:
    with whole.replacing(Path(sys.argv[1]), lambda folder: True) as new:
        for part in range(20):
            (new / str(part)).write_text(f"{sys.argv[3]} {count}")
    count += 1
print(count)
"""


def test_readers_beside_writers_always_see_one_whole_folder(tmp_path: Path) -> None:
    """Two processes replace a folder without a pause while this one reads it."""
    folder = tmp_path / "folder"
    with storage.replacing(folder, holds_words) as new:
        for part in range(20):
            (new / str(part)).write_text("first")

    def read(there: Path) -> str:
        words = {(there / str(part)).read_text() for part in range(20)}
        if len(words) != 1:
            raise ValueError("a mixture")
        return words.pop()

    command = [sys.executable, "-c", WRITER, str(folder), "2"]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    seen = set()
    reads = 0
    while any(writer.poll() is None for writer in writers):
        seen.add(storage.reading(folder, read))
        reads += 1
    saved = [int(writer.communicate()[0]) for writer in writers]
    assert all(writer.returncode == 0 for writer in writers)
    assert min(saved) > 0
    assert reads > 5
    assert len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_was_moved_aside_while_it_was_read_is_looked_for_again(tmp_path: Path) -> None:
    """Its name and times may be what they were: the writer is between its two renames."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "word").write_text("old")
    seen = []

    def read(there: Path) -> str:
        seen.append(there)
        if len(seen) == 1:
            before = there.stat()
            there.rename(tmp_path / ".folder.jaxkd-old")
            os.utime(tmp_path / ".folder.jaxkd-old", ns=(before.st_atime_ns, before.st_mtime_ns))
        return (there / "word").read_text()

    assert storage.reading(folder, read) == "old"
    assert seen == [folder, tmp_path / ".folder.jaxkd-old"]


def test_a_killed_writer_leaves_nothing_for_long(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from jaxkd.files import records, whole
os.fsync = lambda _: os.kill(os.getpid(), 9)
if sys.argv[2] == "file":
    whole.write_text(Path(sys.argv[1]), "half")
with whole.replacing(Path(sys.argv[1]), lambda _: True) as new:
    (new / "half").write_text("half")
"""
    for name, write in {
        "file": lambda: storage.write_text(tmp_path / "file", "whole"),
        "teacher": lambda: fill(tmp_path / "teacher", "new"),
    }.items():
        killed = subprocess.run([sys.executable, "-c", code, tmp_path / name, name], check=False)
        assert killed.returncode == -9
        assert len(list(tmp_path.glob(f".{name}.new-*"))) == 1
        write()  # it may be another's that is just beginning
        assert len(list(tmp_path.glob(f".{name}.new-*"))) == 1
        made_long_ago(tmp_path)
        write()
        assert [path.name for path in tmp_path.iterdir() if name in path.name] == [name]


def test_a_living_writer_is_let_alone(tmp_path: Path) -> None:
    with storage.replacing(tmp_path / "teacher", holds_words) as mine:
        (mine / "new").write_text("new")
        made_long_ago(tmp_path)
        fill(tmp_path / "teacher", "old")
        storage.remove_unfinished(tmp_path)
        assert mine.is_dir()
    assert contents(tmp_path / "teacher") == {"new": "new"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_umask_decides_on_permissions(tmp_path: Path, mask: int) -> None:
    code = """
import os, sys
from pathlib import Path
from jaxkd.files import records, whole
os.umask(int(sys.argv[2]))
whole.write_text(Path(sys.argv[1]) / "file", "text")
with whole.replacing(Path(sys.argv[1]) / "folder", lambda _: False) as new:
    (new / "word").write_text("word")
"""
    subprocess.run([sys.executable, "-c", code, tmp_path, str(mask)], check=True)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("name", ["a[b]", "[0]", "a*", "a?b", "a\\b", "*", "a b{c}"])
def test_paths_may_look_like_patterns(tmp_path: Path, name: str) -> None:
    (tmp_path / "0").mkdir()  # what the pattern [0] would find
    tree = {"w": np.arange(4.0)}
    for folder in (tmp_path / name / "tree", tmp_path / "plain" / name):
        digest = storage.save_tree(folder, tree)
        np.testing.assert_array_equal(storage.load_tree(folder, tree, digest)["w"], tree["w"])
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
        assert storage.file_digests(folder)


def test_a_temporary_folder_that_looks_like_a_pattern_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path / "t[m]p"))
    with pytest.raises(OSError, match="set TMPDIR to another"):
        storage.save_tree(tmp_path / "a[b]" / "tree", {"w": np.arange(4.0)})
    assert list((tmp_path / "a[b]").iterdir()) == []


def test_a_tree_is_saved_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="exists; a tree is saved in a new folder"):
        storage.save_tree(tmp_path / "tree", {"w": np.arange(4.0)})
    assert contents(tmp_path / "tree") == {"thesis.tex": "years"}


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
        records.parse(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(storage.DamagedError, match=r"a\.json is damaged: it is not JSON \(RecursionError"):
        records.parse(tmp_path / "a.json")


def test_a_tree_comes_back_with_and_without_its_structure(tmp_path: Path) -> None:
    tree = {"a": np.arange(3, dtype=np.float32), "b": {"c": np.int32(2), "empty": {}}}
    digest = storage.save_tree(tmp_path / "tree", tree)
    for like in (tree, None):
        back = storage.load_tree(tmp_path / "tree", like, digest)
        np.testing.assert_array_equal(back["a"], tree["a"])
        assert (back["b"]["c"], back["b"]["empty"]) == (2, {})


def test_another_tree_is_told_from_one_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = storage.save_tree(tmp_path / "tree", {"a": np.zeros(3, np.float32)})
    storage.check_files(tmp_path / "tree", storage.file_digests(tmp_path / "tree"))
    for like in ({"b": np.zeros(3, np.float32)}, {"a": np.zeros(4, np.float32)}):
        with pytest.raises(ValueError, match="holds other arrays than are asked for") as caught:
            storage.load_tree(tmp_path / "tree", like, digest, checked=True)
        assert not isinstance(caught.value, storage.DamagedError)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "_restore", fails)
    for checked in (True, False):
        with pytest.raises(OSError, match=r"cannot be restored now \(Input/output error\); nothing was"):
            storage.load_tree(tmp_path / "tree", None, digest, checked=checked)


def test_files_are_compared_before_anybody_reads_them(tmp_path: Path) -> None:
    storage.save_tree(tmp_path / "tree", {"a": np.zeros(3)})
    digests = storage.file_digests(tmp_path / "tree")
    os.mkfifo(tmp_path / "tree" / "pipe")
    for name in ("pipe", "../none", "/dev/zero"):  # the one would wait for ever, the other never end
        with pytest.raises(storage.DamagedError, match="is damaged: it is absent, or no file"):
            storage.check_files(tmp_path / "tree", {**digests, name: "0"})


def test_what_fails_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax closes the event loop at the first failure; each of the other reads then printed a traceback."""
    tree = {str(i): np.arange(1000.0 * (i + 1)) for i in range(20)}
    storage.save_tree(tmp_path / "tree", tree)
    max((tmp_path / "tree").rglob("d/*"), key=lambda path: path.stat().st_size).unlink()
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    for _ in range(5):
        with pytest.raises(storage.DamagedError, match="tree cannot be restored"):
            storage.load_tree(tmp_path / "tree", None)
    assert printed == []


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
