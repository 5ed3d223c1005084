"""The error for a part of jaxkd that is used without its dependencies."""

from __future__ import annotations

import importlib.util

DISTRIBUTION = "jaxkd-distillation"


def require(extra: str, *modules: str) -> None:
    """Raises ImportError, with the command to type, if one of `modules` is not installed.

    >>> require("train", "jax")
    >>> require("train", "no_such_module")
    Traceback (most recent call last):
    ...
    ImportError: this part of jaxkd needs no_such_module; type: pip install 'jaxkd-distillation[train]'
    """
    absent = [module for module in modules if not _is_there(module)]
    if absent:
        raise ImportError(
            f"this part of jaxkd needs {', '.join(absent)}; type: pip install '{DISTRIBUTION}[{extra}]'"
        )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is what it is a part of
        return False
