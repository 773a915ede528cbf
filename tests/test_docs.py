"""Every command and every block of Python in the documentation runs, and the pictures are those that a script draws."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.jobs import checking
from onnx_pointwise.schema import options
from onnx_pointwise.settings import Settings
from tests.commands import invoke
from tests.small import examples, network
from tests.staircase import install
from tools.draw_forms import drawing

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind: str) -> list[Any]:
    """All blocks of a kind, each named by its page."""
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.M | re.S)):
            found.append(pytest.param(text, id=f"{page.name}-{number}"))
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name, on a machine of known latencies."""
    (tmp_path / "models").mkdir()
    for name in ("model.onnx", "cheaper.onnx", "models/model.onnx"):
        onnx.save(network(), tmp_path / name)
    np.savez(tmp_path / "images.npz", image=examples(32))
    (pages,) = [page for page in PAGES if page.name == "pipelines.md"]
    (job,) = re.findall(r"^```yaml\n(.*?)^```$", pages.read_text(), re.M | re.S)
    (tmp_path / "job.yaml").write_text(job)
    monkeypatch.setenv("ONNX_POINTWISE_CACHE", str(tmp_path / "latencies"))
    monkeypatch.setattr(checking, "LATENCY_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", blocks("console"))
def test_commands_run(text: str, place: Path) -> None:
    (place / "cheaper").mkdir()
    lines = text.splitlines()
    assert lines and all(line.startswith("$ onnx-pointwise ") for line in lines)
    for line in lines:
        result = invoke(app, *shlex.split(line)[2:])
        assert result.exit_code == 0, f"{line}\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("text", blocks("python"))
def test_blocks_of_python_run(text: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 4)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, "block", "exec"), {"images": examples(32), "__name__": "__main__"})


def test_the_file_of_options_and_the_workflow_of_olive_name_options_that_there_are(place: Path) -> None:
    known = {item.name for item in options(Settings)}
    assert {"target_macs", "provider", "calibration", "ranks"} <= set(yaml.safe_load((place / "job.yaml").read_text()))
    (document,) = [json.loads(block.values[0]) for block in blocks("json")]
    assert set(document["passes"]["pointwise"]) - {"type"} <= known


def run_step(line: str) -> subprocess.CompletedProcess[str]:
    """Run a step as the workflow's machine does, where packages that are installed come from nowhere else."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", line]
    environment = os.environ | {"PATH": path, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)


def test_the_workflow_passes_and_fails_with_the_model(place: Path) -> None:
    commands = Path(sys.executable).parent
    for name in ("pip", "onnx-pointwise"):
        if shutil.which(name, path=str(commands)) is None:
            pytest.skip(f"{name} is not installed beside this Python")
    workflow = yaml.safe_load((ROOT / "docs" / "check-model.yml").read_text())
    steps = workflow["jobs"]["check"]["steps"]
    lines = [step["run"] for step in steps if "run" in step]
    assert len(lines) == 2 and lines[0].startswith("pip install")
    np.savez("models/images.npz", image=examples(32))
    cheaper = onnx_pointwise.rewrite(
        "models/model.onnx", target_macs=0.9, provider="none", calibration="models/images.npz", latency=False
    )
    cheaper.save("models/cheaper.onnx")
    for line in lines:
        done = run_step(line)
        assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = [step["with"]["path"] for step in steps if step.get("if") == "always()"]
    assert json.loads(Path(kept).read_text())["passed"] is True
    Path(kept).unlink()
    other = network()
    for item in other.graph.initializer:
        item.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(item)[::-1].copy(), item.name))
    onnx.save(other, "models/cheaper.onnx")
    assert run_step(lines[1]).returncode == 1
    assert json.loads(Path(kept).read_text())["passed"] is False
    Path("models/cheaper.onnx").unlink()
    assert run_step(lines[1]).returncode == 2


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_picture_is_what_the_script_draws() -> None:
    assert (ROOT / "docs" / "forms.svg").read_text() == drawing()


def test_the_first_screen_holds_what_a_newcomer_needs() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:45])
    assert first.count("```") >= 4 and "--report report.html" in first and "| before | after |" in first
