"""Before and after: shapes, heads, agreement, drift, cost, latency; the verdict.

It does not know how a network was rewritten.
"""

from onnx_pointwise.check.answers import HeadCheck, picture_drifts, shortened
from onnx_pointwise.check.comparison import check, sites_between
from onnx_pointwise.check.limits import LIKENESSES, WORDS, Likeness, Limits, limits_of
from onnx_pointwise.check.results import CheckResult, Finding, Inputs, ProviderCheck
from onnx_pointwise.check.sites import SiteCheck

__all__ = [
    "LIKENESSES",
    "WORDS",
    "CheckResult",
    "Finding",
    "HeadCheck",
    "Inputs",
    "Likeness",
    "Limits",
    "ProviderCheck",
    "SiteCheck",
    "check",
    "limits_of",
    "picture_drifts",
    "shortened",
    "sites_between",
]
