"""What results look like in a terminal.

It computes nothing.
"""

from onnx_pointwise.reports.plain import Text, console, plain

__all__ = ["Text", "console", "plain"]
