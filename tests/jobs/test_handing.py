"""Pieces that a Dask scheduler hands out come back as if they had been done here, whoever is lost on the way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnx_pointwise
from onnx_pointwise.errors import PlanError, ProviderError
from onnx_pointwise.jobs.handing import handed_out
from tests.small import examples, network

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    onnx.save(network(), path)
    return path


def squared(folder: Path, number: int) -> tuple[int, int]:
    """The square, and who worked it out; the worker that takes up 3 for the first time is lost."""
    begun = folder / str(number)
    if number == 3 and not begun.exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    begun.touch()
    return number * number, os.getpid()


def test_results_come_in_order_though_a_worker_is_lost(cluster: Any, tmp_path: Path) -> None:
    found = list(handed_out(squared, tmp_path, range(6), cluster.scheduler_address))
    assert [square for square, _ in found] == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {who for _, who in found}
    (tmp_path / "3").touch()
    assert {who for _, who in handed_out(squared, tmp_path, range(6), None)} == {os.getpid()}


def without_times(document: dict[str, Any]) -> str:
    return json.dumps(
        {name: value for name, value in document.items() if name not in ("seconds", "origin")}, default=str
    )


def test_a_sweep_equals_the_local_one_though_a_worker_is_killed(cluster: Any, model: Path) -> None:
    asked: dict[str, Any] = {"calibration": examples(32), "shares": (0.8, 0.6, 0.4), "providers": ("none",)}
    here = onnx_pointwise.sweep(model, **asked)
    killed = []

    def kill(stage: str, what: str, done: int = 0, total: int = 0) -> None:
        if stage == "networks" and not killed:
            killed.append(next(worker.pid for worker in cluster.workers.values() if worker.pid is not None))
            os.kill(killed[0], signal.SIGKILL)

    there = onnx_pointwise.sweep(model, **asked, scheduler=cluster.scheduler_address, progress=kill)
    assert killed
    assert without_times(there.to_dict()) == without_times(here.to_dict())
    assert len(here.fronts[0].points) == 3


def test_folders_come_out_the_same(cluster: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        (tmp_path / "in" / f"{name}.onnx").write_bytes(model.read_bytes())
    asked: dict[str, Any] = {"target_macs": 0.6, "calibration": examples(24), "provider": "none", "latency": False}
    here = onnx_pointwise.rewrite_all(tmp_path / "in", tmp_path / "here", **asked)
    there = onnx_pointwise.rewrite_all(
        tmp_path / "in", tmp_path / "there", **asked, scheduler=cluster.scheduler_address
    )
    assert [one.verdict for one in there.models] == [one.verdict for one in here.models]
    for name in ("one", "two"):
        file = f"{name}.onnx"
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_what_is_timed_is_not_handed_out(model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="measured where a network will run"):
        onnx_pointwise.rewrite_all([model], tmp_path / "out", target_macs=0.5, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(ProviderError, match=r"no Dask scheduler answers there"):
        list(handed_out(squared, tmp_path, [1], "nonsense://nowhere"))
