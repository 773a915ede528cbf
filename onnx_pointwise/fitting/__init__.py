"""Weights from example inputs: sequential refit, site by site. It takes plans as they are."""

from onnx_pointwise.fitting.refit import MEMORY, SiteRefit, corrected, refit

__all__ = ["MEMORY", "SiteRefit", "corrected", "refit"]
