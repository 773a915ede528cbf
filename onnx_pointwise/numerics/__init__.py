"""Arrays only: factorise, reconstruct, moments, norms, bases, allocation, drift.

It knows neither ONNX nor the runtime.
"""

from onnx_pointwise.numerics.activation import STEPS, Activation, Curve, Step
from onnx_pointwise.numerics.agreement import (
    MOST_DECIBELS,
    Agreement,
    ClassMeter,
    PictureMeter,
    PresenceMeter,
    ValueMeter,
    joined,
)
from onnx_pointwise.numerics.allocate import Response, exchange, fit_response, knapsack
from onnx_pointwise.numerics.blas import one_thread_of_blas
from onnx_pointwise.numerics.drift import (
    Drift,
    DriftMeter,
    centred,
    energy,
    relative_drift,
    units,
    weighted_drift,
)
from onnx_pointwise.numerics.factorize import (
    SWEEPS,
    TRIAL_SWEEPS,
    Factors,
    Method,
    compose,
    depthwise_fits,
    error_curve,
    error_curves,
    factorize,
    fitted_factors,
    is_exact,
    whole,
)
from onnx_pointwise.numerics.forms import FORMS, SPATIAL, Form, Rank, full_rank, has_form, view_of
from onnx_pointwise.numerics.heldout import expand_curve, held_curves
from onnx_pointwise.numerics.moments import (
    Lattice,
    Moments,
    Stationary,
    Window,
    blended,
    channel_means,
    lattices,
    make_transposed_window,
    make_window,
    patches,
    require_finite,
    sample,
    shrunk,
    tap_blend,
)
from onnx_pointwise.numerics.norm import Norm
from onnx_pointwise.numerics.outputs import OutputNorm
from onnx_pointwise.numerics.packed import Packed
from onnx_pointwise.numerics.parallel import beside, cores, in_order, largest_first, workers
from onnx_pointwise.numerics.pareto import knee, pareto_front
from onnx_pointwise.numerics.plain import plain_errors
from onnx_pointwise.numerics.reconstruct import ROUNDS, Beforehand, Block, Reconstruction, patch_sums, reconstruct
from onnx_pointwise.numerics.separable import Terms, even_terms

__all__ = [
    "FORMS",
    "MOST_DECIBELS",
    "ROUNDS",
    "SPATIAL",
    "STEPS",
    "SWEEPS",
    "TRIAL_SWEEPS",
    "Activation",
    "Agreement",
    "Beforehand",
    "Block",
    "ClassMeter",
    "Curve",
    "Drift",
    "DriftMeter",
    "Factors",
    "Form",
    "Lattice",
    "Method",
    "Moments",
    "Norm",
    "OutputNorm",
    "Packed",
    "PictureMeter",
    "PresenceMeter",
    "Rank",
    "Reconstruction",
    "Response",
    "Stationary",
    "Step",
    "Terms",
    "ValueMeter",
    "Window",
    "beside",
    "blended",
    "centred",
    "channel_means",
    "compose",
    "cores",
    "depthwise_fits",
    "energy",
    "error_curve",
    "error_curves",
    "even_terms",
    "exchange",
    "expand_curve",
    "factorize",
    "fit_response",
    "fitted_factors",
    "full_rank",
    "has_form",
    "held_curves",
    "in_order",
    "is_exact",
    "joined",
    "knapsack",
    "knee",
    "largest_first",
    "lattices",
    "make_transposed_window",
    "make_window",
    "one_thread_of_blas",
    "pareto_front",
    "patch_sums",
    "patches",
    "plain_errors",
    "reconstruct",
    "relative_drift",
    "require_finite",
    "sample",
    "shrunk",
    "tap_blend",
    "units",
    "view_of",
    "weighted_drift",
    "whole",
    "workers",
]
