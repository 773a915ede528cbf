"""Work in threads: results in order, errors where they belong, nothing left running."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onnx_pointwise.numerics import parallel
from onnx_pointwise.numerics.parallel import beside, in_order, largest_first, workers


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads):
    def late(item):
        time.sleep(0.002 * (7 - item % 7))
        return item * item

    assert list(in_order(late, range(20), threads)) == [item * item for item in range(20)]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_largest_is_begun_first_and_nobody_waits_for_it(threads):
    begun, rest = [], threading.Event()

    def work(item):
        begun.append(item)
        if item == 9 and threads > 1:
            assert rest.wait(10)  # the others are all done meanwhile
        elif len(begun) == 6:
            rest.set()
        return -item

    assert largest_first(work, [3, 1, 9, 4, 0, 5], threads, lambda item: item) == [-3, -1, -9, -4, 0, -5]
    assert begun == [9, 5, 4, 3, 1, 0]


def test_few_items_are_taken_ahead():
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    results = in_order(lambda item: item, items(), 2)
    assert next(results) == 0
    assert len(taken) <= 3
    results.close()
    assert len(taken) <= 3
    further = in_order(lambda item: item, items(), 2, ahead=8)
    taken.clear()
    assert next(further) == 0
    assert len(taken) == 9
    further.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_is_raised_in_its_place(threads):
    def fail(item):
        if item >= 4:
            raise ValueError(str(item))
        return item

    seen = []
    with pytest.raises(ValueError, match="4"):
        for result in in_order(fail, range(30), threads):
            seen.append(result)
    assert seen == [0, 1, 2, 3]
    assert not any("onnx_pointwise" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("threads", [1, 2])
def test_work_beside(threads):
    with beside(threads) as begin:
        results = [begin(lambda number=number: number + 7) for number in range(5)]
        assert [result() for result in results] == [7, 8, 9, 10, 11]
        failing = begin(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            failing()


def test_what_is_begun_runs_beside_the_block_and_what_is_not_never_does(monkeypatch):
    met, begun, ending = threading.Barrier(2), [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ending.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyError), beside(2) as begin:
        # Two pieces wait for each other: both must be under way. Only where they are not, time runs out.
        assert [result() >= 0 for result in [begin(lambda: met.wait(100)), begin(lambda: met.wait(100))]]
        for number in range(20):
            begin(lambda number=number: begun.append(number) or ending.wait())
        raise KeyError
    assert len(begun) <= 2


def test_as_many_workers_as_threads_up_to_what_memory_bears():
    assert workers(1) == 1
    assert workers(2) == 2
    assert workers(64) == 4
    assert 1 <= workers(None) <= 4


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 47])
def test_a_product_in_halves_is_the_product(monkeypatch, rows):
    """Of whatever many rows, to the last bit in one thread and in two; what is said of overflows is said as asked."""
    monkeypatch.setattr(parallel, "_LARGE", 1.0)
    rng = np.random.default_rng(rows)
    left, right = rng.standard_normal((rows, 9), dtype=np.float32), rng.standard_normal((9, 7), dtype=np.float32)
    alone, together = (parallel.product(left, right, threads) for threads in (1, 2))
    np.testing.assert_allclose(alone, left @ right, rtol=1e-5, atol=1e-6)
    assert alone.tobytes() == together.tobytes()
    with np.errstate(all="raise", over="ignore", invalid="ignore"):
        parallel.product(left * np.float32(3e38), right * np.float32(3e38), 2)
