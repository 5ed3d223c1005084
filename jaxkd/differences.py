"""What two runs, caches or checkpoints differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def differing_keys(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two runs differ in: key to (stored, wanted).

    `stored` was read from JSON, so `wanted` is compared as JSON would give it back.

    >>> differing_keys({"seed": 0, "std": [0.2]}, {"seed": 1, "std": (0.2,)})
    {'seed': (0, 1)}
    """
    wanted = json.loads(json.dumps(dict(wanted)))
    keys = sorted({*stored, *wanted})
    return {k: (stored.get(k), wanted.get(k)) for k in keys if stored.get(k) != wanted.get(k)}


def describe_differences(different: Mapping[str, tuple[Any, Any]]) -> str:
    """Words for what `differing_keys` found.

    >>> describe_differences({"seed": (0, 1)})
    'different: seed (there 0, here 1)'
    """
    return "different: " + ", ".join(f"{key} (there {a}, here {b})" for key, (a, b) in different.items())
