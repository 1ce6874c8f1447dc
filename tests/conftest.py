"""Fixtures that several test files share."""

import os
from importlib.metadata import version
from pathlib import Path

# LLVM optimises little here, and where little is computed (`compiles`), not at all; XLA emits fewer
# instructions. Each worker keeps to one thread, and runs one program after the other (below): jaxlib's
# batched triangular solves block the threads that they need, so that those of two programs at a time can wait
# for each other.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_cpu_multi_thread_eigen=false"
    # XLA ends the process at a flag that it does not know.
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")),
)
# The next run, and the worker beside this one, find what has been compiled; `--cache-clear` removes it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "d" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest

jax.config.update("jax_cpu_enable_async_dispatch", False)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs(request):
    """No compiled program outlives its file: each holds memory maps, and a process may have only so many."""
    jax.config.update(
        "jax_disable_most_optimizations", request.node.get_closest_marker("compiles") is not None
    )
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision while the test runs."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both precisions in turn."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture(scope="session")
def reference():
    """Loads recorded results of the published method by file name."""
    folder = Path(os.environ.get("JAXSEP_REFERENCE", SHARED / "reference"))

    def load(name):
        path = folder / name
        if not path.exists():
            pytest.skip(f"recorded results not found: {path} (set JAXSEP_REFERENCE)")
        with np.load(path) as content:
            return dict(content)

    return load


@pytest.fixture(scope="session")
def corpus():
    """Folder of recordings with their true stems."""
    folder = Path(os.environ.get("JAXSEP_CORPUS", SHARED / "corpus"))
    if not folder.is_dir():
        pytest.skip(f"corpus not found: {folder} (set JAXSEP_CORPUS)")
    return folder
