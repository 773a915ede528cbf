"""Work in a process of its own: what it does to memory, or a driver that ends its process, stays there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import ModelSource, runtime_source
from onnx_pointwise.runtime.inputs import Array
from onnx_pointwise.scratch import ScratchFolder


@contextlib.contextmanager
def laid_out(model: ModelSource | bytes, feeds: Mapping[str, Array]) -> Iterator[dict[str, str]]:
    """Lay a network and its inputs into files that another process can read, as long as the block lasts."""
    with runtime_source(model) as source, ScratchFolder() as folder:
        path = Path(source) if isinstance(source, str) else folder / "model.onnx"
        if isinstance(source, bytes):
            path.write_bytes(source)
        arrays: dict[str, Any] = dict(feeds)
        np.savez(folder / "inputs.npz", **arrays)
        yield {"model": str(path.resolve()), "inputs": str(folder / "inputs.npz")}


def feeds_of(job: Mapping[str, Any]) -> dict[str, Array]:
    """Read the inputs that `laid_out` wrote, in the other process."""
    with np.load(job["inputs"]) as archive:
        return {name: archive[name] for name in archive.files}


def in_fresh_process(function: str, job: Mapping[str, Any], *, seconds: float | None = None) -> Any:
    """Run a function of this package in a fresh process.

    Args:
        function: Module and function, ``module:function``; it takes the job and returns what JSON can hold.
        job: What it is given.
        seconds: Time it may take; None for as long as it takes.

    Returns:
        What the function returned.

    Raises:
        ModelError: It failed, its process died, or it took longer.
    """
    module, _, name = function.partition(":")
    search_path = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search_path))}
    code = f"from onnx_pointwise.runtime.aside import work; from {module} import {name}; work({name})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{job['model']}: it took longer than {seconds:g} s in a process of its own.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"{job['model']}: the model does not run in a process of its own: {last}.")
    return json.loads(done.stdout.splitlines()[-1])


def work(function: Any) -> None:
    """Do the work in the fresh process: a job as JSON in, what the function returns as JSON out."""
    sys.stdout.write(json.dumps(function(json.loads(sys.stdin.read()))) + "\n")
