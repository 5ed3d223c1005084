"""Settings of the process with which XLA is faster on a CPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

import jaxlib

# Of glibc's mallopt: malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_YNN_TYPES = "--xla_cpu_experimental_ynn_fusion_type"


def tune_cpu() -> None:
    """Makes training on a CPU up to 1.5 times as fast; the command line calls it, and a script should too.

    Call it before JAX computes anything.  It changes nothing where an accelerator's plugin is installed,
    and leaves a setting that `XLA_FLAGS` already contains.  Results change by rounding at most.  Two
    settings:

    - jaxlib 0.10 gives convolutions to YNNPACK, which takes up to 1.7 times as long as XLA's own code; later
      versions do not by default.
    - glibc gives large freed blocks back to Linux, which then clears every page again in the next step.  From
      now on the process keeps them.  A run gives memory back after a compilation, and when it ends.

    >>> tune_cpu()
    """
    if any(map(importlib.util.find_spec, ("libtpu", "jax_plugins"))):
        return
    flags = os.environ.get("XLA_FLAGS", "")
    named_file = flags and not flags.startswith("-")  # XLA would take what is added for a part of the name
    if jaxlib.version.__version_info__[:2] == (0, 10) and _YNN_TYPES not in flags and not named_file:
        os.environ["XLA_FLAGS"] = f"{flags} {_YNN_TYPES}=-individual_convolution".strip()
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_M_ARENA_MAX, 1)


def release_memory() -> None:
    """Gives freed memory back to Linux: `tune_cpu` keeps it, and a compilation needs more than the steps."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
