"""Run the pass for Olive to its end, with Olive's search over targets, and check the model that comes out.

    python -m tools.olive_run FOLDER

Takes ``pip install olive-ai``, which brings several gigabytes: CI does without. The workflow, the package
configuration and the model go into FOLDER. The digit classifier is rewritten at several targets; Olive measures each
candidate's accuracy and picks the one with the best accuracy, among them the one that computes least.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import onnx_pointwise

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits.onnx"
TARGETS = [0.7, 0.5, 0.35, 0.1]


def workflow(folder: Path) -> dict[str, Any]:
    """What Olive is asked for."""
    return {
        "input_model": {"type": "OnnxModel", "model_path": str(DIGITS)},
        "evaluators": {
            "size": {
                "metrics": [{"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}]
            }
        },
        "passes": {
            "pointwise": {
                "type": "OnnxPointwise",
                "provider": "none",
                "calibration": f"{DIGITS.with_suffix('.npz')}:calibration",
                "latency": False,
                "require": "close",
                "target_macs": {
                    "olive_parameter_type": "SearchParameter",
                    "type": "Categorical",
                    "support": TARGETS,
                },
            }
        },
        "search_strategy": {"execution_order": "joint", "sampler": "sequential"},
        "evaluator": "size",
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "log_severity_level": 3,
    }


def main() -> int:
    """Run it; 0 where the model passes its check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

    from olive.workflows import run

    from onnx_pointwise.olive import package_config

    (folder / "packages.json").write_text(json.dumps(package_config(), indent=2), encoding="utf-8")
    (folder / "workflow.json").write_text(json.dumps(workflow(folder), indent=2), encoding="utf-8")
    found = run(str(folder / "workflow.json"), package_config=str(folder / "packages.json"))
    for node in found.get_output_models():
        said = {name: round(value["value"], 4) for name, value in node.metrics_value.items()}
        print(f"{said}  {node.model_path}")
    best = found.get_best_candidate().model_path
    images = {"image": np.load(DIGITS.with_suffix(".npz"))["x"]}
    result = onnx_pointwise.check(DIGITS, best, inputs=images, latency=False)
    left = result.after.macs / result.before.macs
    worst = result.worst
    print(f"best: {left:.3f} of the MACs; check: {result.verdict}, {'' if worst is None else worst.figure}")
    return 0 if result.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
