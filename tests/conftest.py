"""Eight devices on the CPU and one compilation cache for all tests, set before jax is imported."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

# What is saved is synced, and waits for the disk: a tenth of the tests' time.  In memory nothing waits.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**31:  # the tests write 2**29
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))  # the root of pytest's temporary folders

# Many tests run the same training step, in this process and in children, and all the same small operations:
# compile each once.
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the processes of pytest-xdist share their parent's
    CACHE = tempfile.TemporaryDirectory(prefix="jaxkd-tests-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "1"  # of ten, nine are read by nobody
# Most of the tests' time is compilation.  Code that is not optimised, not from MLIR's emitters and in one
# piece takes a quarter of it.  Later versions have no other emitters, and XLA aborts at an unknown flag.
FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    # XLA's own convolutions, which `tune_cpu` chooses, take twenty times as long where nothing is optimised.
    # The default is named, so that the command line's processes have it too, and share programs and bits.
    FLAGS += ["--xla_cpu_experimental_ynn_fusion_type=+individual_convolution"]
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", *FLAGS]
)

# Programs and traces are many objects that live long: their collection took a twentieth of the tests' time.
gc.set_threshold(200_000, 50, 1000)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection has to walk through it."""
    gc.freeze()


from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import pytest

if not hasattr(jax, "enable_x64"):  # its name before jax 0.8
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

if TYPE_CHECKING:
    from jaxkd import data

# Real data and pretrained teachers, kept beside the repository; most machines do not have them.
SHARED = Path(os.environ.get("JAXKD_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_freed() -> Iterator[None]:
    """Each program takes memory maps, of which Linux gives a process 65,530; short of them, XLA crashes."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def off(record_property: Callable[[str, Any], None]) -> Callable[[str, str, float, float], None]:
    """Holds how far a method's numbers are from its authors' against a limit, and keeps it.

    `experiments/methods/deviation.py` makes its table of what was kept.
    """

    def hold(method: str, column: str, deviation: float, limit: float) -> None:
        record_property("deviation", (method, column, float(deviation)))
        assert deviation < limit, f"{method}, {column}: off by {deviation:.1e}, and {limit:.0e} is allowed"

    return hold


@pytest.fixture
def double() -> Iterator[None]:
    """Float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    import helpers  # needs Flax, which not every environment of these tests has

    return helpers.tiny_dataset()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, dataset: data.Dataset) -> Path:
    """The folder of an untrained teacher that fits `dataset`."""
    import helpers

    return helpers.untrained_teacher(tmp_path_factory.mktemp("teacher") / "untrained", dataset)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are 120 digits, 96 of them to train on: programs of the documentation run as they stand."""
    import sklearn.datasets
    import sklearn.utils

    whole = sklearn.datasets.load_digits()
    some = {name: whole[name][:120] for name in ("images", "target")}
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: sklearn.utils.Bunch(**some))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} does not exist")
    return SHARED
