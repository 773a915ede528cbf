"""What a report takes beyond the package itself."""

from __future__ import annotations

import importlib.util

from onnx_pointwise.errors import OutputError

_NEEDED = ("jinja2", "matplotlib")


def require_report() -> None:
    """Check that a page can be made, before any work is done.

    Raises:
        OutputError: A package is missing; the sentence says how to get it.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        what = " and ".join(missing)
        raise OutputError(f"A report takes {what}, not installed here: pip install 'onnx-pointwise[report]'.")
