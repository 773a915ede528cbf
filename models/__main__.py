"""Write the small ONNX files that are shipped beside the model definitions: ``python -m models [FOLDER]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models import MODELS, SHIPPED
from onnx_pointwise.errors import OnnxPointwiseError

SEED = 0


def write(name: str, folder: Path) -> Path:
    """Build one model with seeded random weights and export it.

    Raises:
        OnnxPointwiseError: the export failed or cannot be written.
    """
    from onnx_pointwise.exporting.runtime import runtime
    from tools.export_keras import export

    keras = runtime().keras
    keras.backend.clear_session()
    keras.utils.set_random_seed(SEED)
    model, path = MODELS[name](), folder / f"{name}.onnx"
    export(model, path)
    return path


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent, metavar="FOLDER")
    folder = parser.parse_args(arguments).folder
    try:
        for name in SHIPPED:
            path = write(name, folder)
            sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")
    except OnnxPointwiseError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
