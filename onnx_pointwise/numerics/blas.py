"""One thread of linear algebra, for as long as anybody in the process wants it so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import OpenBLASController, threadpool_limits

_lock = threading.Lock()
_inside = 0
_limits: Any = None


@contextmanager
def one_thread_of_blas() -> Iterator[None]:
    """Limit linear algebra to one thread; `parallel` does several independent pieces of it at a time.

    Two pools of threads that wait by spinning, the runtime's and this one, slow each other down many times over as
    soon as anything else runs; and the sums of one thread do not depend on the number of cores.

    The limit holds for the whole process. So the first block sets it and the last one takes it back, whichever thread
    that is in: where each put back what it had found, the last to end would leave the limit of the first.
    """
    import scipy.linalg  # noqa: F401 (brings a pool of its own, which has to be there to be limited)

    global _inside, _limits
    with _lock:
        if _inside == 0:
            _take_control()
            _limits = threadpool_limits(1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _take_control()
                _limits.restore_original_limits()
                _take_control()


def _take_control() -> None:
    """Let the next thread that sets a limit do so: of late only the one that set the last one may."""
    clear = getattr(OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
