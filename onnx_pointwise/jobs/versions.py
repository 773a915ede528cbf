"""What is deployed, and what else could be, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from onnx_pointwise.check import Likeness
from onnx_pointwise.graph import save
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime import FloatShare, LatencyComparison

#: The precision of a network that nothing is made of.
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Version:
    """A network that could be deployed, held against the dense one as it is.

    Attributes:
        network: ``dense`` or ``rewritten``.
        numbers: What it computes in: the precision, or ``as it is``.
        passed: Whether its check passes, so that its answers are within the limits.
        verdict: What its answers are called.
        figure: What they were judged by at the head that is off most, with its number; None for the dense network.
        drift: Relative L2 drift of the head that drifts most; None where none was compared.
        latency: Its latency as a share of the dense network's; None where it was not timed.
        noise: Noise floor of that.
        bytes: Size of its file.
    """

    network: Literal["dense", "rewritten"]
    numbers: str
    passed: bool
    verdict: Likeness | None
    figure: str | None
    drift: float | None
    latency: float | None
    noise: float | None
    bytes: int

    @property
    def name(self) -> str:
        """What it is called: ``dense``, ``rewritten int8``."""
        return self.network if self.numbers == AS_IT_IS else f"{self.network} {self.numbers}"

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "name": self.name,
            "network": self.network,
            "numbers": self.numbers,
            "passed": self.passed,
            "verdict": self.verdict,
            "figure": self.figure,
            "drift": self.drift,
            "latency": self.latency,
            "noise": self.noise,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class Deployed:
    """What is deployed, and what else could be.

    Attributes:
        precision: What networks are made into.
        settings: Settings of ONNX Runtime's quantizer that were named.
        versions: The networks that were compared; none without a check.
        best: Name of the fastest one whose answers are within the limits, the dense one where no other is both; None
            where nothing was timed.
        pair: The rewritten network timed against the dense one, both in the precision; None where that was not done.
        floats: Kernels of the network that is handed over that compute in float32 all the same, or convert, and their
            share of its time: where they take much, the precision gains little.
        reason: Why the network came back as it was though it could be rewritten; None where it did not.
        model: The rewritten network in the precision, or the dense one where nothing is rewritten.
        dense: The dense network in the precision.
    """

    precision: str
    settings: Mapping[str, Any]
    versions: tuple[Version, ...]
    best: str | None
    pair: LatencyComparison | None
    floats: tuple[FloatShare, ...]
    reason: str | None
    model: ir.Model
    dense: ir.Model

    @property
    def slower(self) -> bool:
        """Whether the rewritten network is slower than the dense one in this precision, beyond the noise."""
        return self.pair is not None and self.pair.verdict == "slower"

    def save(self, path: str | Path, *, use_external_data_format: bool | None = None) -> None:
        """Write the network in the precision; see `graph.save`."""
        save(self.model, path, use_external_data_format=use_external_data_format)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "precision": self.precision,
            "settings": {name: str(value) for name, value in self.settings.items()},
            "versions": [version.to_dict() for version in self.versions],
            "best": self.best,
            "pair": None if self.pair is None else self.pair.to_dict(),
            "floats": [one.to_dict() for one in self.floats],
            "reason": self.reason,
        }
