"""The forms that a convolution can be rewritten in: a view of its kernel, and the sides of it that are cut.

A kernel W[O, I, *k] is seen as [O, I * F, G] with F * G = K: some of its axes go with the input channels, the others
stay taps. Whatever is true of 1x1 convolutions around a kernel with I channels and K taps then holds for I * F channels
and G taps; the second moment of the patches is the same matrix, in the index order of the view.

* No axis goes with the channels: P[R, I] is a 1x1 in front, U[O, R] a 1x1 behind.
* The rows do: P[R, I * kh] is a kx1 convolution, and what stays of the kernel, A[O, R, kw], is 1xk (Jaderberg, Vedaldi
  and Zisserman 2014, there with the plain norm).
* The columns do: the same with 1xk first.

So a spatial form is `reduce` in another view. (`expand` would be nothing new: a full kernel and a 1x1 behind it.)

`depthwise` cuts both sides and the kernel: a 1x1, a depthwise kxk and a 1x1, see `separable`. It has one rank, as many
feature maps as there are terms in a sum.

A transposed convolution is one over its inputs with zeros in between, see `make_transposed_window`, whose patches hold
what an output depends on in its phase and zeros elsewhere. With their moment the errors of all phases add up, and all
that is said here of kernels holds for it: the forms share P and U between the phases, and are optimal for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.errors import PlanError

Form = Literal["reduce", "expand", "reduce_expand", "vertical", "horizontal", "depthwise"]
Rank = int | tuple[int, int]
AnyArray = NDArray[Any]

FORMS: tuple[Form, ...] = get_args(Form)
#: Forms that split the kernel between its axes instead of putting a 1x1 beside it.
SPATIAL: tuple[Form, ...] = ("vertical", "horizontal")
# Axes along which a kernel has to be longer than 1.
_AXES: dict[Form, int] = {"vertical": 2, "horizontal": 2, "depthwise": 1}


@dataclass(frozen=True)
class View:
    """A kernel [O, I, *k] as one of I * F channels and G taps.

    Attributes:
        size: Size of the kernel, k.
        first: Axes of the kernel, from 0 and rising, that go with the channels.
    """

    size: tuple[int, ...]
    first: tuple[int, ...] = ()

    @property
    def second(self) -> tuple[int, ...]:
        """The axes that stay taps."""
        return tuple(axis for axis in range(len(self.size)) if axis not in self.first)

    @property
    def channels(self) -> int:
        """How many channels of the view a feature map makes, F."""
        return math.prod(self.size[axis] for axis in self.first)

    @property
    def taps(self) -> int:
        """Taps of the view, G."""
        return math.prod(self.size[axis] for axis in self.second)

    @property
    def first_size(self) -> tuple[int, ...]:
        """Size of the kernel of the piece in front: 1 along the axes that stay taps."""
        return tuple(size if axis in self.first else 1 for axis, size in enumerate(self.size))

    @property
    def second_size(self) -> tuple[int, ...]:
        """Size of what stays of the kernel."""
        return tuple(1 if axis in self.first else size for axis, size in enumerate(self.size))

    def of_kernel(self, kernel: AnyArray) -> AnyArray:
        """[O, I, *k] to [O, I * F, G]."""
        order = (0, 1, *(2 + axis for axis in (*self.first, *self.second)))
        outputs, inputs = kernel.shape[:2]
        return kernel.transpose(order).reshape(outputs, inputs * self.channels, self.taps)

    def to_kernel(self, seen: AnyArray) -> AnyArray:
        """[O, I * F, G] to [O, I, *k]."""
        axes = (*self.first, *self.second)
        back = (0, 1, *(2 + axes.index(axis) for axis in range(len(axes))))
        sizes = (len(seen), seen.shape[1] // self.channels, *(self.size[axis] for axis in axes))
        return seen.reshape(sizes).transpose(back)

    def of_moment(self, moment: AnyArray, inputs: int) -> AnyArray:
        """A moment of patches, [I * K, I * K], or of the channels, [I, I], as one of the view's patches or channels.

        Where only the channels are known, what they hold at different places is taken to be independent.
        """
        if not self.first:
            return moment
        if moment.shape == (inputs, inputs):
            return cast(AnyArray, np.kron(moment, np.eye(self.channels, dtype=moment.dtype)))
        rank = len(self.size)
        axes = (*self.first, *self.second)
        order = (0, *(1 + axis for axis in axes), 1 + rank, *(2 + rank + axis for axis in axes))
        turned = moment.reshape(inputs, *self.size, inputs, *self.size).transpose(order)
        return cast(AnyArray, turned.reshape(moment.shape))


def has_form(form: Form, size: Sequence[int]) -> bool:
    """Whether a kernel can be rewritten in a form: a spatial one takes two axes along which it is longer than 1.

    `depthwise` takes one: without, it would be two 1x1 convolutions and a scale between them.

    Args:
        form: The form.
        size: Size of the kernel, k.
    """
    return sum(length > 1 for length in size) >= _AXES.get(form, 0)


def view_of(form: Form, size: Sequence[int]) -> View:
    """The view of a kernel in which a form works.

    The kernel is split at the first axis along which it is longer than 1: rows in two dimensions, depth in three, where
    `horizontal` is a flat kernel and then a long one. Axes along which it is not longer than 1 go with the piece in
    front, so that strides there save what they can.

    Args:
        form: The form.
        size: Size of the kernel, k.

    Raises:
        PlanError: The kernel cannot be rewritten in this form.
    """
    size = tuple(size)
    if not has_form(form, size):
        written = "x".join(map(str, size))
        if form == "depthwise":
            raise PlanError(f"{form} filters every feature map on its own, and a kernel of {written} filters none")
        raise PlanError(f"{form} splits a kernel between two of its axes, and one of {written} has only one to give")
    if form not in SPATIAL:
        return View(size)
    long = [axis for axis, length in enumerate(size) if length > 1]
    behind = long[1:] if form == "vertical" else long[:1]
    return View(size, tuple(axis for axis in range(len(size)) if axis not in behind))


def most_terms(inputs: int, outputs: int, taps: int) -> int:
    """How many products of an input, an output and a pattern of taps add up to any kernel."""
    return min(inputs * taps, outputs * taps, inputs * outputs)


def full_rank(form: Form, inputs: int, outputs: int, size: Sequence[int]) -> tuple[int, ...]:
    """The lowest rank at which a form computes what the kernel computes, whatever the kernel; a pair for two sides.

    Args:
        form: The form.
        inputs: Feature maps in, I.
        outputs: Feature maps out, O.
        size: Size of the kernel, k.

    Raises:
        PlanError: The kernel cannot be rewritten in this form.
    """
    view = view_of(form, size)
    if form in SPATIAL:
        return (min(inputs * view.channels, outputs * view.taps),)
    if form == "depthwise":
        return (most_terms(inputs, outputs, math.prod(size)),)
    return {"reduce": (inputs,), "expand": (outputs,), "reduce_expand": (inputs, outputs)}[form]
