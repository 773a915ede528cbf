"""What has to happen before anything else is imported.

ONNX Runtime from 1.29 on reports its use to its maker: on import it writes an identifier and a queue into the user's
cache folder, and tries to upload. Nothing is asked of the network here, so that is turned off before it begins, unless
the user has said otherwise in the environment.

Ctrl-C while the command is still being loaded ends the process without a word: nothing has begun. This only in a
process that is the command: a library leaves signals to the program it is in.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_NAME = "onnx-pointwise"
# By these names, depending on its version.
_NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")


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


for _variable in _NO_TELEMETRY:
    os.environ.setdefault(_variable, "1")
if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
