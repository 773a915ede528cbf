"""What makes an export a good one, whatever the converter said about itself.

No unknown operators; the inputs are the model's; every convolution's weight is an initializer; the ONNX checker is
content; and ONNX Runtime computes what Keras computes, on batches of one and three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.exporting.names import CONVOLUTIONS, bodies
from onnx_pointwise.exporting.runtime import ExportError, VerificationError, first_line
from onnx_pointwise.runtime import open_session

BATCHES = (1, 3)
#: Spatial sizes tried where the model leaves them open, a pair for each batch; multiples of 32 suit U-shaped networks.
OPEN_SIZES = ((64, 64), (96, 64))
TOLERANCE = 1e-4
# Roundings, of the type that layers compute in, by which an output may be off.
_ROUNDINGS = 8

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Agreement:
    """How closely ONNX Runtime follows Keras.

    Attributes:
        error: largest absolute difference over the largest absolute value of the output; the worst output and batch.
        batches: the batch sizes compared.
        telling: whether the outputs change with the input; if they do not, agreement says little.
    """

    error: float
    batches: tuple[int, ...]
    telling: bool


def check_inputs(specs: Sequence[Any], name: str) -> None:
    """Refuse inputs that cannot be drawn at random, so that nothing could be verified.

    Args:
        specs: a `tf.TensorSpec` for each input.
        name: how to call the model in messages.

    Raises:
        ExportError: an input has no declared rank, or holds something other than numbers.
    """
    for spec in specs:
        if spec.shape.rank is None:
            raise ExportError(f"{name}: input {spec.name!r} declares no shape; save the model with one.")
        if np.dtype(spec.dtype.as_numpy_dtype).kind not in "biufV":  # V: bfloat16
            raise ExportError(f"{name}: input {spec.name!r} holds {spec.dtype.name}s; export the part behind it.")


def check_structure(model: onnx.ModelProto, inputs: Sequence[str], name: str) -> None:
    """Check everything that can be seen without running the model.

    Args:
        model: the exported model.
        inputs: names of the Keras model's inputs.
        name: how to call the model in messages.

    Raises:
        VerificationError: an operator is unknown to ONNX, the inputs differ, a convolution's weight is computed, or the
            ONNX checker complains.
    """
    domains = {entry.domain: entry.version for entry in model.opset_import}
    for body in (model.graph, *bodies(model.graph)):
        for node in body.node:
            if not onnx.defs.has(node.op_type, domains.get(node.domain, 1), node.domain):
                raise VerificationError(
                    f"{name}: node {node.name!r} has the operator {node.op_type!r}, which ONNX does not have at opset "
                    f"{domains.get(node.domain, 1)}; replace that layer, or export the part of the model before it."
                )
    found = [value.name for value in model.graph.input]
    if found != list(inputs):
        raise VerificationError(
            f"{name}: the converter gave the graph the inputs {', '.join(found) or 'none'} where the model has "
            f"{', '.join(inputs)}; remove inputs that no output depends on."
        )
    _check_weights(model.graph, name)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker raises its own and protobuf's errors
        raise VerificationError(f"{name}: the ONNX checker refuses the export: {first_line(error)}.") from error


def _check_weights(graph: onnx.GraphProto, name: str) -> None:
    """In loops, which recurrent layers become, the kernel is cut out of one for all gates: such stay as they are."""
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in CONVOLUTIONS and node.input[1] not in known:
            raise VerificationError(
                f"{name}: the weight of convolution {node.name!r} is computed in the graph instead of stored; "
                "export the model with static sizes (--input-shape) and without weight-changing wrappers."
            )


def tolerance_of(dtypes: Iterable[str]) -> float:
    """How far an export may be off: what float32 allows, or some roundings of the least precise type in between."""
    precisions = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
    return max([TOLERANCE, *(_ROUNDINGS * precisions[dtype] for dtype in dtypes if dtype in precisions)])


def check_agreement(
    model: onnx.ModelProto,
    specs: Sequence[Any],
    reference: Callable[[Arrays], list[NDArray[Any]]],
    name: str,
    *,
    channels_first: Sequence[bool] = (),
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Run the export and the original on the same random inputs.

    Args:
        model: the exported model.
        specs: a `tf.TensorSpec` for each input, in the original's layout.
        reference: the original: arrays -> arrays.
        name: how to call the model in messages.
        channels_first: for each input, whether the export wants it as [N, C, H, W]; outputs of rank 4 follow suit.
        tolerance: largest relative error allowed.

    Raises:
        VerificationError: shapes differ, a value is not finite, or the difference is too large.
    """
    nchw = list(channels_first) or [False] * len(specs)
    fixed = {spec.shape[0] for spec in specs if spec.shape.rank} - {None}
    batches = BATCHES if not fixed else (int(min(fixed)),)
    try:
        session = open_session(model.SerializeToString())
    except OnnxPointwiseError as error:
        raise VerificationError(f"{name}: ONNX Runtime does not load the export: {first_line(error)}.") from error
    worst, telling = 0.0, max(batches) == 1
    for index, batch in enumerate(batches):
        arrays = random_inputs(specs, batch, OPEN_SIZES[index % len(OPEN_SIZES)], seed=index)
        wanted = reference(arrays)
        given = [_channels_first(a) if flip else a for a, flip in zip(arrays, nchw, strict=True)]
        names = [value.name for value in model.graph.input]
        try:
            found = session.run(None, dict(zip(names, given, strict=True)))
        except Exception as error:  # the runtime raises its own errors
            raise VerificationError(
                f"{name}: ONNX Runtime fails on the export at batch {batch}: {first_line(error)}."
            ) from error
        for output, expected, actual in zip(model.graph.output, wanted, found, strict=True):
            if any(nchw) and expected.ndim == 4:
                expected = _channels_first(expected)
            where = f"{name}: output {output.name!r} at batch {batch}"
            worst = max(worst, _error(expected, actual, where, tolerance))
            telling = telling or _varies(expected)
    return Agreement(worst, batches, telling)


def random_inputs(specs: Sequence[Any], batch: int, sizes: Sequence[int], seed: int) -> list[NDArray[Any]]:
    """Seeded inputs that fit the specs: standard normal; up to 255 for bytes, 0 and 1 for other integers."""
    rng = np.random.default_rng(seed)
    arrays: list[NDArray[Any]] = []
    for spec in specs:
        open_sizes = iter(sizes)
        shape = [batch, *(next(open_sizes, sizes[-1]) if size is None else size for size in spec.shape[1:])]
        dtype = np.dtype(spec.dtype.as_numpy_dtype)
        if dtype == np.uint8:
            arrays.append(rng.integers(0, 256, shape, dtype))
        elif dtype.kind in "iub":
            arrays.append(rng.integers(0, 2, shape).astype(dtype))
        else:
            arrays.append(rng.standard_normal(shape).astype(dtype))
    return arrays


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def _varies(output: NDArray[Any]) -> bool:
    """Whether a batch of different inputs gave visibly different outputs."""
    values = np.asarray(output, np.float64)
    return bool(np.ptp(values, axis=0).max(initial=0.0) > 1e-6 * np.abs(values).max(initial=0.0))


def _error(expected: NDArray[Any], actual: NDArray[Any], where: str, tolerance: float) -> float:
    """Largest difference relative to the largest expected value."""
    if expected.shape != actual.shape:
        raise VerificationError(
            f"{where} has the shape {actual.shape} in ONNX Runtime, {expected.shape} in the original."
        )
    a, b = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if not np.isfinite(a).all():
        raise VerificationError(
            f"{where} is not finite in the original on random inputs, so the export cannot be verified."
        )
    largest = float(np.abs(a).max(initial=0.0))
    difference = float(np.abs(a - b).max(initial=0.0))
    error = difference / largest if largest > 0 else difference
    if not error <= tolerance:
        raise VerificationError(
            f"{where} differs from the original by {error:.1e} relative,"
            f" more than {tolerance:.0e}: nothing was written."
        )
    return error
