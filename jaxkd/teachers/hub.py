"""Weights on the Hugging Face Hub, by owner and name, through Hugging Face's own client.

`hf:OWNER/NAME` is a repository, `hf:OWNER/NAME@REVISION` one revision of it, and `hf:OWNER/NAME/FILE` a file
in it.  The client caches its downloads (`$HF_HOME`), and then needs no network.  timm's `config.json`
describes the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxkd._extras import require
from jaxkd.files.limits import RECORD_BYTES

PREFIX = "hf:"
_FILES = ("model.safetensors", "pytorch_model.bin")
_ADDRESS = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w./-]+))?")

# timm's and torchvision's names of the supported architectures.
ARCHITECTURES = {
    "resnet18": "imagenet_resnet18",
    "resnet34": "imagenet_resnet34",
    "resnet50": "imagenet_resnet50",
}


def is_address(name: str | Path) -> bool:
    """Whether a name is an address on the Hub.

    >>> is_address("hf:timm/resnet18.a1_in1k"), is_address("teachers/hf")
    (True, False)
    """
    return str(name).startswith(PREFIX)


def local(name: str | Path) -> Path:
    """The local weights file for a name: downloaded, or from the client's cache; paths are unchanged.

    Raises:
      ImportError: the client is not installed.
      ValueError: the address is invalid.
      FileNotFoundError: the file is neither on the Hub nor in the cache.
    """
    if not is_address(name):
        return Path(name)
    if (parts := _ADDRESS.fullmatch(str(name))) is None:
        raise ValueError(f"{name} must be hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE")
    repo, revision = parts["repo"], parts["revision"]
    names = _FILES if parts["file"] is None else (parts["file"],)
    reasons = []
    for file in names:
        try:
            found = _download(repo, file, revision)
        except FileNotFoundError as error:
            reasons.append(str(error))
            continue
        if parts["file"] is None:
            _download(repo, "config.json", revision, optional=True)  # into the same folder
        return found
    raise FileNotFoundError(f"{name}: {'; '.join(reasons)}")


def beside(weights: Path) -> dict[str, Any] | None:
    """Reads timm's `config.json` beside a weights file, as fields of a description.

    Args:
      weights: the weights file.

    Returns:
      Model, number of classes, image shape, mean and standard deviation; None without such a file, or
        where the weights' file has another name than timm gives it.  An
      unsupported architecture keeps timm's name.

    Raises:
      ValueError: some of these are missing.
    """
    if weights.name not in _FILES:
        return None
    try:
        config = json.loads(_read(weights.parent / "config.json"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, Mapping) or not isinstance(config.get("pretrained_cfg"), Mapping):
        return None
    named, about = str(config.get("architecture")), config["pretrained_cfg"]
    try:
        channels, height, width = map(int, about["input_size"])
        return {
            "model": ARCHITECTURES.get(named, named),
            "num_classes": int(config.get("num_classes", about.get("num_classes"))),
            "image_shape": (height, width, channels),
            "mean": tuple(map(float, about["mean"])),
            "std": tuple(map(float, about["std"])),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{weights.parent / 'config.json'} does not say input_size, mean, std and num_classes ({error!r})"
        ) from None


def revision_of(weights: Path) -> str:
    """The commit of a file in the client's cache, from the name of its folder; empty elsewhere."""
    parts = weights.parts
    at = len(parts) - 1 - parts[::-1].index("snapshots") if "snapshots" in parts else -1
    return parts[at + 1] if 0 <= at < len(parts) - 2 else ""


def _download(repo: str, file: str, revision: str | None, *, optional: bool = False) -> Path:
    require("hub", "huggingface_hub")
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    except Exception as error:  # the client has its own error for everything that can be missing
        if optional:
            return Path(file)
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise FileNotFoundError(f"{file} was not found ({type(error).__name__}: {first[:200]})") from error


def _read(path: Path) -> str:
    if path.stat().st_size > RECORD_BYTES:
        raise ValueError(f"{path} is too large")
    return path.read_text()
