"""Put one 1x1 convolution in front of one convolution."""

from __future__ import annotations

from onnx_pointwise.graph import ModelSource, Plan, find_sites, full_name, load, make_choice
from onnx_pointwise.jobs.loading import onnx_of
from onnx_pointwise.jobs.pipeline import rewrite
from onnx_pointwise.jobs.results import RewriteResult
from onnx_pointwise.schema import job, shared
from onnx_pointwise.settings import InsertSettings, Settings


@job(InsertSettings)
def insert_pointwise(model: ModelSource, settings: InsertSettings) -> RewriteResult:
    """Put a 1x1 convolution in front of one convolution, whatever it costs.

    Fewer feature maps than the convolution's input has (a bottleneck) approximate it; as many (a projection) or more
    (an expansion) leave the network's function as it was, and no examples are looked at.

    Args:
        model: Path, ``ModelProto`` or ``onnx_ir.Model``; it is left as it is.
        settings: What is asked for, in place of the keywords that follow.

    Returns:
        As ``rewrite``.

    Raises:
        PlanError: There is no such convolution, it cannot be rewritten, or ``feature_maps`` is below 1.
    """
    model = onnx_of(model)
    node = full_name(settings.node, [site.name for site in find_sites(load(model))])
    choice = make_choice(node, "reduce", settings.feature_maps, where="insert_pointwise")
    plan = Plan({node: choice}, method=settings.method)
    return rewrite(model, Settings(plan=plan, **shared(settings, Settings)))
