"""A small trained network with example inputs, on which whole jobs take a fraction of a second.

Its kernels are drawn, its last layer is fitted: it tells ten coarse patterns apart in noise. With ``NETWORKS``,
``calibration`` and ``metric`` this is a file that `tools.evaluate` takes, too, where ``small.onnx`` lies beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from tests.graphs import Array, make_model, value

NETWORKS = ["small"]
CHANNELS, SIZE, CLASSES = 3, 16, 10
#: Feature maps and kernel of each convolution; a pooling follows the second one.
CONVOLUTIONS = {"conv1": (12, 3), "conv2": (16, 5), "conv3": (24, 3), "conv4": (24, 3)}
FEATURES = 24 * 4 * 4


def images(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Draw inputs, float32 [count, 3, 16, 16], and which pattern is in each."""
    patterns = np.random.default_rng(5).standard_normal((CLASSES, CHANNELS, 4, 4))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    coarse = patterns[labels] + 0.7 * rng.standard_normal((count, CHANNELS, 4, 4))
    fine = 0.3 * rng.standard_normal((count, CHANNELS, SIZE, SIZE))
    return (np.kron(coarse, np.ones((4, 4))) + fine).astype(np.float32), labels


def examples(count: int) -> Array:
    """Draw inputs without saying what is in them."""
    return images(count)[0]


def network() -> onnx.ModelProto:
    """Four convolutions with Relu, ``image`` -> ``scores``."""
    inputs, labels = images(400, seed=2)
    features = run(_network(np.eye(FEATURES, dtype=np.float32)), inputs)
    wanted = np.eye(CLASSES)[labels] - 1.0 / CLASSES
    gram = features.T @ features
    fitted = np.linalg.solve(gram + 1e-2 * np.trace(gram) / FEATURES * np.eye(FEATURES), features.T @ wanted)
    return _network(fitted.astype(np.float32))


def _network(last: Array) -> onnx.ModelProto:
    """The network with a given last layer [features, scores]; kernels see few directions, as trained ones do."""
    rng = np.random.default_rng(3)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {"fc.w": last}
    x, maps = "image", CHANNELS
    for name, (out, k) in CONVOLUTIONS.items():
        few = max(2, maps // 3)
        seen = np.einsum("ormn,ri->oimn", rng.standard_normal((out, few, k, k)), rng.standard_normal((few, maps)))
        kernel = seen / np.sqrt(few) + 0.05 * rng.standard_normal(seen.shape)
        weights[f"{name}.w"] = (kernel * np.sqrt(2.0 / (maps * k * k))).astype(np.float32)
        weights[f"{name}.b"] = (0.1 * rng.standard_normal(out)).astype(np.float32)
        inputs = [x, f"{name}.w", f"{name}.b"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.y"], name=name, pads=[k // 2] * 4))
        nodes.append(helper.make_node("Relu", [f"{name}.y"], [f"{name}.z"], name=f"{name}.relu"))
        x, maps = f"{name}.z", out
        if name == "conv2":
            nodes.append(helper.make_node("MaxPool", [x], ["pooled"], name="pool", kernel_shape=[2, 2], strides=[2, 2]))
            x = "pooled"
    nodes += [
        helper.make_node("AveragePool", [x], ["means"], name="means", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["means"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "fc.w"], ["scores"], name="fc"),
    ]
    output = value("scores", ["N", last.shape[1]])
    return make_model(nodes, [value("image", ["N", CHANNELS, SIZE, SIZE])], [output], weights)


def run(model: onnx.ModelProto | str | Path, inputs: Array) -> Array:
    """Run a version of the network."""
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: inputs})
    return np.asarray(result)


def accuracy(model: onnx.ModelProto | str | Path, count: int = 200) -> float:
    """How often a version is right, on inputs that are no examples."""
    inputs, labels = images(count, seed=1)
    return float((run(model, inputs).argmax(1) == labels).mean())


def calibration(name: str, limit: int | None = None) -> Array:
    """Example inputs of the network, for the tools."""
    return examples(64 if limit is None else limit)


def metric(name: str, path: str | Path, limit: int | None = None) -> float:
    """The figure that the tools print."""
    return accuracy(path, limit or 200)
