"""The settings for CPUs: what they touch, and what they leave alone."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import helpers
import jaxlib
import pytest

from jaxkd import cpu, tune_cpu

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def _without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cpu.sys, "platform", "other")  # the allocator of the tests' process stays as it is


def test_flags_are_added_for_the_version_that_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_plugins(monkeypatch)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 10, 2))
    tune_cpu()
    tune_cpu()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=here {FLAG}=-individual_convolution"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 12, 0))
    tune_cpu()
    assert os.environ["XLA_FLAGS"] == ""


def test_what_the_user_or_an_accelerator_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_plugins(monkeypatch)
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 10, 2))
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=")
    tune_cpu()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}="
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    tune_cpu()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or any(map(importlib.util.find_spec, ("libtpu", "jax_plugins"))),
    reason="the allocator is not glibc's, or an accelerator's plugin is there",
)
def test_jax_takes_the_flags_and_freed_memory_stays_until_it_is_released() -> None:
    code = """
import os, pathlib, resource
import jaxkd
from jaxkd import cpu
jaxkd.tune_cpu()
import jax
import jax.numpy as jnp
import numpy as np
x, kernel = jnp.ones((64, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
nhwc = "NHWC", "HWIO", "NHWC"
convolve = jax.jit(lambda *xs: jax.lax.conv_general_dilated(*xs, (1, 1), "SAME", dimension_numbers=nhwc))
assert "ynn" not in convolve.lower(x, kernel).compile().as_text()
def fill():
    np.ones(64 * 2**20 // 8)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
resident = lambda: int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
kept = resident()
cpu.release_memory()
print(kept - resident())
"""
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Ten times 64 MiB are 163,840 pages, if they are faulted in anew each time.
    faults, given_back = map(int, done.stdout.split())
    assert faults < 2_000
    assert given_back >= 64 * 2**20


@pytest.mark.slow
def test_the_measurements_for_a_gpu_run_here_too(tmp_path: Path) -> None:
    """So that a mistake costs no time on a card."""
    script = Path(__file__).parents[1] / "experiments" / "speed" / "gpu.py"
    command = [sys.executable, str(script), "--small", "--no-torch", "--out", str(tmp_path)]
    done = subprocess.run(
        command, env=helpers.environment(), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [row["what"] for row in rows] == ["device", *["step"] * 4, *["loss"] * 2], done.stderr
    assert all(row["ms"] > 0 for row in rows[1:])
    assert (tmp_path / "gpu.md").read_text().count("| jaxkd |") == 6
