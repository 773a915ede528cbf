"""What a conversion that goes wrong is told, by stand-ins for the frameworks, which need not be installed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnx_pointwise.exporting import ExportError, check, sources, torch, trace
from onnx_pointwise.exporting.check import VerificationError
from tests.graphs import conv_model, normal

MODEL = conv_model(normal(4, 3, 3, 3), [8, 8], batch=1)


class Shape(tuple[int, ...]):
    """As much of the shape of a TensorFlow tensor as the comparison takes."""

    rank = 4


def fails(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("no memory")


def test_an_export_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "open_session", lambda source: SimpleNamespace(run=fails))
    spec = SimpleNamespace(shape=Shape((1, 3, 8, 8)), dtype=SimpleNamespace(as_numpy_dtype=np.float32))
    with pytest.raises(VerificationError, match=r"net: ONNX Runtime fails on the export at batch 1: no memory\."):
        check.check_agreement(MODEL, [spec], lambda arrays: [], "net")


def test_a_model_that_cannot_be_called() -> None:
    with pytest.raises(ExportError, match="calling the model failed with RuntimeError: no memory; if it takes several"):
        trace._call_once(fails, "net", [])


def test_a_model_that_keras_cannot_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "named_layers", lambda model: [])
    monkeypatch.setattr(trace, "layer_tokens", lambda layers: contextlib.nullcontext())

    class Model:
        export = staticmethod(fails)

        def __call__(self, *arguments: Any, **options: Any) -> list[Any]:
            return []

    with pytest.raises(ExportError, match=r"net: model\.export, which its inputs need, failed: no memory\."):
        trace._trace_exported(SimpleNamespace(), Model(), "net", [])


def test_a_damaged_model_configuration(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["model_config"] = "{"
    with pytest.raises(ExportError, match=r"a\.h5: its model configuration is damaged"):
        sources._hdf5(tmp_path / "a.h5")


class Tensor:
    """As much of a tensor as the comparison takes."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def detach(self) -> Tensor:
        return self

    cpu = detach

    def numpy(self) -> Any:
        return self._array


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [leaf for part in parts for leaf in leaves(part)]


FRAMEWORK = SimpleNamespace(
    no_grad=contextlib.nullcontext,
    Tensor=Tensor,
    utils=SimpleNamespace(_pytree=SimpleNamespace(tree_leaves=leaves)),
)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (2, r"net\.pt2: takes 2 tensors, the converted network 1 inputs\."),
        (1, r"net\.pt2: ONNX Runtime differs from PyTorch by 1 \(relative L2\)\."),
    ],
)
def test_a_program_that_becomes_something_else(given: int, said: str) -> None:
    image = Tensor(normal(1, 3, 8, 8))
    wanted = Tensor(1e6 * np.ones((1, 4, 6, 6), np.float32))
    program = SimpleNamespace(example_inputs=((image,) * given, {}), module=lambda: lambda *images: (wanted,))
    with pytest.raises((ExportError, VerificationError), match=said):
        torch._require_agreement(FRAMEWORK, program, MODEL, Path("net.pt2"))
