"""A small network with normalisations that remember what they were trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from onnx_pointwise.graph.model_io import load
from onnx_pointwise.runtime.segments import Piece, without_shapes
from tests.graphs import make_model, value

Array = np.ndarray[Any, Any]
MAPS, SIZE = 6, 12


def statistics(name: str, mean: Array, variance: Array) -> dict[str, Array]:
    ones, zeros = np.ones(MAPS, np.float32), np.zeros(MAPS, np.float32)
    return {f"{name}.s": ones, f"{name}.b": zeros, f"{name}.m": mean, f"{name}.v": variance}


def network(trained: Array | None = None, *, batch: int | str = "N", dead: bool = False, loose: bool = False) -> Any:
    """Two convolutions with normalisations; their statistics are those of some images, or as they are made."""
    rng = np.random.default_rng(3)
    weights: dict[str, Array] = {
        "w0": rng.standard_normal((MAPS, 3, 3, 3)).astype(np.float32) / 5,
        "w1": rng.standard_normal((MAPS, MAPS, 3, 3)).astype(np.float32) / 7,
    }
    if dead:
        weights["w0"][0] = 0.0
    nodes, source = [], "x"
    for number in range(2):
        nodes.append(helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4))
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"c{number}", *(f"n{number}.{part}" for part in "sbmv")], [f"n{number}"]
            )
        )
        nodes.append(helper.make_node("Relu", [f"n{number}"], [f"r{number}"]))
        source = f"r{number}"
    ends = [value("x", [batch, 3, SIZE, SIZE])], [value("r1", [batch, MAPS, SIZE, SIZE])]
    plain = np.zeros(MAPS, np.float32), np.ones(MAPS, np.float32)
    told = {0: plain, 1: plain}
    for number in range(2) if trained is not None else ():
        known = {**weights, **statistics("n0", *told[0]), **statistics("n1", *told[1])}
        (seen,) = Piece(without_shapes(load(make_model(nodes, *ends, known))), ["x"], [f"c{number}"]).run(
            {"x": trained}
        )
        axes = (0, 2, 3)
        told[number] = seen.mean(axes), seen.var(axes)
    given = [value(f"n{number}.m", [MAPS]) for number in range(2)] if loose else []
    known = {**weights, **statistics("n0", *told[0]), **statistics("n1", *told[1])}
    if loose:
        known = {name: array for name, array in known.items() if not name.endswith(".m")}
    return load(make_model(nodes, [*ends[0], *given], ends[1], known))


def photographs(count: int, seed: int = 0) -> Array:
    """Smooth images of correlated colours, brighter than what is drawn."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 1, 3, 3)) + 0.3 * rng.standard_normal((count, 3, 3, 3)) + 0.8
    return np.clip(np.kron(coarse, np.ones((1, 1, 4, 4))), -2.0, 2.0).astype(np.float32)


def drawn(count: int) -> Array:
    rng = np.random.default_rng(9)
    return np.clip(rng.standard_normal((count, 3, SIZE, SIZE)), -2.0, 2.0).astype(np.float32)
