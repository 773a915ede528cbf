"""The cache of latencies: what is put in comes out, within its bound, and nothing wrong with it stops anyone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from onnx_pointwise import cache_info, clear_cache
from onnx_pointwise.errors import OutputError
from onnx_pointwise.latency.cache import FOLDER_VARIABLE, LatencyCache, folder
from onnx_pointwise.latency.keeping import kept


def test_what_is_put_in_comes_out_in_another_process_too(tmp_path: Path) -> None:
    values = {f"key {index}": index / 7 for index in range(1200)} | {"list": [0.5, "faster"]}
    LatencyCache(tmp_path / "a" / "c.sqlite").put(values)
    again = LatencyCache(tmp_path / "a" / "c.sqlite")
    assert again.get([*values, "missing"]) == values
    assert again.info().entries == len(values)
    assert again.info().bytes == (tmp_path / "a" / "c.sqlite").stat().st_size


def test_the_oldest_go_beyond_the_bound_and_use_keeps_young(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path / "c.sqlite", most=3)
    for index in range(3):
        cache.put({str(index): index})
    cache.get(["0"])
    cache.put({"3": 3})
    assert cache.get(map(str, range(4))) == {"0": 0, "2": 2, "3": 3}


@pytest.mark.parametrize("content", [b"no database at all, but text", b"SQLite format 3\0" + b"\xff" * 200])
def test_a_damaged_file_is_an_empty_cache_and_heals(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(content)
    cache = LatencyCache(path)
    assert cache.get(["a"]) == {}
    assert cache.info().entries == 0
    cache.put({"a": 1.0})
    assert cache.get(["a"]) == {"a": 1.0}


def test_a_place_that_cannot_be_written_is_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = LatencyCache(tmp_path / "file" / "c.sqlite")
    cache.put({"a": 1.0})
    assert cache.get(["a"]) == {}


def test_a_locked_file_only_costs_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.sqlite"
    LatencyCache(path).put({"a": 1.0})
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda where, timeout: connect(where, timeout=0.01))
    holder = connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    assert LatencyCache(path).get(["a"]) == {}
    LatencyCache(path).put({"b": 2.0})
    holder.rollback()
    holder.close()
    assert LatencyCache(path).get(["a", "b"]) == {"a": 1.0}


def test_clearing_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "here"))
    assert folder() == tmp_path / "here"
    LatencyCache().put({"a": 1.0})
    assert cache_info().entries == 1
    clear_cache()
    assert cache_info().entries == 0
    clear_cache()
    (tmp_path / "here").mkdir(exist_ok=True)
    cache_info().path.mkdir()
    with pytest.raises(OutputError, match="cannot be removed"):
        clear_cache()


def test_without_the_variable_it_lies_with_the_users_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert "onnx-pointwise" in folder().parts


@pytest.mark.parametrize("damage", ["cut", "overwritten", "headless"])
def test_a_file_that_is_damaged_further_in_heals_with_the_second_attempt(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    cache = LatencyCache(path)
    cache.put({str(number): float(number) for number in range(2000)})
    data = bytearray(path.read_bytes())
    assert len(data) > 20 * 4096
    if damage == "cut":
        del data[5 * 4096 + 100 :]
    elif damage == "overwritten":
        data[4096:] = b"\xa5" * (len(data) - 4096)
    else:
        data[:100] = bytes(100)
    path.write_bytes(data)
    found = cache.get(map(str, range(2000)))
    assert all(value == float(key) for key, value in found.items())
    for _ in range(2):
        cache.put({"new": 1.0})
    assert cache.get(["new"]) == {"new": 1.0}


@pytest.mark.parametrize(
    "entry",
    [
        "text", 1.0, [], [1.0, 2], ["a", 2, [1, {}]], [1.0, 0, [1, {"a": "b"}]], [1.0, 0.0, [1]], [1.0, 0.0, [1, []]],
        [1.0, 0.0, {}], [1.0, 0.1, "quick"], [1.0, "a", "faster"], [1.0, -1, "faster"], [-1.0, 2, [1, {}]],
    ],
)  # fmt: skip
def test_measurements_of_networks_that_are_none_are_made_again(entry: object, tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path / "c.sqlite")
    cache.put({"key": entry})
    assert kept(cache, "key", lambda: [1.0, 0.01, [3, {"conv": 0.5}]]) == [1.0, 0.01, [3, {"conv": 0.5}]]
    assert cache.get(["key"]) == {"key": [1.0, 0.01, [3, {"conv": 0.5}]]}, "and kept in its place"
    cache.put({"key": [0.5, 0.02, "faster"]})
    assert kept(cache, "key", list) == [0.5, 0.02, "faster"]


def test_what_another_run_measured_under_noise_is_made_again_and_the_quieter_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    noisy, noisier, quiet = [0.5, 0.2, "faster"], [0.7, 0.3, "no change"], [0.6, 0.02, "faster"]
    first = LatencyCache(path)
    assert kept(first, "key", lambda: noisy) == noisy
    assert kept(first, "key", list) == noisy, "a run does not measure twice"
    assert kept(LatencyCache(path), "key", lambda: noisier) == noisy
    assert kept(LatencyCache(path), "key", lambda: quiet) == quiet
    assert kept(LatencyCache(path), "key", list) == quiet
    assert kept(None, "key", lambda: noisy) == noisy
