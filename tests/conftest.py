"""Which tests share a process: those that load TensorFlow run by themselves, as do those that open GPU drivers.

Each of these libraries brings an LLVM of its own, and they crash beside one another: what is not asked for is not even
imported.
"""

from __future__ import annotations

from pathlib import Path

import pytest

KERAS = {"test_models.py", "test_export_keras.py", "test_digits.py"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Take the files that load TensorFlow with ``-m keras``, all others without; everything with an empty ``-m``."""
    marks = str(config.getoption("markexpr"))
    if not marks or collection_path.is_dir():
        return None
    return True if (collection_path.name in KERAS) != (marks == "keras") else None
