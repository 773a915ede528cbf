"""Independent pieces of work in threads, their results in order.

NumPy, SciPy and ONNX Runtime let other threads go on while they compute. Each piece computes what it would compute
alone and results are taken in order, so sums do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")


# Multiplications from which on a product is worth two threads, and rows that its halves are a multiple of.
_LARGE, _ROWS = 5e7, 16
# Each piece under way holds blocks of patches and their products, some 150 MB.
_MOST = 4


def workers(threads: int | None) -> int:
    """How many pieces to work on at a time: as many as threads asked for, or cores, but few enough for the memory."""
    return min(threads or cores(), _MOST)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, *, ahead: int = 0
) -> Generator[Result]:
    """Apply a function to items, a few at a time.

    Args:
        function: What to do with an item; it must not change what others read.
        items: The items; taken one by one, in the caller's thread.
        threads: Items under way at once. With 1, each is done in the caller's thread when its result is asked for.
        ahead: Results that may wait to be taken; at least `threads`.

    Yields:
        The results in the order of the items.

    Raises:
        Exception: The first one that the function raised, in the order of the items; what is left is not begun.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="onnx_pointwise")
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) > max(threads, ahead):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def largest_first(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, size: Callable[[Item], float]
) -> list[Result]:
    """Apply a function to items that take differently long, so that no thread is left waiting for one of the longest.

    Args:
        function: What to do with an item; it must not change what others read.
        items: The items.
        threads: Items under way at once.
        size: What tells which items take longer.

    Returns:
        The results in the order of the items; all are held.

    Raises:
        Exception: One that the function raised.
    """
    order = sorted(range(len(items)), key=lambda index: -size(items[index]))
    done = in_order(lambda index: function(items[index]), order, threads, ahead=len(items))
    found = dict(zip(order, done, strict=True))
    return [found[index] for index in range(len(items))]


def product(left: NDArray[Any], right: NDArray[Any], threads: int) -> NDArray[Any]:
    """Multiply two matrices, a large product in two halves, which two threads may do.

    Args:
        left: [m, k].
        right: [k, n].
        threads: Threads to use; the result does not depend on it.
    """
    rows = len(left)
    if rows * left.shape[1] * right.shape[1] < _LARGE:
        return cast(NDArray[Any], left @ right)
    middle = -(-rows // (2 * _ROWS)) * _ROWS
    found = np.empty((rows, right.shape[1]), np.result_type(left, right))

    def half(part: slice) -> None:
        np.matmul(left[part], right, out=found[part])

    parts = slice(0, middle), slice(middle, rows)
    if threads <= 1:
        for part in parts:
            half(part)
        return found
    other = _pool().submit(copy_context().run, half, parts[1])  # what is to be said of overflows goes along
    half(parts[0])
    other.result()
    return found


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads for halves of products, kept: beginning one takes as long as some of these."""
    return ThreadPoolExecutor(_MOST, thread_name_prefix="onnx_pointwise")


if hasattr(os, "register_at_fork"):  # a child has none of these threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@contextmanager
def beside(threads: int) -> Iterator[Callable[[Callable[[], Result]], Callable[[], Result]]]:
    """Begin pieces of work beside what the block does.

    Args:
        threads: Pieces under way at once; what is begun beyond waits. With 1, each is done when its result is asked
            for.

    Yields:
        What begins a piece. It gives what waits for the result, once, and raises what the piece raised. What is not
        begun when the block ends never is.
    """
    if threads <= 1:
        yield lambda function: function
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="onnx_pointwise")
    try:
        yield lambda function: pool.submit(function).result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Count the logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
