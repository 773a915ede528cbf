"""Arrays only: factorise, reconstruct, moments, norms, bases, allocation, drift.

It knows neither ONNX nor the runtime.
"""

from onnx_pointwise.numerics.allocate import Response, exchange, fit_response, knapsack
from onnx_pointwise.numerics.drift import Drift, DriftMeter, relative_drift
from onnx_pointwise.numerics.factorize import (
    Factors,
    Method,
    compose,
    error_curve,
    error_curves,
    factorize,
    is_exact,
)
from onnx_pointwise.numerics.forms import FORMS, SPATIAL, Form, Rank, View, full_rank, has_form, view_of
from onnx_pointwise.numerics.moments import (
    Lattice,
    Moments,
    Stationary,
    Window,
    lattices,
    make_window,
    patches,
    sample,
    shrunk,
)
from onnx_pointwise.numerics.norm import Norm
from onnx_pointwise.numerics.parallel import beside, cores, in_order, workers
from onnx_pointwise.numerics.reconstruct import Activation, Block, Reconstruction, reconstruct

__all__ = [
    "FORMS",
    "SPATIAL",
    "Activation",
    "Block",
    "Drift",
    "DriftMeter",
    "Factors",
    "Form",
    "Lattice",
    "Method",
    "Moments",
    "Norm",
    "Rank",
    "Reconstruction",
    "Response",
    "Stationary",
    "View",
    "Window",
    "beside",
    "compose",
    "cores",
    "error_curve",
    "error_curves",
    "exchange",
    "factorize",
    "fit_response",
    "full_rank",
    "has_form",
    "in_order",
    "is_exact",
    "knapsack",
    "lattices",
    "make_window",
    "patches",
    "reconstruct",
    "relative_drift",
    "sample",
    "shrunk",
    "view_of",
    "workers",
]
