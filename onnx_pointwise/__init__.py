"""Insert 1x1 convolutions into ONNX graphs so that large-kernel convolutions get cheaper."""
