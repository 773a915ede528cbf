"""Insert 1x1 convolutions into ONNX graphs so that large-kernel convolutions get cheaper.

>>> import onnx_pointwise
>>> result = onnx_pointwise.rewrite("model.onnx", target_macs=0.5)
>>> result.check.passed
>>> result.save("cheaper.onnx")
"""

import onnx_pointwise.early  # noqa: F401 (first of all: what follows takes time to load)

# isort: split
from pathlib import Path

from onnx_pointwise.check import CheckResult, check
from onnx_pointwise.errors import (
    InputError,
    ModelError,
    OnnxPointwiseError,
    OutputError,
    PlanError,
    ProviderError,
    RangeError,
    SettingError,
    TargetError,
)
from onnx_pointwise.graph import (
    BottleneckPass,
    Choice,
    Plan,
    Refusal,
    Site,
    find_sites,
    require_writable,
    write_text,
)
from onnx_pointwise.jobs import (
    Batch,
    Benchmark,
    Inspection,
    RewriteResult,
    Rewritten,
    Sweep,
    bench,
    insert_pointwise,
    inspect,
    rewrite,
    rewrite_all,
    sweep,
)
from onnx_pointwise.latency import cache_info, clear_cache
from onnx_pointwise.runtime import NodeTime, discover, node_times
from onnx_pointwise.settings import (
    BenchSettings,
    CheckSettings,
    InsertSettings,
    InspectSettings,
    ManySettings,
    Settings,
    SweepSettings,
)


def _repr_html_(result: object) -> str:
    """Show a result in a notebook."""
    from onnx_pointwise.reports import notebook  # what the package itself does not need

    return notebook.html(result)


def save_report(result: Batch | CheckResult | Inspection | RewriteResult | Sweep, path: str | Path) -> None:
    """Write a result as one HTML page, complete in itself; it takes the extra ``report``.

    Args:
        result: Of `rewrite`, `rewrite_all`, `insert_pointwise`, `check`, `inspect` or `sweep`.
        path: The file.

    Raises:
        OutputError: The file cannot be written, or a package is missing.
    """
    from onnx_pointwise.reports import html

    require_writable(path)
    write_text(path, html.html(result.to_dict()))


# Results know nothing of reports, which lie above them: here both meet.
for _kind in (Benchmark, CheckResult, Inspection, RewriteResult, Sweep):
    _kind._repr_html_ = _repr_html_  # type: ignore[union-attr]

__all__ = [
    "Batch",
    "BenchSettings",
    "Benchmark",
    "BottleneckPass",
    "CheckResult",
    "CheckSettings",
    "Choice",
    "InputError",
    "InsertSettings",
    "InspectSettings",
    "Inspection",
    "ManySettings",
    "ModelError",
    "NodeTime",
    "OnnxPointwiseError",
    "OutputError",
    "Plan",
    "PlanError",
    "ProviderError",
    "RangeError",
    "Refusal",
    "RewriteResult",
    "Rewritten",
    "SettingError",
    "Settings",
    "Site",
    "Sweep",
    "SweepSettings",
    "TargetError",
    "bench",
    "cache_info",
    "check",
    "clear_cache",
    "discover",
    "find_sites",
    "insert_pointwise",
    "inspect",
    "node_times",
    "rewrite",
    "rewrite_all",
    "sweep",
]
