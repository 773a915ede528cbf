"""What is no ONNX file but can be made one: by its name alone, without looking into it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnx_pointwise.graph import named_after

_KERAS = {".keras", ".h5", ".hdf5"}
_TORCH = ".pt2"


def is_foreign(source: Any) -> bool:
    """Whether a source is a Keras file, a SavedModel folder or a program that PyTorch has exported."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    # Path.is_file raises where a name is too long.
    return path.suffix.lower() in {*_KERAS, _TORCH} or os.path.isfile(path / "saved_model.pb")  # noqa: PTH113


def exported(source: str | Path) -> ir.Model:
    """Convert a foreign model and hold it against what it was made from; sentences call it by its own name.

    Raises:
        ExportError: It cannot be read or converted, or what that takes is not installed.
        VerificationError: The result is not what it computed.
    """
    if Path(source).suffix.lower() == _TORCH:
        from onnx_pointwise.exporting.torch import from_torch

        model = from_torch(Path(source))
    else:
        from onnx_pointwise.exporting.export import export

        model = ir.serde.deserialize_model(export(source).model)
    return named_after(model, str(source))
