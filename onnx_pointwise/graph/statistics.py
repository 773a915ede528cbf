"""What a BatchNormalization saw in training: mean and variance of each feature map."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph.constants import constant

Array = NDArray[Any]

# Data, scale, bias, mean and variance.
_INPUTS = 5


def running_statistics(node: ir.Node) -> tuple[Array, Array] | None:
    """Read the running statistics of a node.

    Args:
        node: Any node.

    Returns:
        Mean and variance, float64 [C]; None where it is no BatchNormalization, or one that takes those of its batch or
        gets them when it runs.
    """
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx") or len(node.inputs) != _INPUTS:
        return None
    training = node.attributes.get("training_mode")
    if (training is not None and training.as_int()) or any(out.name for out in node.outputs[1:]):
        return None  # before opset 14, more outputs meant training
    mean, variance = constant(node.inputs[3]), constant(node.inputs[4])
    if mean is None or variance is None:
        return None
    return mean.numpy().astype(np.float64), variance.numpy().astype(np.float64)
