"""Weights from example inputs: sequential refit, site by site.

It takes plans as they are.
"""

from onnx_pointwise.fitting.weights import Weights, make_weights

__all__ = ["Weights", "make_weights"]
