"""Which files a command reads and writes, by the names that the user gave them: none may be two of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from onnx_pointwise.examples import calibration_path
from onnx_pointwise.exporting import is_foreign
from onnx_pointwise.graph import Named, files_of, require_apart

_MODELS = ("source", "model", "before", "after", "other")
_EXAMPLES = {"inputs": "--inputs", "calibration": "--calibration", "plan": "--plan", "config": "--config"}
_WRITTEN = {
    "target": "OUT",
    "quantized": "--quantized",
    "json_file": "--json",
    "save_plan": "--save-plan",
    "report_file": "--report",
}


def require_files_apart(texts: Mapping[str, Any]) -> None:
    """Check that nothing a command writes is anything it reads, or written twice.

    Args:
        texts: What the command line read, by parameter.

    Raises:
        OutputError: Two of the files are one.
        ModelError: A model that stands where something would be written cannot be read.
    """
    outputs: dict[str, Named] = {
        role: texts[name] for name, role in _WRITTEN.items() if texts.get(name) not in (None, "-")
    }
    if not outputs:
        return
    models = [texts[name] for name in _MODELS if texts.get(name) is not None]
    # Their external data matter only where something stands already.
    stands = any(os.path.exists(str(path)) for path in outputs.values())  # noqa: PTH110, never raises
    read: list[Any] = []
    for model in models:
        if stands and not is_foreign(model) and os.path.isfile(str(model)):  # noqa: PTH113, never raises
            read += files_of(model)
        elif not os.path.isdir(str(model)):  # noqa: PTH112, of a folder, each model goes to a file of its own
            read.append(model)
    inputs: dict[str, Named] = {"IN": read}
    for name, role in _EXAMPLES.items():
        if texts.get(name) is not None:
            inputs[role] = calibration_path(texts[name])
    require_apart(inputs, outputs)
