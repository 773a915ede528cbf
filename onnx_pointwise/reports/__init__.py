"""What results, and the way to them, look like.

It computes nothing.
"""

from onnx_pointwise.reports.needed import require_report
from onnx_pointwise.reports.plain import Text, console, plain
from onnx_pointwise.reports.steps import Steps

__all__ = ["Steps", "Text", "console", "plain", "require_report"]
