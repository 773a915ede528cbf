"""One file a command: parse, call the public API, print. No logic."""

from onnx_pointwise.cli.app import main

__all__ = ["main"]
