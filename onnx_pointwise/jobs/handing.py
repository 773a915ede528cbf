"""Pieces of a job that do not depend on one another: done here one after the other, or handed to a Dask scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from onnx_pointwise.errors import ProviderError

_Shared = TypeVar("_Shared")
_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")

# Seconds to wait for a scheduler.
_PATIENCE = 30.0


def handed_out(
    function: Callable[[_Shared, _Piece], _Result], shared: _Shared, pieces: Sequence[_Piece], scheduler: str | None
) -> Iterator[_Result]:
    """Do all pieces; give the results in their order, each as soon as it and those before it are there.

    Nothing that is timed may be among them: a machine that works on several pieces is slower for each. A worker that
    is lost loses what it had begun, and Dask gives that to another.

    Args:
        function: What to do with a piece; it can be pickled, as what is shared, pieces and results can.
        shared: What all of them take, too.
        pieces: The pieces.
        scheduler: Address of a Dask scheduler, as ``tcp://host:8786``; None does everything here.

    Raises:
        ProviderError: Dask is not installed, or there is no scheduler at that address.
    """
    if scheduler is None:
        for piece in pieces:
            yield function(shared, piece)
        return
    distributed = _dask()
    try:
        client = distributed.Client(scheduler, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ProviderError(f"--scheduler {scheduler}: no Dask scheduler answers there: {error}.") from error
    with client:
        # Sent once, as the result of a task: unlike scattered data it can be had again when its worker is lost.
        sent = client.submit(_same, shared, pure=False)
        futures = [client.submit(function, sent, piece, pure=False) for piece in pieces]
        for future in futures:
            yield future.result()


def _same(shared: _Shared) -> _Shared:
    return shared


def _dask() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ProviderError(
            "--scheduler hands pieces to Dask, which is not installed: pip install 'onnx-pointwise[dask]', here and "
            "where the workers run."
        ) from error
    return distributed
