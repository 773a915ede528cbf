"""Results whose pages are looked at: small networks, one of them with names that would like to be more than names."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnx_pointwise
from onnx_pointwise.reports.html import html
from tests import small

#: What a name must not do: run, load, break out of text, attribute, comment or script, be evaluated, or move anything.
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "\"><img src=x onerror='window.hacked = 1'>",
    "</script><script>window.hacked = 1</script>",
    "</title></svg>{{ 7 * 7 }} ${7 * 7} $\\frac{1}{2}$ <!-- ]]>",
)


def hostile_network() -> onnx.ModelProto:
    """The small network, its convolutions and its output called otherwise."""
    model = small.network()
    names = dict(zip((f"conv{number}" for number in range(1, 5)), HOSTILE, strict=True))
    for node in model.graph.node:
        if node.name in names:
            node.name = names[node.name]
        for place, output in enumerate(node.output):
            if output == "scores":
                node.output[place] = HOSTILE[0]
    model.graph.output[0].name = HOSTILE[0]
    return model


def many() -> onnx_pointwise.Batch:
    """Three models of a folder: one as it should be, one whose names are no names, one that is none."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "models"
        folder.mkdir()
        onnx.save(small.network(), folder / "good.onnx")
        onnx.save(hostile_network(), folder / "hostile.onnx")
        (folder / "none.onnx").write_bytes(b"nothing")
        examples = {"calibration": small.examples(64)}
        return onnx_pointwise.rewrite_all(
            folder, Path(place) / "out", target_macs=0.5, provider="none", latency=False, **examples
        )


@functools.cache
def document(kind: str) -> dict[str, Any]:
    """The JSON of a result: ``rewrite``, ``hostile``, ``check``, ``inspect``, ``sweep``, ``many``."""
    plain: dict[str, Any] = {"calibration": small.examples(64)}
    model = small.network()
    if kind == "inspect":
        return onnx_pointwise.inspect(model).to_dict()
    if kind == "sweep":
        swept = onnx_pointwise.sweep(model, providers=("none",), latency=False, pick="0.5", shares=(0.7, 0.3), **plain)
        return swept.to_dict()
    if kind == "many":
        return many().to_dict()
    source = hostile_network() if kind == "hostile" else model
    result = onnx_pointwise.rewrite(source, target_macs=0.5, provider="none", latency=kind == "rewrite", **plain)
    if kind == "check":
        again = onnx_pointwise.check(
            model, result.model, inputs={"image": np.asarray(small.examples(16))}, sites=True, latency_seconds=0.2
        )
        return again.to_dict()
    return result.to_dict()


@functools.cache
def page(kind: str) -> str:
    """The page of a result."""
    return html(document(kind))
