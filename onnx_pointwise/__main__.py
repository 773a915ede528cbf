"""``python -m onnx_pointwise``."""

from onnx_pointwise.cli import main

main()
