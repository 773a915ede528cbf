"""Drawn images, moved until a network's normalisations see in them what they saw in training.

A BatchNormalization holds the mean and the variance that each of its feature maps had over the training data. Drawn
images look like photographs to a first layer and less and less so to those behind: what these see of them says little
of what they will see. So the pixels follow the gradient of

    sum over layers l of  mean_c ((m_lc - mu_lc) / u_lc)^2 + mean_c ((d_lc - s_lc) / u_lc)^2,

m and d the mean and deviation of map c over all images and places, mu and s those of training (Cai et al., ZeroQ, 2020,
equation 3; Yin et al., Dreaming to Distill, 2020, equation 4), and u like s, so that all layers count alike, but no
less than a share of what is usual in the layer. It is followed by Adam (Kingma and Ba, 2015) with a step that falls to
nothing. All images are moved together, a batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import ResolvedShapes, running_statistics
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.runtime import without_shapes
from onnx_pointwise.study.gradients import Backward, Forward
from onnx_pointwise.study.slopes import affordable

Array = NDArray[Any]

# Steps, and the first one as a share of the range of the pixels.
_STEPS, _FIRST = 40, 0.02
# Of Adam: how much of the last gradient and of its square is kept.
_KEPT, _KEPT_SQUARE = 0.9, 0.999
# MACs to spend on all images and steps, runs back aside, and the images that are moved at least and at most.
_MACS = 2e12
_FEWEST, _MOST = 24, 256
# What is left of the misfit at most, root mean square, for the images to be better than those that were drawn.
_LEFT = 0.9
# What is off at maps that hardly varied in training is told in this share of what is usual in their layer, and in this
# at least.
_LEAST, _NOTHING = 0.05, 1e-6


@dataclass(frozen=True)
class Distilled:
    """Images that were moved.

    Attributes:
        inputs: The images by the name of the input, [N, ...].
        layers: The normalisations that they were moved by.
        before: Root mean square over their maps of how far means and deviations were off, in deviations of training.
        after: The same once they were moved.
    """

    inputs: Mapping[str, Array]
    layers: int
    before: float
    after: float


def distilled(
    shapes: ResolvedShapes,
    inputs: Mapping[str, Array],
    *,
    macs: int,
    memory: int,
    batch: int | None = None,
    threads: int | None = None,
    progress: Within = unheard,
) -> Distilled | None:
    """Move drawn images until the normalisations of a network see what they saw in training.

    Args:
        shapes: The network and its shapes; it is left as it is.
        inputs: The images by the name of the one input, float [N, ...].
        macs: MACs of one of them.
        memory: Bytes of activations to hold in memory, about.
        batch: Images in one run, where the model fixes that.
        threads: Threads of the runtime; its own choice if None.
        progress: Called with how many steps are done.

    Returns:
        Some of the images, moved; None where the network has no running statistics, no gradient leads back from them,
        or it did not help.

    Raises:
        ModelError: The model does not run on the images.
    """
    layers = _layers(shapes)
    if not layers or len(inputs) != 1:
        return None
    ((name, drawn),) = inputs.items()
    if drawn.dtype not in (np.float32, np.float64):
        return None
    most = int(np.clip(_MACS / (_STEPS * max(1, macs)), _FEWEST, _MOST))
    taken = drawn[:most]
    if batch is not None:
        taken = drawn[: max(len(taken), batch) // batch * batch]
    size = batch or affordable(shapes, (), len(taken), 1, memory)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is no better
        try:
            moving = _Moving(shapes, name, taken, layers, size, threads)
        except ModelError:  # of a way back; that the network runs is seen elsewhere
            return None
        if not moving.reached:
            return None
        before = moving.misfit
        for step in range(_STEPS):
            progress("images that fit the statistics of training", step, _STEPS)
            moving.step(step)
        after = moving.misfit
    if not after < _LEFT**2 * before:
        return None
    return Distilled({name: moving.images}, len(layers), math.sqrt(before), math.sqrt(after))


@dataclass(frozen=True)
class _Layer:
    """A normalisation: the value that it takes, what that was in training, and what errors of both are told in, [C]."""

    value: str
    mean: Array
    deviation: Array
    unit: Array


def _layers(shapes: ResolvedShapes) -> list[_Layer]:
    found: dict[str, _Layer] = {}
    for node in shapes.model.graph:
        told = running_statistics(node)
        if told is not None and node.inputs[0] is not None and node.inputs[0].producer() is not None:
            mean, variance = told
            if np.isfinite(mean).all() and np.isfinite(variance).all():
                deviation = np.sqrt(np.maximum(variance, 0.0))
                unit = np.maximum(deviation, max(_LEAST * float(np.sqrt(np.mean(deviation**2))), _NOTHING))
                found[str(node.inputs[0].name)] = _Layer(str(node.inputs[0].name), mean, deviation, unit)
    return list(found.values())


@dataclass(frozen=True)
class _Sums:
    """Of a layer: values of a map, their sum and that of their squares about the mean of training, [C]."""

    count: int
    first: Array
    second: Array

    def moved(self, old: _Sums, new: _Sums) -> _Sums:
        """The same with others in the place of some."""
        return _Sums(
            self.count + new.count - old.count,
            self.first + (new.first - old.first),
            self.second + (new.second - old.second),
        )


class _Moving:
    """Images on their way.

    What they sum up to over all batches is known from when each was last run; only the one that is moved is run anew.

    Attributes:
        images: Where they are now.
        reached: Whether a gradient leads from the layers to the images.
    """

    def __init__(
        self,
        shapes: ResolvedShapes,
        name: str,
        images: Array,
        layers: Sequence[_Layer],
        batch: int,
        threads: int | None,
    ) -> None:
        self._name, self._layers = name, layers
        self.images = images.copy()
        self._low, self._high = float(images.min()), float(images.max())
        self._parts = [slice(start, start + batch) for start in range(0, len(images), batch)]
        heads = [layer.value for layer in layers]
        self._backward = Backward(
            without_shapes(shapes.model), heads, {name: name}, {name: images[self._parts[0]]}, threads=threads
        )
        self.reached = name not in self._backward.unsupported and name not in self._backward.unreached
        self._mean, self._square = np.zeros_like(images), np.zeros_like(images)
        nothing = [_Sums(0, np.zeros(len(layer.mean)), np.zeros(len(layer.mean))) for layer in layers]
        self._sums, self._whole = [nothing] * len(self._parts), nothing
        for index, part in enumerate(self._parts if self.reached else ()):
            self._learn(index, self._forward(part).values)
        self._unit: float | None = None

    @property
    def misfit(self) -> float:
        """Mean over layers and maps of the squares of how far means and deviations are off."""
        return float(np.mean([np.mean(off**2) + np.mean(wide**2) for off, wide, _ in self._off()]) / 2)

    def step(self, number: int) -> None:
        """Move every image once, the first time by number 0."""
        share = 0.5 * (1.0 + math.cos(math.pi * (number + 1) / _STEPS))
        length = _FIRST * share * (self._high - self._low)
        for index, part in enumerate(self._parts):
            forward = self._forward(part)
            self._learn(index, forward.values)
            gradient = forward.gradients(self._probes(forward.values)).get(self._name)
            if gradient is not None and np.isfinite(gradient).all():
                self._move(part, gradient, number + 1, length)

    def _forward(self, part: slice) -> Forward:
        return self._backward.forward({self._name: self.images[part]})

    def _learn(self, index: int, values: Mapping[str, Array]) -> None:
        """Take over what a batch sums up to now."""
        new = []
        for layer in self._layers:
            value = _single(values[layer.value])
            about = value.reshape(*value.shape[:2], -1) - _along(layer.mean, 3).astype(value.dtype)
            second = np.einsum("ncp,ncp->nc", about, about)
            new.append(
                _Sums(
                    about.shape[0] * about.shape[2],
                    about.sum(-1).sum(0, dtype=np.float64),
                    second.sum(0, dtype=np.float64),
                )
            )
        old, self._sums[index] = self._sums[index], new
        self._whole = [sums.moved(*pair) for sums, *pair in zip(self._whole, old, new, strict=True)]

    def _off(self) -> list[tuple[Array, Array, int]]:
        """By layer how far means and deviations are off, in its units, and the values of a map."""
        told = []
        for layer, sums in zip(self._layers, self._whole, strict=True):
            off = sums.first / sums.count
            wide = np.sqrt(np.maximum(sums.second / sums.count - off**2, 0.0)) - layer.deviation
            told.append((off / layer.unit, wide / layer.unit, sums.count))
        return told

    def _probes(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Gradient of the misfit at each layer."""
        probes = {}
        for layer, (off, wide, count) in zip(self._layers, self._off(), strict=True):
            value = _single(values[layer.value])
            scale = 2.0 / (len(off) * count * layer.unit)
            # d/dv of the mean is 1 / n, of the deviation d that is (v - m) / (n d).
            slope = scale * wide / np.maximum(layer.deviation + wide * layer.unit, _NOTHING)
            mean = layer.mean + off * layer.unit
            constant, slope = (
                _along(part, value.ndim).astype(value.dtype) for part in (scale * off - slope * mean, slope)
            )
            probes[layer.value] = constant + slope * value
        return probes

    def _move(self, part: slice, gradient: Array, number: int, length: float) -> None:
        if self._unit is None:
            self._unit = float(np.sqrt(np.mean(gradient.astype(np.float64) ** 2))) or 1.0
        gradient = gradient / np.float32(self._unit)
        self._mean[part] = _KEPT * self._mean[part] + (1.0 - _KEPT) * gradient
        self._square[part] = _KEPT_SQUARE * self._square[part] + (1.0 - _KEPT_SQUARE) * gradient**2
        way = self._mean[part] / (1.0 - _KEPT**number)
        spread = np.sqrt(self._square[part] / (1.0 - _KEPT_SQUARE**number))
        moved = self.images[part] - length * way / (spread + 1e-8)
        self.images[part] = np.clip(moved, self._low, self._high)


def _single(value: Array) -> Array:
    """Values in single precision at least: sums of half precision overflow."""
    return value.astype(np.result_type(value.dtype, np.float32), copy=False)


def _along(numbers: Array, axes: int) -> Array:
    """Numbers of feature maps beside values of so many axes."""
    return numbers.reshape(1, -1, *[1] * (axes - 2))
