"""Folders for what is on its way to somewhere else: gone when their block ends, or when the process is told to stop.

A name is entered in the list before the folder is made, so that there is no moment at which an interruption would leave
one behind.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

_PREFIX = "onnx_pointwise."
_standing: set[Path] = set()


class ScratchFolder:
    """A folder of one's own, as a context manager or until `remove`, at the latest until the process ends.

    Args:
        beside: The folder that it lies in, under a hidden name; the system's for temporary files if None.

    Attributes:
        path: Where it is.

    Raises:
        OSError: It cannot be made there.
    """

    def __init__(self, beside: Path | None = None) -> None:
        folder, dot = (Path(tempfile.gettempdir()), "") if beside is None else (beside, ".")
        self.path = folder / f"{dot}{_PREFIX}{secrets.token_hex(8)}"
        _standing.add(self.path)
        self.remove = weakref.finalize(self, _remove, self.path)
        try:
            self.path.mkdir(mode=0o700)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def remove_all() -> None:
    """Remove every folder that stands: for a process that ends without unwinding."""
    for path in list(_standing):
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    _standing.discard(path)
