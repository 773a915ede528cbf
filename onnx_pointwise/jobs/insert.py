"""Put one 1x1 convolution in front of one convolution."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass
from threadpoolctl import threadpool_limits
from onnx_pointwise.planning import NO_BUDGET, Budget, Split, choose, hand_made, options_of, settle
from onnx_pointwise.study import Options, Progress, Study, Weights, make_weights, study
from onnx_pointwise.examples import Calibration, CalibrationSource, calibrate
from onnx_pointwise.check import CheckResult, Finding
from onnx_pointwise.check import check as check_models
from onnx_pointwise.graph import ModelCost, SiteCost, dense_cost, model_cost
from onnx_pointwise.errors import OutputError, PlanError
from onnx_pointwise.numerics import FORMS, Form, Method, is_exact
from onnx_pointwise.graph import frozen
from onnx_pointwise.latency import LatencyCache
from onnx_pointwise.planning import faster, meeting
from onnx_pointwise.graph import ModelSource, file_bytes, load, runtime_source, save
from onnx_pointwise.latency import NetworkLatency, network_latency
from onnx_pointwise.graph import Choice, Plan, make_choice, require_sites
from onnx_pointwise.examples import Layout, Preprocessing
from onnx_pointwise.runtime import open_session, provider_info, require
from onnx_pointwise.fitting import MEMORY
from onnx_pointwise.graph import BottleneckPass, Replacement, replacement
from onnx_pointwise.graph import ResolvedShapes, Shape, resolve
from onnx_pointwise.graph import MIN_CHANNELS, Refusal, Site, find_sites


def insert_pointwise(
    model: ModelSource,
    node: str,
    feature_maps: int,
    *,
    method: Method = "als",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    check: bool = True,
    max_drift: float | Mapping[str, float] | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    calibration: CalibrationSource = "auto",
    latency: bool = True,
    provider: str = "cpu",
    threads: int | None = None,
    freeze_initializers: bool = False,
) -> RewriteResult:
    """Put a 1x1 convolution in front of one convolution, whatever it costs.

    Args:
        model: Path, ``ModelProto`` or ``onnx_ir.Model``; it is left as it is.
        node: Name of the convolution.
        feature_maps: Feature maps that the 1x1 puts out. Fewer than the convolution's input has (a bottleneck)
            approximate it; as many (a projection) or more (an expansion) leave the network's function as it was.
        method: How the factors are computed, see ``factorize``.
        input_shapes: Concrete shapes by input name, where the model leaves dimensions open.
        check: Compare both models in ONNX Runtime.
        max_drift: Largest relative L2 drift allowed; ``None`` only reports it.
        inputs: Inputs of the check by name.
        calibration: As for ``rewrite``; a projection or an expansion is exact and looks at no examples.
        latency: Time both networks in the check, too.
        provider: Execution provider of the check.
        threads: Threads of the check; the runtime's own choice if ``None``.
        freeze_initializers: As for ``rewrite``.

    Returns:
        As ``rewrite``.

    Raises:
        PlanError: There is no such convolution, it cannot be rewritten, or ``feature_maps`` is below 1.
    """
    plan = Plan({node: make_choice(node, "reduce", feature_maps, where="insert_pointwise")}, method=method)
    return rewrite(
        model,
        plan=plan,
        input_shapes=input_shapes,
        check=check,
        max_drift=max_drift,
        inputs=inputs,
        calibration=calibration,
        latency=latency,
        provider=provider,
        threads=threads,
        freeze_initializers=freeze_initializers,
    )
