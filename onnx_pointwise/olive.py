"""A pass for Olive (``olive-ai``), configured in its JSON by the same names as everywhere else.

Olive finds it through a package configuration, which `package_config` writes:

    python -m onnx_pointwise.olive packages.json
    olive run --config workflow.json --package-config packages.json

Olive searches over whatever is given as one of its search parameters:

    "target_macs": {"olive_parameter_type": "SearchParameter", "type": "Categorical", "support": [0.7, 0.5, 0.35]}
"""

from __future__ import annotations

import functools
import json
import operator
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_args, get_type_hints

from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from onnx_pointwise.errors import PlanError
from onnx_pointwise.examples import read_npz
from onnx_pointwise.jobs import rewrite
from onnx_pointwise.runtime import provider_name
from onnx_pointwise.schema import options
from onnx_pointwise.settings import Settings

# Olive has evaluators and processors of its own.
_LEFT_OUT = {"evaluate", "max_loss", "jobs"}


class OnnxPointwise(Pass):  # type: ignore[misc]
    """Makes convolutions cheaper with 1x1 convolutions; a rewrite whose check fails ends the pass."""

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """Plans are made for what is measured on a provider."""
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            name: PassConfigParam(
                type_=_kind(name, hint),
                default_value=default if isinstance(default, str | int | float) else None,
                description=sentence,
            )
            for name, hint, default, sentence in _parameters()
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        given = {name: getattr(config, name) for name, *_ in _parameters()}
        asked = {name: _value(name, value) for name, value in given.items() if value is not None}
        if "provider" not in config.model_fields_set:
            asked["provider"] = provider_name(str(self.accelerator_spec.execution_provider or "cpu"))
        result = rewrite(model.model_path, Settings(**asked))
        if not result.passed:
            said = [] if result.check is None else [finding.sentence for finding in result.check.findings]
            raise PlanError(" ".join(said) or "The check of the rewritten model failed.")
        target = Path(resolve_onnx_path(output_model_path))
        result.save(target)
        about = {
            "verdict": result.verdict,
            "macs_left": result.after.macs / max(1, result.before.macs),
            "plan": result.plan.to_dict(),
        }
        return ONNXModelHandler(
            model_path=target, model_attributes={**(model.model_attributes or {}), "onnx_pointwise": about}
        )


def _parameters() -> list[tuple[str, Any, Any, str]]:
    """Name, type, default and sentence of what a workflow may say."""
    hints = get_type_hints(Settings)
    return [
        (item.name, hints[item.name], None if item.default is MISSING else item.default, item.text)
        for item in options(Settings)
        if item.line is not None and item.name not in _LEFT_OUT
    ]


def _kind(name: str, hint: Any) -> Any:
    """The type of a parameter in JSON: of each part of the hint what JSON has for it."""
    if name == "inputs":
        return str
    parts = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found = dict.fromkeys(_json_kind(part) for part in parts if part is not type(None))
    return functools.reduce(operator.or_, found)


def _json_kind(part: Any) -> Any:
    kind = getattr(part, "__origin__", part)
    if kind in (bool, float, int):
        return kind
    if kind is Mapping:
        return dict
    return list if kind is Sequence else str


def _value(name: str, value: Any) -> Any:
    """A value of JSON as the keyword takes it."""
    if name == "inputs":
        return read_npz(value)
    if isinstance(value, list):
        return tuple(value)
    if name == "ranks" and isinstance(value, dict):
        return {node: tuple(rank) if isinstance(rank, list) else rank for node, rank in value.items()}
    return value


def package_config() -> dict[str, Any]:
    """Olive's own package configuration with the pass in it."""
    document: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text("utf-8"))
    document["passes"]["OnnxPointwise"] = {
        "module_path": "onnx_pointwise.olive.OnnxPointwise",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
    }
    return document


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m onnx_pointwise.olive PACKAGES.json")
    try:
        Path(sys.argv[1]).write_text(json.dumps(package_config(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"{sys.argv[1]}: cannot be written: {error}.") from error
