"""The command line: parse, call the public API, print.

It holds no logic.
"""

from onnx_pointwise.cli.app import main

__all__ = ["main"]
