"""Probes written from a pattern are what the converters make of the same probes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnx_pointwise.deploying import AS_IS, Deployment
from onnx_pointwise.graph.model_io import load, runtime_source
from onnx_pointwise.latency.patterns import Patterns
from onnx_pointwise.latency.probes import Conv, Probe, feeds, network

PADDED = (("strides", (1, 1)), ("dilations", (1, 1)), ("pads", (1, 1, 1, 1)))
UP = (("strides", (2, 2)), ("dilations", (1, 1)), ("pads", (1, 1, 1, 1)))
# Widths of kernels, and kernels of one map, which have scales of one number.
CHAINS = {
    "dense": (Conv("Conv", 24, 16, (3, 3), PADDED),),
    "one map": (Conv("Conv", 1, 1, (3, 3), PADDED),),
    "reduce": (Conv("Conv", 24, 1, (1, 1), ()), Conv("Conv", 1, 16, (3, 3), PADDED)),
    "like the pattern": (Conv("Conv", 2, 5, (1, 1), ()), Conv("Conv", 5, 3, (3, 3), PADDED)),
    "reduce_expand": (
        Conv("Conv", 24, 8, (1, 1), ()),
        Conv("Conv", 8, 12, (3, 3), PADDED),
        Conv("Conv", 12, 16, (1, 1), ()),
    ),
    "transposed": (Conv("Conv", 24, 8, (1, 1), ()), Conv("ConvTranspose", 8, 16, (4, 4), UP)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {},
    "operators": {"quant_format": "QOperator"},
    "a scale for each tensor": {"per_channel": False},
    "signed and symmetric": {"activation_type": "QInt8", "ActivationSymmetric": True, "reduce_range": True},
    "16 bits": {"activation_type": "QUInt16"},
    "weights stay": {"AddQDQPairToWeight": True},
    "nothing to quantise": {"op_types_to_quantize": "MatMul"},
}


def probes(chains: list[str]) -> list[Probe]:
    return [Probe(1, (9, 10), "float32", CHAINS[name]) for name in chains]


def written_and_made(deployment: Deployment, asked: list[Probe]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    written = network(asked, Patterns(deployment))
    plain = network(asked, Patterns(AS_IS))
    with runtime_source(deployment.made(load(plain), feeds(asked))) as source:
        assert isinstance(source, bytes)
        return written, onnx.load_from_string(source)


def parts(model: onnx.ModelProto) -> Counter[Any]:
    """Every node with its attributes and the sizes and formats of the constants that it reads."""
    constants = {one.name: (one.data_type, tuple(one.dims)) for one in model.graph.initializer}
    return Counter(
        (
            node.op_type,
            tuple(sorted(str(attribute) for attribute in node.attribute)),
            tuple(constants.get(name) for name in node.input),
        )
        for node in model.graph.node
    )


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """What ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
def test_they_have_the_nodes_and_the_constants_that_the_quantizer_gives(given: dict[str, Any], tmp_path: Path) -> None:
    written, made = written_and_made(Deployment("int8", given), probes(list(CHAINS)))
    assert parts(written) == parts(made)
    assert kernels(written, tmp_path) == kernels(made, tmp_path)
    assert {(one.domain, one.version) for one in written.opset_import} == {
        (one.domain, one.version) for one in made.opset_import
    }


@pytest.mark.parametrize("precision", ["float16", "float32", None])
def test_they_are_what_other_precisions_make_of_them(precision: Any, tmp_path: Path) -> None:
    written, made = written_and_made(Deployment(precision), probes(list(CHAINS)))
    assert parts(written) == parts(made)
    assert kernels(written, tmp_path) == kernels(made, tmp_path)


def test_what_prepares_an_input_is_there_once_for_all_that_are_fed_it() -> None:
    asked = probes(["dense", "reduce", "reduce_expand", "one map"])
    written = network(asked, Patterns(Deployment("int8")))
    assert len(written.graph.input) == 2
    assert [node.op_type for node in written.graph.node if node.input[0] in feeds(asked)] == ["QuantizeLinear"] * 2


def test_the_converter_is_asked_once_for_each_kind_of_chain() -> None:
    class Counted(Deployment):
        asked = 0

        def made(self, model: Any, examples: Any = None) -> Any:
            type(self).asked += 1
            return super().made(model, examples)

    patterns = Patterns(Counted("float16"))
    for chains in (["dense", "one map", "reduce"], ["like the pattern", "transposed"]):
        network(probes(chains), patterns)
    assert Counted.asked == 3


def test_kernels_of_floats_keep_the_size_of_what_they_are_fed() -> None:
    written = network(probes(["dense", "transposed"]), Patterns(AS_IS))
    for tensor in written.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        assert weights.std() == pytest.approx(np.prod(weights.shape[1:]) ** -0.5, rel=0.25)
