"""The jobs end to end: rewrite, sweep, insert, inspect, bench.

They call the wings below and decide nothing themselves.
"""

from onnx_pointwise.jobs.advice import Advice
from onnx_pointwise.jobs.benchmark import Benchmark, bench
from onnx_pointwise.jobs.expected import expected
from onnx_pointwise.jobs.fronts import Front, Sweep, SweepPoint
from onnx_pointwise.jobs.insertion import insert_pointwise
from onnx_pointwise.jobs.inspection import ENERGIES, Inspection, SiteView, inspect
from onnx_pointwise.jobs.loading import require_other_file
from onnx_pointwise.jobs.many import Batch, Rewritten, models_in, rewrite_all
from onnx_pointwise.jobs.pipeline import rewrite
from onnx_pointwise.jobs.results import RewriteResult, SiteResult
from onnx_pointwise.jobs.sweeping import sweep
from onnx_pointwise.jobs.versions import Deployed, Version

__all__ = [
    "ENERGIES",
    "Advice",
    "Batch",
    "Benchmark",
    "Deployed",
    "Front",
    "Inspection",
    "RewriteResult",
    "Rewritten",
    "SiteResult",
    "SiteView",
    "Sweep",
    "SweepPoint",
    "Version",
    "bench",
    "expected",
    "insert_pointwise",
    "inspect",
    "models_in",
    "require_other_file",
    "rewrite",
    "rewrite_all",
    "sweep",
]
