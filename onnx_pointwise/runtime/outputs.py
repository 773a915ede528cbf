"""Outputs of a session as arrays that can be compared: tensors, and the items of sequences of tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np
import onnxruntime as ort

from onnx_pointwise.runtime.inputs import Array

_ITEM = re.compile(r"(?P<name>.+)\[\d+\]", re.DOTALL)


def comparable(kind: str) -> bool:
    """Tell whether values of one of the runtime's types are, or hold, tensors of numbers or booleans."""
    while kind.startswith(("seq(", "optional(")):
        kind = kind[kind.index("(") + 1 : -1]
    return kind.startswith("tensor(") and kind != "tensor(string)"


def not_compared(session: ort.InferenceSession) -> dict[str, str]:
    """Name the outputs of a session that are no numbers to compare: maps and strings.

    Returns:
        The runtime's type by output name.
    """
    return {output.name: output.type for output in session.get_outputs() if not comparable(output.type)}


def run_outputs(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a session once and give what of its outputs can be compared.

    Args:
        session: The session.
        feeds: Input name to array.

    Returns:
        Array by output name. A sequence gives its items, named ``name[0]``, ``name[1]``...; an optional value that is
        not there gives nothing.
    """
    names = [output.name for output in session.get_outputs() if comparable(output.type)]
    found: dict[str, Array] = {}
    # Without names the runtime would compute all outputs.
    for name, result in zip(names, session.run(names, dict(feeds)) if names else [], strict=True):
        if isinstance(result, list):
            found.update({f"{name}[{index}]": np.asarray(item) for index, item in enumerate(result)})
        elif result is not None:
            found[name] = np.asarray(result)
    return found


def output_of(name: str, outputs: Collection[str]) -> str:
    """Give the output that a name from `run_outputs` belongs to: itself, or the sequence that it is an item of."""
    item = _ITEM.fullmatch(name)
    return item["name"] if name not in outputs and item is not None else name
