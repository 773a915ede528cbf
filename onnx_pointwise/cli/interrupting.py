"""Ctrl-C, and being told to terminate: the process is gone within a second or two, whatever it is in, and tidily.

Python turns a signal into an exception when the interpreter gets round to it, which may be long after: a run of a large
network or a decomposition is one call for it. So a thread that is woken by the signal itself waits for a moment, then
takes away what lies around and ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from onnx_pointwise.scratch import remove_all

#: Seconds that the process has for ending by itself.
PATIENCE = 1.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A signal told the process to end.

    Attributes:
        number: Which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let signals raise `Interrupted` in the block, which ends with the process soon after in any case."""
    # A signal that is ignored, as in the background of a shell, stays so.
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_end_soon, args=(reader,), name="onnx_pointwise interrupts", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _interrupt)
    yield


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in _SIGNALS:  # one is enough: what is being taken away must not be interrupted by the next
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(number)


def _end_soon(reader: int) -> None:
    while (byte := os.read(reader, 1)) and byte[0] not in _SIGNALS:
        pass
    if byte:
        time.sleep(PATIENCE)
        remove_all()
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR.encode())  # what shows progress hides it
        os._exit(128 + byte[0])
