"""One self-contained HTML page from the JSON of a result: no network access, light and dark, wide and narrow.

It computes nothing: what a page shows is what the JSON says.
"""

from onnx_pointwise.reports.html.page import KINDS, html

__all__ = ["KINDS", "html"]
