"""Programs that PyTorch has exported (``torch.export.save``) to ONNX, by PyTorch's own exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_pointwise.exporting.runtime import ExportError, VerificationError, first_line
from onnx_pointwise.runtime import open_session

# Largest relative difference between PyTorch and ONNX Runtime.
_TOLERANCE = 1e-3


def from_torch(path: Path) -> ir.Model:
    """Convert a program, and compare both on the inputs that it was exported with.

    Raises:
        ExportError: PyTorch or onnxscript is not installed, or the file cannot be read or converted.
        VerificationError: ONNX Runtime computes something else than PyTorch.
    """
    try:
        import onnxscript  # noqa: F401 (what PyTorch converts with)
        import torch
    except ImportError as error:
        raise ExportError(
            f"exporting programs of PyTorch needs torch and onnxscript ({error}); "
            "install them with: pip install 'onnx-pointwise[torch]'"
        ) from error
    if not path.is_file():
        raise ExportError(f"{path}: no such file.")
    try:
        program = torch.export.load(path)
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        proto = made.model_proto
    except Exception as error:  # whatever PyTorch raises
        raise ExportError(f"{path}: PyTorch cannot load or convert it: {first_line(error)}.") from error
    _require_agreement(torch, program, proto, path)
    return ir.serde.deserialize_model(proto)


def _require_agreement(torch: Any, program: Any, proto: Any, path: Path) -> None:
    """Run both on the inputs that the file brings along; without any there is nothing to compare on."""
    if program.example_inputs is None:
        return
    arguments, keywords = program.example_inputs
    with torch.no_grad():
        wanted = program.module()(*arguments, **keywords)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
    session = open_session(proto.SerializeToString(), "cpu")
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(leaves):
        raise ExportError(f"{path}: takes {len(leaves)} tensors, the converted network {len(names)} inputs.")
    found = session.run(None, {name: leaf.detach().cpu().numpy() for name, leaf in zip(names, leaves, strict=True)})
    expected = [leaf.detach().cpu().numpy() for leaf in torch.utils._pytree.tree_leaves(wanted)]
    for want, have in zip(expected, found, strict=True):
        size = float(np.linalg.norm(np.asarray(want, np.float64))) or 1.0
        error = float(np.linalg.norm(np.asarray(have, np.float64) - np.asarray(want, np.float64))) / size
        if not error <= _TOLERANCE:
            raise VerificationError(f"{path}: ONNX Runtime differs from PyTorch by {error:.2g} (relative L2).")
