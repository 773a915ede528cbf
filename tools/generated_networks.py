"""Convolutional networks with random weights, built without a training framework, to measure latency on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Feature maps of the stages of a ResNet-18, two blocks each (He, Zhang, Ren and Sun 2016, table 1).
RESNET18 = (64, 128, 256, 512)
#: Feature maps of the stages of a VGG-16, a pooling behind each (Simonyan and Zisserman 2014, table 1, D).
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Network:
    """A graph that grows node by node.

    Args:
        channels: Feature maps of the input ``x``.
        size: Its height and width.
        seed: Seed of the weights.
    """

    def __init__(self, channels: int, size: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, size, size])
        self.channels = {"x": channels}

    def node(self, op_type: str, *inputs: str, channels: int, **attributes: Any) -> str:
        """Add a node; gives the name of its output."""
        name = f"{op_type.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, list(inputs), [f"{name}.y"], name=name, **attributes))
        self.channels[f"{name}.y"] = channels
        return f"{name}.y"

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        """Add random weights that keep the size of activations, times a gain; gives their name."""
        scale = np.float32(gain * math.sqrt(2.0 / math.prod(shape[1:])))
        name = f"w{len(self._weights)}"
        values = self._rng.standard_normal(shape, dtype=np.float32) * scale
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(
        self,
        x: str,
        maps: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        group: int = 1,
        relu: bool = True,
        gain: float = 1.0,
    ) -> str:
        """Add a convolution with bias that keeps the size but for its stride."""
        pad = dilation * (kernel - 1) // 2
        weight = self.weight(maps, self.channels[x] // group, kernel, kernel, gain=gain)
        y = self.node(
            "Conv",
            x,
            weight,
            self.weight(maps),
            channels=maps,
            strides=[stride] * 2,
            dilations=[dilation] * 2,
            pads=[pad] * 4,
            group=group,
        )
        return self.node("Relu", y, channels=maps) if relu else y

    def residual(self, x: str, maps: int, *, stride: int = 1, gain: float = 1.0) -> str:
        """Add a block of two 3x3 convolutions around which its input goes; the gain is that of the second one."""
        y = self.conv(self.conv(x, maps, stride=stride), maps, relu=False, gain=gain)
        if stride != 1 or self.channels[x] != maps:
            x = self.conv(x, maps, 1, stride=stride, relu=False)
        return self.node("Relu", self.node("Add", x, y, channels=maps), channels=maps)

    def inception(self, x: str, maps: int) -> str:
        """Add 1x1, 3x3 and 5x5 convolutions side by side, the larger ones behind a 1x1."""
        parts = [
            self.conv(x, maps // 4, 1),
            self.conv(self.conv(x, maps // 4, 1), maps // 2),
            self.conv(self.conv(x, max(4, maps // 8), 1), maps - maps // 4 - maps // 2, 5),
        ]
        return self.node("Concat", *parts, channels=maps, axis=1)

    def pool(self, x: str) -> str:
        """Halve height and width."""
        return self.node("MaxPool", x, channels=self.channels[x], kernel_shape=[2, 2], strides=[2, 2])

    def classifier(self, x: str, classes: int = 10) -> onnx.ModelProto:
        """End with the mean over all positions and a linear layer."""
        maps = self.channels[x]
        y = self.node("Flatten", self.node("GlobalAveragePool", x, channels=maps), channels=maps)
        y = self.node("Gemm", y, self.weight(classes, maps), self.weight(classes), channels=classes, transB=1)
        return self.model(y, ["N", classes])

    def model(self, y: str, shape: list[int | str]) -> onnx.ModelProto:
        """End with a value as it is."""
        output = helper.make_tensor_value_info(y, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self._nodes, "generated", [self._input], [output], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def vgg16(size: int = 112, seed: int = 0) -> onnx.ModelProto:
    """Build the convolutions of a VGG-16, without its three large linear layers."""
    network = Network(3, size, seed)
    x = "x"
    for stage in VGG16:
        for maps in stage:
            x = network.conv(x, maps)
        x = network.pool(x)
    return network.classifier(x)


def resnet18(size: int = 112, seed: int = 0) -> onnx.ModelProto:
    """Build a ResNet-18 with its normalisations folded."""
    network = Network(3, size, seed)
    x = network.pool(network.conv("x", 64, 7, stride=2))
    for index, maps in enumerate(RESNET18):
        x = network.residual(x, maps, stride=1 if index == 0 else 2)
        x = network.residual(x, maps)
    return network.classifier(x)


def residual_stack(sites: int, *, maps: int = 32, size: int = 32, seed: int = 0) -> onnx.ModelProto:
    """Build a stack of residual blocks, two 3x3 convolutions each, on as many maps as come in; a plain one before."""
    network = Network(maps, size, seed)
    x = network.conv("x", maps) if sites % 2 else "x"
    for _ in range(sites // 2):  # what the blocks add together is about as large as what goes in, however many
        x = network.residual(x, maps, gain=math.sqrt(2.0 / sites))
    return network.classifier(x)


def random_network(seed: int) -> onnx.ModelProto:
    """Build a network of a few random blocks: plain, strided, dilated, residual, inception and depthwise separable."""
    rng = np.random.default_rng([seed, 1])
    size = int(rng.choice([28, 32, 48, 56, 64]))
    network = Network(int(rng.choice([1, 3, 16])), size, seed)
    maps = int(rng.choice([12, 16, 24, 32, 48, 64]))
    x = network.conv("x", maps, int(rng.choice([3, 5, 7])), stride=int(rng.choice([1, 2])))
    for _ in range(int(rng.integers(2, 7))):
        maps = int(min(256, max(8, round(maps * rng.choice([0.75, 1.0, 1.0, 1.5, 2.0])))))
        match rng.choice(["plain", "large", "dilated", "strided", "residual", "inception", "separable"]):
            case "plain":
                x = network.conv(x, maps)
            case "large":
                x = network.conv(x, maps, int(rng.choice([5, 7])))
            case "dilated":
                x = network.conv(x, maps, dilation=2)
            case "strided":
                x = network.conv(x, maps, stride=2)
            case "residual":
                x = network.residual(x, maps)
            case "inception":
                x = network.inception(x, maps)
            case _:
                x = network.conv(network.conv(x, network.channels[x], group=network.channels[x]), maps, 1)
    return network.classifier(x)
