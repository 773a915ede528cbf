"""What a network gave, kept until the other one has run: in memory as long as that is little, then in a file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, overload

import numpy as np

from onnx_pointwise.runtime import Array

Given = Mapping[str, Array]

#: Bytes of values that a run keeps in memory; pictures and maps of hundreds of examples are more.
MOST_BYTES = 2**28


class Kept(Sequence[Given | str]):
    """Values of each batch by name, or why it did not run.

    They are compared batch by batch, so no more than one batch of what lies in the file is in memory at a time. The
    file is gone with the object.

    Args:
        most: Bytes to keep in memory.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._left = most
        self._file: IO[bytes] | None = None
        self._batches: list[str | dict[str, Array | _Place]] = []

    def add(self, values: Given | str) -> None:
        """Keep what the next batch gave."""
        if isinstance(values, str):
            self._batches.append(values)
            return
        size = sum(array.nbytes for array in values.values())
        if size <= self._left:
            self._left -= size
            self._batches.append(dict(values))
        else:
            self._batches.append({name: self._written(array) for name, array in values.items()})

    def _written(self, array: Array) -> _Place:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="onnx_pointwise_")  # noqa: SIM115 (closed with the object)
        start = self._file.seek(0, 2)
        self._file.write(array.tobytes())
        return _Place(start, array.shape, array.dtype)

    def __len__(self) -> int:
        """How many batches there were."""
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> Given | str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Given | str]: ...
    def __getitem__(self, index: int | slice) -> Given | str | Sequence[Given | str]:
        """What a batch gave."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        batch = self._batches[index]
        if isinstance(batch, str):
            return batch
        return {name: self._read(one) if isinstance(one, _Place) else one for name, one in batch.items()}

    def __iter__(self) -> Iterator[Given | str]:
        """Go through the batches; each is read when its turn comes."""
        return (self[index] for index in range(len(self)))

    def _read(self, place: _Place) -> Array:
        assert self._file is not None, "places lie in the file"
        self._file.seek(place.start)
        data = self._file.read(math.prod(place.shape) * place.dtype.itemsize)
        return np.frombuffer(data, place.dtype).reshape(place.shape)


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the file."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
