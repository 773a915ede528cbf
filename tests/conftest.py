"""Which tests share a process: TensorFlow is loaded where its tests are collected, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

KERAS = {"test_models.py", "test_export_keras.py", "test_digits.py"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the files that load TensorFlow alone unless ``-m keras``, or no ``-m`` at all, asks for them."""
    marks = str(config.getoption("markexpr"))
    wanted = not marks or "keras" in marks.replace("not keras", "")
    return True if collection_path.name in KERAS and not wanted else None
