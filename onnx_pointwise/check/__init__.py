"""Before and after: shapes, agreement, drift, cost, latency; the verdict.

It does not know how a network was rewritten.
"""

from onnx_pointwise.check.comparison import CheckResult, Finding, ProviderCheck, check

__all__ = ["CheckResult", "Finding", "ProviderCheck", "check"]
