"""Reads prepared TensorFlow Datasets folders without TensorFlow, and prepares them with it.

Decoding CIFAR's 60,000 PNGs takes half a minute, so the decoded arrays are kept in a cache folder
(`$XDG_CACHE_HOME/jaxkd`, by default `~/.cache/jaxkd`), under a name that changes with the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd._extras import DISTRIBUTION, require
from jaxkd._paths import cache_folder
from jaxkd.files import whole
from jaxkd.files.places import each, is_remote, place


def read_tfds(name: str, split: str, data_dir: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split of a TFDS image classification set.

    Args:
      name: the builder's name, such as "cifar100".
      split: "train" or "test".
      data_dir: the folder that holds the folder `name`; None for TFDS's own.

    Returns:
      Images, uint8 `[N, H, W, C]`, and labels, int32 `[N]`.

    Raises:
      FileNotFoundError: nothing is prepared there and it cannot be downloaded; the message says what to do.
    """
    builder, shards = _open(name, split, data_dir)
    cache = _cache_file(name, split, shards)
    if cache.is_file():
        with (
            contextlib.suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile),
            np.load(cache) as arrays,
        ):
            return arrays["images"], arrays["labels"]
    with _here(builder, split, shards) as source:
        images = np.empty((len(source), *source[0]["image"].shape), np.uint8)
        labels = np.empty(len(source), np.int32)
        for index in range(len(source)):
            example = source[index]
            images[index], labels[index] = example["image"], example["label"]
    _keep(cache, images, labels)
    return images, labels


@contextlib.contextmanager
def _here(builder: Any, split: str, shards: list[Path]) -> Iterator[Any]:
    """The examples of a split, for reading all of them: from a bucket, a request each would take an hour."""
    folder = place(builder.data_path)
    if not is_remote(folder):
        yield builder.as_data_source(split)
        return
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory(prefix="jaxkd-") as there:
        copy = Path(there).joinpath(*folder.parts[-2:])
        copy.mkdir(parents=True)
        about = [path for path in folder.iterdir() if path.suffix in (".json", ".txt")]
        each(lambda path: (copy / path.name).write_bytes(path.read_bytes()), [*about, *shards])
        yield tfds.builder_from_directory(copy).as_data_source(split)


def open_tfds(name: str, split: str, data_dir: str | Path | None) -> tuple[Any, str]:
    """Opens one split of a TFDS image classification set without reading it.

    Args and errors are those of `read_tfds`.

    Returns:
      The examples by index, each decoded when it is asked for; and a digest of the files' names and sizes.
    """
    builder, shards = _open(name, split, data_dir)
    facts = [(shard.name, shard.stat().st_size) for shard in shards]
    return builder.as_data_source(split), hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _open(name: str, split: str, data_dir: str | Path | None) -> tuple[Any, list[Path]]:
    """The set's builder and the files of a split, which are prepared if they are not there."""
    # TFDS logs, through absl, that it would decode faster with OpenCV.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if is_remote(data_dir):
        require("gcs", "gcsfs")
        os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow need not know buckets
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    folder, files = place(builder.data_path), f"{builder.name}-{split}.array_record-*"
    if not sorted(folder.glob(files)):
        _prepare(builder, name, split, folder)
    return builder, sorted(folder.glob(files))


def _prepare(builder, name: str, split: str, folder: Path) -> None:  # type: ignore[no-untyped-def]
    absent = f"no split {split!r} of {name} in {folder} (looked for {builder.name}-{split}.array_record-*)"
    remedy = "Pass --data-dir (data_dir=) the folder that holds a prepared one in array_record format"
    if importlib.util.find_spec("tensorflow") is None:
        raise FileNotFoundError(
            f"{absent}. {remedy}, or let TFDS download it: pip install '{DISTRIBUTION}[download]'"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise FileNotFoundError(
            f"{absent}, and downloading it failed ({type(error).__name__}: {error}). {remedy}, "
            "or try again where there is a network"
        ) from error


def _cache_file(name: str, split: str, shards: list[Path]) -> Path:
    facts = [(str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return cache_folder() / "data" / f"{name}-{split}-{digest}.npz"


def _keep(cache: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes the cache whole or not at all; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError), whole.writing(cache) as file:
        np.savez(file, images=images, labels=labels)
