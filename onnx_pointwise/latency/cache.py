"""Measured latencies on disk, so that a shape that was measured once on a machine is not measured again.

An entry is found by a digest of everything that its value depends on: the caller puts provider, device, instruction
sets, versions, threads and shapes into its key. A cache that cannot be read or written, on a read-only disk say, is
an empty one: it only ever saves time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from onnx_pointwise.errors import OutputError
from onnx_pointwise.jsonable import json_ready

#: Environment variable that names another folder for the cache.
FOLDER_VARIABLE = "ONNX_POINTWISE_CACHE"
#: The most entries kept, some 10 MB; those not used for longest go first.
MOST_ENTRIES = 50_000

_FILE = "latency.sqlite"
_SCHEMA = "CREATE TABLE IF NOT EXISTS latency (key TEXT PRIMARY KEY, value TEXT NOT NULL, used REAL NOT NULL)"
# Keys in one statement: SQLite limits how many values a statement may bind.
_AT_ONCE = 500


def folder() -> Path:
    """Where the cache lies: what ``ONNX_POINTWISE_CACHE`` names, else the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("onnx-pointwise")


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds.

    Attributes:
        path: Its file.
        entries: Measurements in it.
        bytes: Size of the file; 0 where there is none.
    """

    path: Path
    entries: int
    bytes: int

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {"path": str(self.path), "entries": self.entries, "bytes": self.bytes}


def cache_info() -> CacheInfo:
    """Tell where the user's cache lies and what it holds."""
    return LatencyCache().info()


def clear_cache() -> None:
    """Forget every latency that was measured.

    Raises:
        OutputError: The file cannot be removed.
    """
    LatencyCache().clear()


class LatencyCache:
    """A bounded store of measurements on disk.

    Args:
        path: Its file; by default the user's.
        most: The most entries to keep.
    """

    def __init__(self, path: Path | None = None, *, most: int = MOST_ENTRIES) -> None:
        self.path = path if path is not None else folder() / _FILE
        self._most = most
        self._own: set[str] = set()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """Look measurements up.

        Args:
            keys: Keys, as given to `put`.

        Returns:
            The values of those that are known.
        """
        digests = {_digest(key): key for key in keys}
        listed = sorted(digests)
        parts = [listed[start : start + _AT_ONCE] for start in range(0, len(listed), _AT_ONCE)]
        found: dict[str, Any] = {}
        with self._open(write=False) as base:
            for part in parts if base is not None else ():
                assert base is not None
                for digest, value in base.execute(
                    f"SELECT key, value FROM latency WHERE key IN ({_marks(part)})", part
                ):
                    found[digests[digest]] = json.loads(value)
            for part in parts if base is not None else ():  # last: the file may be read-only
                assert base is not None
                base.execute(f"UPDATE latency SET used = ? WHERE key IN ({_marks(part)})", (time.time(), *part))
        return found

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep measurements, and drop the oldest ones beyond the bound.

        Args:
            values: JSON-ready values by key.
        """
        self._own |= set(values)
        with self._open(write=True) as base:
            if base is None or not values:
                return
            now = time.time()
            rows = [(_digest(key), json.dumps(value), now) for key, value in values.items()]
            base.executemany("INSERT OR REPLACE INTO latency VALUES (?, ?, ?)", rows)
            base.execute(
                "DELETE FROM latency WHERE key NOT IN (SELECT key FROM latency ORDER BY used DESC, key LIMIT ?)",
                (self._most,),
            )

    def is_own(self, key: str) -> bool:
        """Whether a measurement was put in by this run, not by another one before."""
        return key in self._own

    def info(self) -> CacheInfo:
        """Count what is there."""
        entries = 0
        with self._open(write=False) as base:
            if base is not None:
                ((entries,),) = base.execute("SELECT COUNT(*) FROM latency")
        return CacheInfo(self.path, entries, self.path.stat().st_size if self.path.is_file() else 0)

    def clear(self) -> None:
        """Forget everything.

        Raises:
            OutputError: The file cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path}: the cache cannot be removed: {error.strerror}.") from error

    @contextlib.contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection | None]:
        """Open the file; None where that cannot be done. What fails inside is as if it had not been tried."""
        base = None
        with contextlib.suppress(sqlite3.Error, OSError):
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            if write or self.path.is_file():
                base = self._connect(heal=write)
        damaged = False
        try:
            yield base
            if base is not None:
                base.commit()
        except (sqlite3.Error, ValueError) as error:
            damaged = type(error) is sqlite3.DatabaseError  # others are of locks, and of files that are read-only
        finally:
            if base is not None:
                base.close()
        if damaged and write:
            with contextlib.suppress(OSError):
                self.path.unlink()  # what is put in next starts over

    def _connect(self, *, heal: bool) -> sqlite3.Connection:
        base = sqlite3.connect(self.path, timeout=5.0)
        try:
            base.execute(_SCHEMA)
        except sqlite3.OperationalError:  # locked, or read-only
            base.close()
            raise
        except sqlite3.DatabaseError:
            base.close()
            if not heal:
                raise
            self.path.unlink()  # no database: nothing is lost by starting over
            return self._connect(heal=False)
        return base


def is_duration(value: Any) -> bool:
    """Whether an entry may be a time: other programs, other versions and damage may have left anything there."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
