"""Nothing is ever asked of the network: a whole job, its check, its timing and its files, with no way to get out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from onnx_pointwise.cli.app import app
from tests.staircase import install


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every way of Python's to the network is closed; gives what was tried."""
    tried: list[str] = []

    def refuse(name: str) -> Any:
        def refused(*_: object, **__: object) -> NoReturn:
            tried.append(name)
            raise OSError("no network here")

        return refused

    for name in ("connect", "connect_ex", "sendto", "bind", "listen"):
        monkeypatch.setattr(socket.socket, name, refuse(name), raising=False)
    for name in ("create_connection", "getaddrinfo", "gethostbyname", "create_server"):
        monkeypatch.setattr(socket, name, refuse(name))
    return tried


def test_the_closed_ways_are_closed(cut_off: list[str]) -> None:
    with pytest.raises(OSError, match="no network here"):
        urllib.request.urlopen("http://localhost:9/")
    assert cut_off


def test_no_command_asks_the_network(
    cut_off: list[str], small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, 8)
    source, out = small_folder / "small.onnx", tmp_path / "out.onnx"
    given = ("--calibration", f"{small_folder / 'small.npz'}:examples")
    for line in (
        ("providers",),
        ("inspect", source),
        ("rewrite", source, out, "--target-latency", 0.8, *given, "--json", tmp_path / "out.json", "--force"),
        ("check", source, out),
        ("bench", source, out, "--runs", 2),
        ("cache",),
    ):
        result = CliRunner().invoke(app, [str(word) for word in line])
        assert result.exit_code in (0, 1), result.output
    assert cut_off == []


@pytest.mark.parametrize("said", [None, "0"])
def test_the_runtime_reports_nothing_to_its_maker(said: str | None, tmp_path: Path) -> None:
    """It would leave an identifier and a queue in the user's cache, and does not do so where it finds itself in CI."""
    environment = {name: text for name, text in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    if said is not None:
        environment["ORT_DISABLE_TELEMETRY"] = said
    code = "import os, onnx_pointwise; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (said or "1")
    if said is None:
        assert list(tmp_path.iterdir()) == []
