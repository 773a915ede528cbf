"""What a BatchNormalization saw in training: mean and variance of each feature map."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph.constants import constant

Array = NDArray[Any]

# Scale, bias, mean and variance: a damaged BatchNormalization may have fewer.
_NORMALISED_BY = 4


def is_trained(node: ir.Node) -> bool:
    """Whether a node is a BatchNormalization that takes what it saw in training, not what its batch holds."""
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        return False
    training = node.attributes.get("training_mode")
    return (
        len(node.inputs) == _NORMALISED_BY + 1
        and (training is None or training.as_int() == 0)
        and not any(out.name for out in node.outputs[1:])  # before opset 14, more outputs meant training
    )


def running_statistics(node: ir.Node) -> tuple[Array, Array] | None:
    """Read the running statistics of a node.

    Args:
        node: Any node.

    Returns:
        Mean and variance, float64 [C]; None where it is no BatchNormalization, or one that takes those of its batch or
        gets them when it runs.
    """
    if not is_trained(node):
        return None
    mean, variance = constant(node.inputs[3]), constant(node.inputs[4])
    if mean is None or variance is None:
        return None
    return mean.numpy().astype(np.float64), variance.numpy().astype(np.float64)
