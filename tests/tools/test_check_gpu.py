"""The script that checks a folder of networks, with the CPU in the place of a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.graphs import conv_model, normal
from tools.check_gpu import main, networks, shapes_for

# Software GPU drivers crash beside other native libraries: these tests get a process of their own.
pytestmark = pytest.mark.gpu


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network with its partner, and one without."""
    dense = conv_model(normal(32, 32, 3, 3), (8, 8))
    onnx.save(dense, tmp_path / "pair.onnx")
    onnx.save(dense, tmp_path / "pair.after.onnx")
    onnx.save(dense, tmp_path / "alone.onnx")
    return tmp_path


def run(folder: Path, *options: str) -> int:
    return main([str(folder), "--provider", "cpu", "--seconds", "0.2", "--threads", "1", *options])


def test_partners_are_no_networks_of_their_own(folder: Path) -> None:
    assert [path.name for path in networks(folder)] == ["alone.onnx", "pair.onnx"]


def test_a_folder_that_passes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert run(folder, "--json", str(report)) == 0
    data = json.loads(report.read_text())
    checks = {item["network"]: item["check"] for item in data["networks"]}
    assert checks["pair.onnx"]["after"]["macs"] == checks["pair.onnx"]["before"]["macs"]
    assert checks["alone.onnx"]["after"]["macs"] <= 0.5 * checks["alone.onnx"]["before"]["macs"]
    assert data["machine"]["cpu"] and data["providers"][0]["name"] == "cpu"
    printed = capsys.readouterr().out
    assert "pair.onnx" in printed and "equal" in printed


def test_a_check_that_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(conv_model(normal(32, 32, 3, 3), (8, 8), strides=[2, 2]), folder / "pair.after.onnx")
    assert run(folder) == 1
    assert "has shape" in capsys.readouterr().out


def test_a_network_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "alone.onnx").write_bytes(b"no model")
    assert run(folder) == 1
    assert "pair.onnx" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--provider", "gpu"], "Unknown execution provider 'gpu'"),
        (["--input-shape", "x:1,2"], "is not of the form NETWORK/INPUT:1,3,224,224"),
        (["--json", "absent/report.json"], "the folder absent does not exist"),
    ],
)
def test_bad_options(folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, *options) == 2
    assert message in " ".join(capsys.readouterr().out.split())


def test_nothing_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 2
    assert "no .onnx files" in capsys.readouterr().out


def test_shapes_are_given_by_network() -> None:
    given = ["net/x:1,3,8,8", "net/a/b:2", "other/x:4"]
    assert shapes_for(Path("net.onnx"), given) == {"x": (1, 3, 8, 8), "a/b": (2,)}
    assert shapes_for(Path("third.onnx"), given) is None
