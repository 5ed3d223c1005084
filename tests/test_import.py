"""Importing the losses needs jax alone; the rest says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "matplotlib", "sklearn", "tyro"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


def test_importing_jaxkd_imports_nothing_heavy() -> None:
    code = f"""
import sys, jax.numpy as jnp, jaxkd
from jaxkd import losses, temperature
student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
losses.kd(student, teacher, temperature=temperature.max_logit, standardize=True)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr


# What an environment with jax alone looks like: every other module is missing.
ABSENT = f"""
import importlib.util, sys
find = importlib.util.find_spec
absent = lambda name, package=None: None if name.split(".")[0] in {HEAVY!r} else find(name, package)
importlib.util.find_spec = absent
"""


PARTS = "cache", "models", "methods", "data", "teachers", "training", "runs", "report", "train", "distill"


def test_a_part_whose_dependencies_are_missing_says_what_to_type() -> None:
    """Each in a process of its own, from one that has imported jax."""
    code = f"""{ABSENT}
import os, jaxkd
for part in {PARTS!r}:
    if os.fork() == 0:
        try:
            getattr(jaxkd, part)
        except ImportError as error:
            print(f"{{part}}: {{error}}", flush=True)
        os._exit(0)
    os.wait()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split(":")[0] for line in said] == list(PARTS)
    for line in said:
        assert ": this part of jaxkd needs " in line
        assert line.endswith("; type: pip install 'jaxkd-distillation[train]'")


def test_networks_in_linen_do_not_import_nnx() -> None:
    done = python("import sys\nfrom jaxkd import models\nprint('flax.nnx' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_the_command_line_does_so_without_a_traceback() -> None:
    done = python(f"{ABSENT}from jaxkd.__main__ import main\nmain()")
    assert done.returncode == 1
    assert done.stderr.startswith("jaxkd: this part of jaxkd needs tyro; type: pip install")
    assert "Traceback" not in done.stderr


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import jaxkd

    with pytest.raises(AttributeError, match="module 'jaxkd' has no attribute 'lossses'"):
        _ = jaxkd.lossses
    assert "distill" in dir(jaxkd)
