"""What results look like on a terminal: renderables of ``rich``, which the command line prints."""

from onnx_pointwise.reports.terminal.answers import answers
from onnx_pointwise.reports.terminal.checking import check, verdict
from onnx_pointwise.reports.terminal.figures import (
    change,
    count,
    milliseconds,
    percent,
    rank,
    size,
    sparkline,
)
from onnx_pointwise.reports.terminal.inspecting import inspection
from onnx_pointwise.reports.terminal.many import many, sentences
from onnx_pointwise.reports.terminal.names import fitting
from onnx_pointwise.reports.terminal.rewriting import rewrite
from onnx_pointwise.reports.terminal.running import bench, cache, comparison, providers
from onnx_pointwise.reports.terminal.sweeping import sweep
from onnx_pointwise.reports.terminal.tables import Column, Grid

__all__ = [
    "Column",
    "Grid",
    "answers",
    "bench",
    "cache",
    "change",
    "check",
    "comparison",
    "count",
    "fitting",
    "inspection",
    "many",
    "milliseconds",
    "percent",
    "providers",
    "rank",
    "rewrite",
    "sentences",
    "size",
    "sparkline",
    "sweep",
    "verdict",
]
