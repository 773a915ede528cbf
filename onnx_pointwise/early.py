"""Ctrl-C while the command is still being loaded: nothing has begun, so the process leaves without a word.

Imported first of all, and only in a process that is the command: a library leaves signals to the program it is in.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_NAME = "onnx-pointwise"


def is_command() -> bool:
    """Tell whether this process was started as the command: by its name, or by ``python -m onnx_pointwise``."""
    started = sys.argv[0] if getattr(sys, "argv", None) else ""
    # Without pathlib, which takes as long to load as all the rest of this.
    name = started.replace("\\", "/").rpartition("/")[2].partition(".")[0]
    line = sys.orig_argv
    as_module = any(line[index : index + 2] == ["-m", __package__] for index in range(len(line)))
    return name == _NAME or (as_module and name in ("-m", "__main__"))


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
