"""Folders in a bucket that are written whole or not at all; what `jaxkd.files.whole` does there.

A store has no rename and no locks.  What says that a folder is whole is the one object directly in it
(about.json of a checkpoint, teacher.json of a teacher), which holds the checksums of the others: it is
written last and removed first.  Beside a folder NAME there may be, while a process writes it or after it was
killed:

    .NAME.jaxkd-lock     the writer's lease
    .NAME.jaxkd-begun    there was nothing at NAME: what is there and not whole is what the writer left
    .NAME.jaxkd-new/     what is to take the place of a whole NAME; it counts from when it is whole itself
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxkd.files.leases import Lease
from jaxkd.files.places import BucketPath, each

_LOCK, _BEGUN, _NEW = ".jaxkd-lock", ".jaxkd-begun", ".jaxkd-new"
_WAIT_SECONDS = 60.0  # for another writer of the same folder


@contextlib.contextmanager
def replacing(folder: BucketPath, require_replaceable: Callable[[BucketPath], None]) -> Iterator[Path]:
    """See `jaxkd.files.whole.replacing`; what is filled is a folder of this machine, sent at the end.

    Killed at any moment, it leaves the old contents or the new, whole: at `folder`, or in `.NAME.jaxkd-new`,
    where readers and the next writer find them.
    """
    with contextlib.ExitStack() as stack:
        there = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxkd-")))
        lease = Lease(_beside(folder, _LOCK), str(folder), patience=_WAIT_SECONDS)
        stack.callback(lease.close)
        _recover(folder)
        require_replaceable(folder)
        new = there / folder.name
        new.mkdir()
        yield new
        if folder.is_dir():
            beside = _beside(folder, _NEW)
            _send(new, beside, lease)
            _settle(folder, beside)
        else:
            begun = _beside(folder, _BEGUN)
            begun.put(b"")
            try:
                _send(new, folder, lease)
            except BaseException:
                with contextlib.suppress(OSError):  # or the next writer does it
                    _recover(folder)
                raise
            begun.unlink(missing_ok=True)


def look(folder: BucketPath) -> tuple[BucketPath, tuple[tuple[str, int], ...] | None]:
    """Where a folder's contents are, and what tells them from others in their place; None if absent."""
    for there in (folder, _beside(folder, _NEW), folder):  # a writer may move them between two looks
        if files := there.direct()[0]:
            return there, tuple((name, held.generation) for name, held in sorted(files.items()))
    return folder, None


def names_in(parent: BucketPath) -> list[str]:
    """The names of the folders in `parent` that are whole, in order."""
    whole = {parts[0] for name in parent.objects() if len(parts := name.split("/")) == 2}
    between = {name[1:].removesuffix(_NEW) for name in whole if name.endswith(_NEW)}
    return sorted({name for name in whole if not name.startswith(".")} | between)


def remove_unfinished(parent: BucketPath) -> None:
    """Completes or removes what killed writers left in `parent`; no other process may be writing there."""
    files, folders = parent.direct()
    for name in sorted(files.keys() | folders):
        for ending in (_BEGUN, _NEW):
            if name.startswith(".") and name.endswith(ending):
                _recover(parent / name[1:].removesuffix(ending))
    for name in files:
        if name.startswith(".") and name.endswith(_LOCK):
            (parent / name).unlink(missing_ok=True)


def _recover(folder: BucketPath) -> None:
    """Ends what a writer had begun that was killed."""
    beside, begun = _beside(folder, _NEW), _beside(folder, _BEGUN)
    if beside.direct()[0]:
        _settle(folder, beside)
    else:
        beside.rmtree()
    if begun.held() is not None:
        if not folder.direct()[0]:
            folder.rmtree()
        begun.unlink(missing_ok=True)


def _settle(folder: BucketPath, beside: BucketPath) -> None:
    """Puts a whole folder in the place of another."""
    folder.rmtree()
    beside.copy_tree(folder)
    beside.rmtree()


def _send(new: Path, folder: BucketPath, lease: Lease) -> None:
    """Writes a folder of this machine, the file directly in it last."""
    files = [path for path in sorted(new.rglob("*")) if path.is_file()]
    first = [path for path in files if path.parent != new]
    last = [path for path in files if path.parent == new]
    if len(last) != 1:
        raise ValueError(f"a folder in a bucket needs one file directly in it, got {len(last)} for {folder}")

    def send(path: Path) -> None:
        (folder / path.relative_to(new).as_posix()).put(path.read_bytes())

    each(send, first)
    lease.require()
    send(last[0])


def _beside(folder: BucketPath, ending: str) -> BucketPath:
    return folder.parent / f".{folder.name}{ending}"
