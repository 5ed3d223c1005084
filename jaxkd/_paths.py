"""The folder for files that can be recomputed or downloaded again."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/jaxkd`, by default `~/.cache/jaxkd`.

    A user without a home folder, as in containers with random user ids, gets one in the folder of temporary
    files, in which no other user may write.

    Raises:
      OSError: that folder belongs to another user.
    """
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "jaxkd"
    with contextlib.suppress(RuntimeError):  # of a user whom the system does not know
        folder = Path.home() / ".cache" / "jaxkd"
        if folder.is_absolute() and _is_usable(folder):
            return folder
    folder = Path(tempfile.gettempdir()) / f"jaxkd-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"there is no home folder, and others may write in {folder}; set XDG_CACHE_HOME to a folder of "
            "your own"
        )
    return folder


def _is_usable(folder: Path) -> bool:
    """Whether a folder is there, or may be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there == folder or (there.is_dir() and os.access(there, os.W_OK | os.X_OK))
