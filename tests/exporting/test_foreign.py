"""What is no ONNX file: told by its name, and how to get what converts it where that is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.exporting import ExportError, exported, is_foreign
from tests.commands import invoke


def test_foreign_sources(tmp_path: Path) -> None:
    assert all(map(is_foreign, ("a.keras", Path("a.h5"), "b/a.HDF5", "a.pt2")))
    assert not any(map(is_foreign, ("a.onnx", "a", tmp_path, b"a.keras", None)))
    (tmp_path / "saved_model.pb").touch()
    assert is_foreign(tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("model.keras", "tf2onnx", "keras"), ("model.pt2", "onnxscript", "torch")]
)
def test_what_is_missing_is_named(
    name: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in ("keras", "tensorflow", "torch", module):
        monkeypatch.setitem(sys.modules, missing, None)
    (tmp_path / name).touch()
    result = invoke(app, "rewrite", tmp_path / name, tmp_path / "out.onnx", "--target-macs", "0.5")
    assert result.exit_code == 2
    assert f"pip install 'onnx-pointwise[{extra}]'" in result.stderr
    with pytest.raises(ExportError, match="install them with"):
        onnx_pointwise.rewrite(tmp_path / name, target_macs=0.5)


def test_a_program_of_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is a large extra that the tests do not install")
    pytest.importorskip("onnxscript")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3))
    program = torch.export.export(layers.eval(), (torch.zeros(1, 3, 12, 12),))
    torch.export.save(program, tmp_path / "model.pt2")
    result = onnx_pointwise.rewrite(
        tmp_path / "model.pt2", ratio=0.6, provider="none", calibration="none", latency=False, require="changed"
    )
    assert result.after.macs < result.before.macs and result.check is not None and result.check.shapes_equal
    (tmp_path / "broken.pt2").write_text("nothing")
    with pytest.raises(ExportError, match=r"broken.pt2: PyTorch cannot load"):
        exported(tmp_path / "broken.pt2")
    with pytest.raises(ExportError, match=r"missing.pt2: no such file"):
        exported(tmp_path / "missing.pt2")
