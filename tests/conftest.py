"""Which tests share a process: those that load TensorFlow run by themselves, as do those that open GPU drivers.

Each of these libraries brings an LLVM of its own, and they crash beside one another: what is not asked for is not even
imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

from onnx_pointwise.latency.cache import FOLDER_VARIABLE

# How fast the machine is must not matter.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

KERAS = {"test_models.py", "test_export_keras.py", "test_digits.py"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Take the files that load TensorFlow with ``-m keras``, all others without; everything with an empty ``-m``."""
    marks = str(config.getoption("markexpr"))
    if not marks or collection_path.is_dir():
        return None
    return True if (collection_path.name in KERAS) != (marks == "keras") else None


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network, ``small.onnx``, its examples, and the file that describes it to the tools."""
    from tests import small

    folder = tmp_path_factory.mktemp("small")
    onnx.save(small.network(), folder / "small.onnx")
    np.savez(folder / "small.npz", examples=small.examples(64))
    (folder / "networks.py").write_text("from tests.small import NETWORKS, calibration, metric\n")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measurements of the tests apart from the user's, and what was measured before out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_blas_thread() -> Iterator[None]:
    """Let linear algebra take one thread, as it does in every job: on a busy machine threads that spin take minutes."""
    import scipy.linalg  # noqa: F401 (brings a pool of its own, which has to be there to be limited)

    with threadpool_limits(1, user_api="blas"):
        yield
