from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from onnx_pointwise.numerics import one_thread_of_blas


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blocks_that_overlap_leave_what_was_there() -> None:
    """Of two threads, the one that began first ends first."""
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread_of_blas():
            begun.set()
            ended.wait(60)

    with threadpool_limits(3, user_api="blas"):
        before = threads()
        assert before != {1}
        thread = threading.Thread(target=other)
        with one_thread_of_blas():
            thread.start()
            assert begun.wait(60)
        assert threads() == {1}, "the other thread is still at it"
        ended.set()
        thread.join()
        assert threads() == before
        with pytest.raises(KeyboardInterrupt), one_thread_of_blas(), one_thread_of_blas():
            assert threads() == {1}
            raise KeyboardInterrupt
        assert threads() == before
