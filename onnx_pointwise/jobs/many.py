"""Rewrite many models with the same settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx_pointwise.check import Likeness
from onnx_pointwise.errors import InputError, OnnxPointwiseError, OutputError, PlanError
from onnx_pointwise.exporting import is_foreign
from onnx_pointwise.graph import require_writable
from onnx_pointwise.jobs.handing import handed_out
from onnx_pointwise.jobs.loading import require_other_file
from onnx_pointwise.jobs.pipeline import rewrite
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime import Origin, origin_of
from onnx_pointwise.schema import pair, shared
from onnx_pointwise.settings import PLAN_ONLY, ManySettings, Settings

_PATTERN = set("*?[")


@dataclass(frozen=True)
class Rewritten:
    """What became of one of many models.

    Attributes:
        source: Its file.
        target: Where the rewritten one goes.
        written: Whether it is there.
        passed: Whether its check found nothing wrong; false where it was refused.
        verdict: How alike the answers are; None where they were not compared.
        error: Why it could not be rewritten, in a sentence; None where it could.
        document: All that the rewrite tells, JSON-ready; None where there was none.
    """

    source: str
    target: str
    written: bool
    passed: bool
    verdict: Likeness | None
    error: str | None
    document: dict[str, Any] | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "source": self.source,
            "target": self.target,
            "written": self.written,
            "passed": self.passed,
            "verdict": self.verdict,
            "error": self.error,
            "result": self.document,
        }


@dataclass(frozen=True)
class Batch:
    """What became of many models.

    Attributes:
        models: Each of them, in the order of their names.
        origin: Which models, asked for what, where.
    """

    models: tuple[Rewritten, ...]
    origin: Origin

    @property
    def passed(self) -> bool:
        """Whether all of them did."""
        return all(one.passed for one in self.models)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "origin": self.origin.to_dict(),
            "passed": self.passed,
            "models": [one.to_dict() for one in self.models],
        }


def models_in(source: str | Path) -> list[Path] | None:
    """The models that a folder or a pattern stands for, by name; None for what is neither.

    Raises:
        InputError: There is no model in the folder, or none that the pattern means.
    """
    path = Path(source)
    if is_foreign(path):
        return None
    if os.path.isdir(path):  # noqa: PTH112, does not raise where a name is too long
        found = sorted(item for item in path.rglob("*.onnx") if item.is_file())
    elif _PATTERN & set(str(source)) and not os.path.exists(path):  # noqa: PTH110
        start = Path(path.anchor) if path.is_absolute() else Path()
        found = sorted(item for item in start.glob(str(path.relative_to(start))) if item.is_file())
    else:
        return None
    if not found:
        raise InputError(f"{source}: there is no .onnx file in it; name a model, a folder of them, or a pattern.")
    return found


@pair(ManySettings)
def rewrite_all(models: str | Path | Sequence[str | Path], folder: str | Path, settings: ManySettings) -> Batch:
    """Rewrite many models with the same settings, each for itself; one that fails leaves the others alone.

    With a scheduler they are handed to its workers, which must see the same files. Nothing may be timed then: plans by
    arithmetic only, and latencies are left out; `bench` times the results where they will run.

    Args:
        models: A folder, of which every .onnx file is meant, a pattern, or files.
        folder: Where the rewritten models go.
        settings: What is asked for, in place of the keywords that follow.

    Returns:
        What became of each. Those whose check passed are written.

    Raises:
        InputError: There is no model.
        OutputError: A file cannot be written, or two would have the same name.
        PlanError: The settings contradict one another, or something would be timed on workers.
        ProviderError: There is no scheduler.
    """
    settings.require_consistent()
    if settings.plan is not None:
        raise PlanError("A plan is for one model; rewrite that one alone.")
    if settings.scheduler is not None and settings.provider != PLAN_ONLY:
        raise PlanError(
            "Latency is measured where a network will run, one at a time, and not by the workers of a scheduler: name "
            "--provider none, or leave --scheduler out."
        )
    pairs = _pairs(models, Path(folder))
    one = replace(Settings(**shared(settings, Settings)), progress=None)
    if settings.scheduler is not None:
        one = replace(one, latency=False)
    how = _How(one, settings.force, settings.external_data)
    found: list[Rewritten] = []
    settings.tell("models", str(pairs[0][0]), 0, len(pairs))
    for made in handed_out(_rewritten, how, pairs, settings.scheduler):
        found.append(made)
        settings.tell("models", made.source, len(found), len(pairs))
    return Batch(tuple(found), origin_of("many", settings, *(str(source) for source, _ in pairs)))


@dataclass(frozen=True)
class _How:
    """What is the same for all models: settings, whether failures are written, where weights go."""

    settings: Settings
    force: bool
    external_data: bool | None


def _pairs(models: str | Path | Sequence[str | Path], folder: Path) -> list[tuple[Path, Path]]:
    """Each model and where it goes: under its place in its folder."""
    if isinstance(models, str | Path):
        found = models_in(models) or [Path(models)]
        base = Path(models) if Path(models).is_dir() else None
    else:
        found, base = [Path(model) for model in models], None
    if not found:
        raise InputError("There is no model to rewrite.")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; name a folder for the rewritten models.")
    if folder.suffix == ".onnx":
        raise OutputError(f"{folder}: {models} is a directory or several models; name a folder for them, not a file.")
    targets: dict[Path, Path] = {}
    for source in found:
        target = folder / (source.name if base is None else source.relative_to(base))
        require_other_file(source, target)
        if target in targets:
            raise OutputError(f"{target}: {targets[target]} and {source} would both be written there.")
        targets[target] = source
    return [(source, target) for target, source in targets.items()]


def _rewritten(how: _How, files: tuple[Path, Path]) -> Rewritten:
    """Rewrite one model and write it, if its check passes."""
    source, target = files
    written = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        require_writable(target)
        result = rewrite(source, how.settings)
        if result.passed or how.force:
            result.save(target, use_external_data_format=how.external_data)
            written = True
    except OnnxPointwiseError as error:
        return Rewritten(str(source), str(target), written, False, None, str(error), None)
    except OSError as error:
        return Rewritten(str(source), str(target), written, False, None, f"{target}: {error}.", None)
    return Rewritten(str(source), str(target), written, result.passed, result.verdict, None, result.to_dict())
