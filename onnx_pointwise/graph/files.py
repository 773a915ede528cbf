"""Files that are written: in one step, through links, and never over anything else that the user named."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from onnx_pointwise.errors import OutputError
from onnx_pointwise.scratch import ScratchFolder

#: What a command was told to read or write under one name: nothing, a file, or several.
Named = str | Path | Sequence[str | Path] | None

# Links that lead to links, at most; as many as Linux follows.
_LINKS = 40
# Names in these folders stand for devices and open files, whatever they lead to: /dev/stdout, /proc/self/fd/1.
_NO_FILES = ("/dev", "/dev/fd", "/proc")


def written_through(path: str | Path) -> Path:
    """Find the file that is written where ``path`` is a symbolic link: the link stays.

    Raises:
        OutputError: The links go round in a circle, or lead to a device.
    """
    place = Path(path)
    for _ in range(_LINKS):
        folder = os.path.realpath(place.parent)
        if folder in _NO_FILES[:2] or folder.startswith(f"{_NO_FILES[2]}/"):
            raise OutputError(f"{path}: is no regular file; name another file to write.")
        if not os.path.islink(place):  # noqa: PTH114, where a name is too long it does not raise
            return place
        place = Path(folder, place.readlink())
    raise OutputError(f"{path}: is a link that leads round in a circle; name another file to write.")


def require_writable(path: str | Path) -> Path:
    """Check that a file can be written at ``path`` before any work is done.

    Raises:
        OutputError: The folder is missing or not writable, or ``path`` is a directory, a device or write-protected, or
            a link to one.
    """
    path = Path(path)
    place = written_through(path)
    try:
        if place.is_dir():
            raise OutputError(f"{path}: is a directory; name a file to write.")
        if place.exists() and not place.is_file():
            raise OutputError(f"{path}: is no regular file; name another file to write.")
        if place.exists() and not os.access(place, os.W_OK):
            raise OutputError(f"{path}: is write-protected; name another file to write.")
        if not place.parent.is_dir():
            raise OutputError(f"{path}: the folder {place.parent} does not exist; create it first.")
    except OSError as error:  # names that are too long, folders that may not be looked into
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another place.") from error
    try:
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"{path}: the folder {place.parent} cannot be written to ({error.strerror}); name another place."
        ) from error
    return path


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a scratch folder beside ``path``; what lies in it is renamed into place when the block ends well.

    Where ``path`` is a link, the scratch folder lies beside the file that it leads to, and the file named like the
    link takes that file's place.

    Raises:
        OutputError: The file system refuses.
    """
    path = require_writable(path)
    place = written_through(path)
    try:
        with ScratchFolder(place.parent) as scratch:
            yield scratch
            # The named file comes last: whoever sees it sees all that it needs.
            items = sorted(scratch.iterdir(), key=lambda item: item.name == path.name)
            _rename({item: place if item.name == path.name else place.parent / item.name for item in items})
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}).") from error


def _rename(places: Mapping[Path, Path]) -> None:
    """Bring files to their places in turn; where that ends before the last one, none is left that was not there."""
    *before, last = places
    new = [places[item] for item in before if not places[item].exists()]
    try:
        for item in places:
            with item.open("rb") as stream:
                os.fsync(stream.fileno())  # a network's file system may only now find that there is no room
        for item, place in places.items():
            item.replace(place)
    except BaseException:
        if last.exists():  # else an interruption came when all was done
            for place in new:
                place.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one step: beside the target, then renamed."""
    with staged_text(path, text):
        pass


@contextlib.contextmanager
def staged_text(path: str | Path, text: str) -> Iterator[None]:
    """Write a text file beside the target, and rename it when the block ends well.

    Raises:
        OutputError: The file system refuses.
    """
    with atomic_folder(path) as scratch:
        # Names from a model may hold halves of characters, which no encoding has.
        (scratch / Path(path).name).write_text(text, encoding="utf-8", errors="backslashreplace")
        yield


def data_name(name: str, digest: str, number: int = 0) -> str:
    """Name a file of a model's external data: the first one, or another by its number from 0."""
    return f"{name}.{digest}.data" if number == 0 else f"{name}.{digest}.{number + 1}.data"


def is_data_name(candidate: str, name: str) -> bool:
    """Tell whether a file's name is one that `data_name` gives for a model file of the given name."""
    return re.fullmatch(re.escape(name) + r"\.[0-9a-f]{8}(\.[0-9]+)?\.data", candidate) is not None


def require_apart(inputs: Mapping[str, Named], outputs: Mapping[str, Named]) -> None:
    """Check that no output of a command is one of its inputs, or another output.

    Links, hard links and different spellings of one file are seen through. A folder among the inputs stands for the
    files in it. Beside an output that is a model lies its external data, whose names nothing else may have, either.

    Args:
        inputs: What is read, by the name that the user knows it by: ``IN``, ``--calibration``.
        outputs: What is written, in the same way: ``OUT``, ``--json``.

    Raises:
        OutputError: Two of them are one file.
    """
    reads = [(role, Path(path)) for role, named in inputs.items() for path in _paths(named)]
    writes = [(role, Path(path)) for role, named in outputs.items() for path in _paths(named)]
    for number, (role, path) in enumerate(writes):
        for other, read in reads:
            if _same(path, read):
                what = "is the input itself" if other == "IN" else f"is an input, too ({other})"
                raise OutputError(f"{path}: {what}; name another file for {role}.")
            if os.path.exists(path) and os.path.isdir(read) and _within(path, read):  # noqa: PTH110, PTH112, never raise
                raise OutputError(f"{path}: lies among the inputs in {read} ({other}); name another file for {role}.")
        for other, written in writes[:number]:
            if _same(path, written):
                raise OutputError(f"{path}: both {other} and {role} would be written there; name another file for one.")
        for other, taken in (*reads, *(entry for entry in writes if entry[1] is not path)):
            if _is_data_of(taken, path):
                raise OutputError(
                    f"{path}: {taken.name} ({other}) is named like external data of {path.name}, which may be replaced "
                    f"when that is written; name another file for {role}."
                )


def _paths(named: Named) -> Iterable[str | Path]:
    return () if named is None else (named,) if isinstance(named, str | Path) else named


def _real(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _same(one: Path, other: Path) -> bool:
    if _real(one) == _real(other):
        return True
    try:
        return one.samefile(other)  # hard links, file systems that know no capitals
    except OSError:
        return False


def _within(path: Path, folder: Path) -> bool:
    return _real(path.parent) == _real(folder) or Path(_real(path)).parent == Path(_real(folder))


def _is_data_of(candidate: Path, model: Path) -> bool:
    real, place = Path(_real(candidate)), Path(_real(model))
    return real.parent == place.parent and is_data_name(real.name, place.name)
