"""Put one 1x1 convolution in front of one convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from onnx_pointwise.examples import CalibrationSource
from onnx_pointwise.graph import ModelSource, Plan, make_choice
from onnx_pointwise.jobs.pipeline import rewrite
from onnx_pointwise.jobs.results import RewriteResult
from onnx_pointwise.numerics import Method


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
