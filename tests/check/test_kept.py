"""What a run gave comes back as it was, from memory or from the file."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnx_pointwise.check.kept import Kept


@pytest.mark.parametrize("most", [0, 1000, 10**9])
def test_values_come_back_as_they_were(most: int) -> None:
    rng = np.random.default_rng(0)
    given = [
        {"a": rng.standard_normal((3, 5)).astype(np.float32), "b": np.arange(6).reshape(2, 3) % 2 == 0},
        "it did not run",
        {"a": rng.standard_normal((0, 5)), "c": np.array(3, np.int64)},
        {"a": rng.standard_normal((200, 3)).astype(ml_dtypes.bfloat16), "t": rng.standard_normal((4, 5, 6)).T},
    ]
    kept = Kept(most)
    for values in given:
        kept.add(values)
    assert len(kept) == 4
    for _ in range(2):  # more than one provider may ask for them
        for was, now in zip(given, kept, strict=True):
            if isinstance(was, str):
                assert now == was
                continue
            assert not isinstance(now, str) and list(now) == list(was)
            for name, array in was.items():
                assert now[name].dtype == array.dtype
                np.testing.assert_array_equal(now[name], array)
    assert [isinstance(values, str) for values in kept[1:3]] == [True, False]


def test_no_more_stays_in_memory_than_was_allowed() -> None:
    kept = Kept(3 * 800)
    for _ in range(10):
        kept.add({"x": np.zeros(100)})
    inside = sum(isinstance(batch["x"], np.ndarray) for batch in kept._batches if not isinstance(batch, str))
    assert inside == 3
