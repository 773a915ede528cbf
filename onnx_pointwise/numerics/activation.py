"""What follows a site, and the targets before it that are as good as the true ones behind it.

A refit minimises the error of a site's outputs y against targets t by linear least squares. Behind an activation f the
error is f(y) - f(t): where f is flat or shallow, y may differ from t. So the targets are moved, round after round, from
where the outputs are now:

* On a flat part (Relu, Clip) the target is the nearest value that is as good as the true one.
* On a curve it is t' = y - (s / L)^2 (y - t), with s the slope of the chord from y to t and L the largest slope of f: a
  step of minimising sum (s (y - t))^2 by a quadratic that lies above it, with the same curvature for all outputs and
  places, so that the normal equations stay those of the patches alone (Hunter and Lange 2004 on such majorisers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: One operator of a curve by its name in ONNX, with its numbers; those of `PRelu` are slopes, one or one for each map.
Step = tuple[str, tuple[float, ...]]

# Where the largest slope is looked for; beyond it curves are straight.
_REACH, _POINTS = 12.0, 4801
# Outputs closer to their targets than this share of the largest target are on them.
_SAME = 1e-6


def _sigmoid(x: Array) -> Array:
    return cast(Array, 1.0 / (1.0 + np.exp(-np.clip(x, -80.0, 80.0))))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0.0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def _leaky(x: Array, *slopes: float) -> Array:
    below = np.array(slopes, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return np.where(x > 0.0, x, below * x)


def _gelu(x: Array) -> Array:
    # By tanh, within 1e-3 of the other one.
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


#: Operators that curves consist of.
STEPS: Mapping[str, Callable[..., Array]] = {
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "Softplus": lambda x: np.logaddexp(x, 0.0),
    "Softsign": lambda x: x / (1.0 + np.abs(x)),
    "Elu": _elu,
    "Selu": lambda x, alpha, gamma: gamma * _elu(x, alpha),
    "LeakyRelu": _leaky,
    "PRelu": _leaky,
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0),
    "HardSwish": lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, 0.0)),
    "Gelu": _gelu,
    "Swish": lambda x, alpha: x * _sigmoid(alpha * x),
    "Clip": lambda x, low, high: np.clip(x, low, high),
    "Relu": lambda x: np.maximum(x, 0.0),
    "Add": lambda x, other: x + other,
    "Mul": lambda x, other: x * other,
}


@dataclass(frozen=True)
class Curve:
    """An activation that is nowhere flat, or not only.

    Attributes:
        steps: Its operators in order.
        gated: Whether its input is multiplied with what comes out, as in SiLU, the input times its Sigmoid.
    """

    steps: tuple[Step, ...]
    gated: bool = False

    def __call__(self, x: Array) -> Array:
        """What becomes of values, [O, n]."""
        y = x
        for name, numbers in self.steps:
            y = STEPS[name](y, *numbers)
        return x * y if self.gated else y

    @cached_property
    def steepest(self) -> float:
        """Its largest slope."""
        maps = max((len(numbers) for name, numbers in self.steps if name == "PRelu"), default=1)
        grid = np.linspace(-_REACH, _REACH, _POINTS)
        rises = np.diff(self(np.broadcast_to(grid, (maps, _POINTS))), axis=1) / (grid[1] - grid[0])
        return float(np.abs(rises).max())

    def targets(self, true: Array, now: Array) -> Array:
        """Targets before it, from where the outputs are now."""
        gap = now - true
        same = np.abs(gap) <= _SAME * float(np.abs(true).max(initial=1.0))
        chord = (self(now) - self(true)) / np.where(same, 1.0, gap)
        share = np.minimum((chord / self.steepest) ** 2, 1.0)
        return np.where(same, true, now - share * gap)


@dataclass(frozen=True)
class Activation:
    """What follows a site; nothing, or a rectifier with flat parts, or a curve.

    Attributes:
        low: It is flat below; a rectifier is flat below 0.
        high: It is flat above.
        curve: What else it is; then there are no flat parts.
    """

    low: float = -math.inf
    high: float = math.inf
    curve: Curve | None = None

    @property
    def linear(self) -> bool:
        """Whether all errors before it are errors behind it."""
        return math.isinf(self.low) and math.isinf(self.high) and self.curve is None

    def targets(self, true: Array, now: Array) -> NDArray[np.float32]:
        """Targets before the activation that are as good as the true ones, as near as can be to what is there now.

        Args:
            true: The true values, [O, n].
            now: What there is, [O, n].
        """
        if self.curve is not None:
            return self.curve.targets(true, now).astype(np.float32, copy=False)
        targets = true
        if not math.isinf(self.low):
            targets = np.where(true <= self.low, np.minimum(now, self.low), targets)
        if not math.isinf(self.high):
            targets = np.where(true >= self.high, np.maximum(now, self.high), targets)
        return targets.astype(np.float32, copy=False)

    def lost(self, true: Array, now: Array) -> float:
        """Squared error behind it; where it is straight but for flat parts, that before it off these."""
        gap = self.targets(true, now) - now if self.curve is None else self.curve(true) - self.curve(now)
        return float(np.vdot(gap, gap))


#: Nothing that matters.
LINEAR = Activation()
