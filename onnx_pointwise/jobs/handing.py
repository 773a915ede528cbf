"""Pieces of a job that do not depend on one another: done here one after the other, or handed to a Dask scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from onnx_pointwise.errors import ProviderError

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")

#: Called before a piece is taken up here, or once one is done elsewhere, with how many are done.
Counted = Callable[[int], None]
# Seconds to wait for a scheduler.
_PATIENCE = 10.0


def handed_out(
    function: Callable[[_Piece], _Result], pieces: Sequence[_Piece], scheduler: str | None, counted: Counted
) -> Iterator[_Result]:
    """Do all pieces; give the results in their order.

    Nothing that is timed may be among them: a machine that works on several pieces is slower for each. A worker that
    is lost loses what it had begun, and Dask gives that to another.

    Args:
        function: What to do with a piece; it can be pickled, as pieces and results can.
        pieces: The pieces.
        scheduler: Address of a Dask scheduler, as ``tcp://host:8786``; None does everything here.
        counted: Is told how many are done.

    Raises:
        ProviderError: Dask is not installed, or there is no scheduler at that address.
    """
    if scheduler is None:
        for number, piece in enumerate(pieces):
            counted(number)
            yield function(piece)
        return
    distributed = _dask()
    try:
        client = distributed.Client(scheduler, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ProviderError(f"--scheduler {scheduler}: no Dask scheduler answers there: {error}.") from error
    with client:
        # The same piece twice is the same work, but a key made from pieces would depend on their bytes.
        futures = client.map(function, list(pieces), pure=False)
        for done, _ in enumerate(distributed.as_completed(futures, raise_errors=False)):
            counted(done + 1)
        for future in futures:
            yield future.result()


def _dask() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ProviderError(
            "--scheduler hands pieces to Dask, which is not installed: pip install 'onnx-pointwise[dask]', here and "
            "where the workers run."
        ) from error
    return distributed
