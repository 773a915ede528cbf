"""Standard output that nobody reads to its end, or that has no room left."""

from __future__ import annotations

import io
import os
import sys

from onnx_pointwise.errors import OutputError


class _Patient(io.TextIOWrapper):
    """Text for a reader that may go, as ``| head`` does: what comes then is dropped, and the work goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # for what is still in buffers, here and elsewhere
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"Standard output cannot be written ({error.strerror}); send it elsewhere.") from error


def make_patient() -> None:
    """Let what is printed be lost where nobody reads it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            stream.flush()
            patient = _Patient(
                stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=stream.line_buffering
            )
            setattr(sys, name, patient)
