"""Where things that can be made again are kept, also for a user without a home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jaxkd import _paths, cli


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whom the system does not know, and where temporary files go."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAXKD_TEACHERS", raising=False)
    monkeypatch.setattr(_paths.Path, "home", home)
    monkeypatch.setattr(_paths.tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"jaxkd-{os.geteuid()}"


def test_a_home_or_a_name_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _paths.cache_folder() == tmp_path / "cache" / "jaxkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _paths.cache_folder() == tmp_path / ".cache" / "jaxkd"


def test_a_user_without_a_home_has_a_folder_of_their_own(
    homeless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: a traceback from every command."""
    cli.main(["teachers"])
    assert f"1 teacher(s), in {homeless}/teachers and in the package" in capsys.readouterr().out
    assert homeless.stat().st_mode & 0o777 == 0o700


def test_a_home_where_nothing_can_be_made_is_none(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As / in containers, or a file."""
    (tmp_path / "file").write_text("")
    for home in ("relative", tmp_path / "file"):
        monkeypatch.setattr(_paths.Path, "home", lambda home=home: Path(home))
        assert _paths.cache_folder() == homeless


@pytest.mark.parametrize("kind", ["a link", "open to others", "a file"])
def test_a_folder_that_others_may_have_made_is_refused(homeless: Path, tmp_path: Path, kind: str) -> None:
    """Compiled programs lie there."""
    if kind == "a link":
        (tmp_path / "theirs").mkdir()
        homeless.symlink_to(tmp_path / "theirs")
    elif kind == "a file":
        homeless.write_text("")
    else:
        homeless.mkdir()
        homeless.chmod(0o777)
    with pytest.raises(OSError, match="set XDG_CACHE_HOME to a folder of your own"):
        _paths.cache_folder()
