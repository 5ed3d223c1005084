"""Any set of TensorFlow Datasets is read from a bucket as from a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tfds_folder

from jaxkd import data
from jaxkd.files.places import place


def test_a_small_set_of_a_bucket_is_the_one_of_a_disk(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gcsfs", reason="needs gcsfs (pip install '.[gcs]')")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tfds_folder.write_stock(tmp_path / "tfds", "tf_flowers", {"train": 20})  # no test split, and no one size
    for path in (tmp_path / "tfds").rglob("*"):
        if path.is_file():
            place(f"gs://kd-bucket/tfds/{path.relative_to(tmp_path / 'tfds')}").put(path.read_bytes())
    server.requests.clear()
    read = data.load("tf_flowers", data_dir="gs://kd-bucket/tfds", image_size=16)
    assert len(server.requests) < 60
    assert read.digest == data.load("tf_flowers", data_dir=tmp_path / "tfds", image_size=16).digest


def test_pictures_of_a_bucket_are_refused(server: Any) -> None:
    with pytest.raises(ValueError, match=r"must lie on this machine, got gs://kd-bucket/pets: copy it"):
        data.load("folder:gs://kd-bucket/pets")
