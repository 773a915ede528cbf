"""Heads: the values near the end of a network where the last learned nodes answer.

An output tensor is often not the answer: a detector writes boxes in pixels and scores between 0 and 1 into one tensor,
and whoever measures the tensor sees the boxes alone. So the graph is walked back from every output through nodes that
have no weights of their own, to the values where something learned speaks last. Each is a head, with a kind that says
how its answer is read. A walk ends at

* a learned node: a convolution, a matrix product, a recurrent layer, whatever is not known here;
* a node that makes one answer of several values, as the sum of a picture and its correction;
* an activation, a pooling, or any other node behind which an error counts less or more than before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph import ResolvedShapes, Site, constant, find_sites, runtime_inputs
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import energy, relative_drift, units, weighted_drift
from onnx_pointwise.runtime import Piece, reads, without_shapes

#: How the answer of a head is read: the largest of several classes, a score that says whether something is there, an
#: image, or plain numbers.
Kind = Literal["classes", "presence", "picture", "numbers"]
#: What a person says of a head: its weight, its kind, or both.
Said = float | Kind | tuple[float, Kind]

# Where paths of several kinds lead to one head, the first of these is its kind.
_KINDS: tuple[Kind, ...] = ("presence", "classes", "picture", "numbers")
_NORMALISERS: Mapping[str, Kind] = {
    "Sigmoid": "presence",
    "HardSigmoid": "presence",
    "Softmax": "classes",
    "LogSoftmax": "classes",
    "ArgMax": "classes",
}
# Nodes that move numbers, choose among them, or map each by a fixed function, from their first input; what else they
# read only says how.
_MOVES = {
    *("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Dropout"),
    *("Slice", "Split", "Resize", "Upsample", "DepthToSpace", "SpaceToDepth", "Pad", "ReduceMax", "ReduceL2"),
    *("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "ArgMax", "ArgMin", "LpNormalization"),
    *("Exp", "Neg", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Not", "QuantizeLinear", "DequantizeLinear"),
}
# Nodes that put several values together without mixing them, or choose among one by another.
_GATHERS = {
    *("Concat", "Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements", "Where", "Compress", "NonZero"),
    *("TopK", "NonMaxSuppression", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or"),
    *("SequenceConstruct", "SplitToSequence", "ConcatFromSequence"),
}
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"}
_SIZES = {"Shape", "Size", "ConstantOfShape", "Range", "EyeLike"}
# Channels of an image, and the least height and width of one.
_COLOURS = {1, 3, 4}
_LEAST_SIDE = 16
# Nodes whose output has its channels last, or first, right behind the examples.
_CHANNELS_LAST = {"MatMul", "Gemm"}
_CHANNELS_FIRST = {
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"),
    *("BatchNormalization", "InstanceNormalization", "LRN"),
}
# The operator set from which on a Softmax is one of the last axis unless told otherwise.
_SOFTMAX_OF_LAST = 13
#: Normalisers that are measured behind, too, where an answer is given at so many places.
_MANY_PLACES = 16
# How much of a head's weight lies there. What is behind a Sigmoid knows the few places where something is there, but
# only those that the examples show. Of two detectors (YOLOv8n, UltraFace) with weight by places, the rank correlation
# with F1, mean over both, within budgets, is 0.59 without any, 0.56 with a quarter, 0.46 with half, 0.41 with all.
_BEHIND = 0.25

_RAW = ""  # stands for a graph input that is reached without anything learned


@dataclass(frozen=True)
class Head:
    """One answer of a network.

    Attributes:
        value: Name of the value where it is given.
        kind: How it is read.
        outputs: Names of the network's outputs that it goes into.
        axis: Axis of the channels: classes, or what each place says.
        weight: How much it counts among the heads.
        behind: Name of the value behind the Sigmoid or Softmax that the head goes through, where it answers at many
            places: of a detector's scores almost all say that nothing is there, and behind it the few count.
        behind_axis: Axis of the channels of that value.
    """

    value: str
    kind: Kind
    outputs: tuple[str, ...]
    axis: int = 1
    weight: float = 1.0
    behind: str | None = None
    behind_axis: int = 1

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {"value": self.value, "kind": self.kind, "outputs": list(self.outputs), "weight": self.weight}


@dataclass(frozen=True)
class Gauge:
    """A value at which drift is measured.

    Attributes:
        value: Its name.
        axis: Axis of the channels, whose means are taken out.
        weight: Its share of the whole; those of a network add up to 1.
        mixed: Whether its channels may be of different units.
    """

    value: str
    axis: int
    weight: float
    mixed: bool = False

    def units(self, reference: NDArray[Any]) -> NDArray[Any] | None:
        """What to multiply its values by before they are compared, see `numerics.units`."""
        return units(reference, self.axis) if self.mixed else None

    def drift(self, reference: NDArray[Any], moved: NDArray[Any]) -> float | None:
        """Relative squared drift of its value, see `numerics.relative_drift`."""
        return relative_drift(reference, moved, self.axis, self.units(reference))

    def energy(self, values: NDArray[Any]) -> float:
        """What that is relative to, see `numerics.energy`."""
        return energy(values, self.axis, self.units(values))


@dataclass(frozen=True)
class Heads:
    """Where a network answers.

    Attributes:
        heads: The heads, in the order of the outputs.
        gauges: Where drift is measured: at the heads, and behind a Sigmoid or Softmax where few places matter.
        silent: Why an output is not compared, by its name.
    """

    heads: tuple[Head, ...]
    gauges: tuple[Gauge, ...]
    silent: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Names of the values to be measured."""
        return [gauge.value for gauge in self.gauges]

    def drifts(self, reference: Sequence[NDArray[Any]], moved: Sequence[NDArray[Any]]) -> list[float | None]:
        """Relative squared drift at each gauge, see `numerics.relative_drift`.

        Args:
            reference: The values at the gauges in the untouched network, [N, ...] each.
            moved: The same in the network that is compared.
        """
        told = zip(self.gauges, reference, moved, strict=True)
        return [gauge.drift(one, other) for gauge, one, other in told]

    def energies(self, values: Sequence[NDArray[Any]]) -> list[float]:
        """What drift at each gauge is relative to, see `numerics.energy`; the values as for `drifts`."""
        return [gauge.energy(one) for gauge, one in zip(self.gauges, values, strict=True)]

    def drift(self, reference: Sequence[NDArray[Any]], moved: Sequence[NDArray[Any]]) -> float:
        """Relative squared drift of the network, the weighted mean over the gauges; 0 where none of them varies."""
        return self.whole(self.drifts(reference, moved))

    def whole(self, drifts: Sequence[float | None]) -> float:
        """The weighted mean of what `drifts` gave; 0 where no gauge varies."""
        mean = weighted_drift(drifts, [gauge.weight for gauge in self.gauges])
        return 0.0 if mean is None else mean

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {"heads": [head.to_dict() for head in self.heads], "not_compared": dict(self.silent)}


def find_heads(
    shapes: ResolvedShapes,
    *,
    sites: Sequence[Site] | None = None,
    named: Mapping[str, Said] | None = None,
    ignored: Sequence[str] = (),
) -> Heads:
    """Walk back from the outputs of a network to its heads.

    Args:
        shapes: The network and the shapes of its values.
        sites: Its convolutions; found anew if None.
        named: Values to measure at instead, with their weights and kinds; they are named as in the graph.
        ignored: Outputs that do not count.

    Returns:
        The heads. Those of one kind that go into the same outputs give one answer, as the grids of a detector do, and
        share its weight by the number of their places; answers count alike. `tools/rank_plans.py` compares ways to
        weigh them.

    Raises:
        InputError: A value, an output or a kind that is named does not exist, a weight makes no sense, or every output
            is ignored.
    """
    walk = _Walk(shapes, find_sites(shapes.model, shapes) if sites is None else sites)
    names = [str(value.name) for value in shapes.model.graph.outputs]
    for name in ignored:
        if name not in names:
            raise InputError(f"The model has no output '{name}' to ignore; its outputs are {', '.join(names)}.")
    if set(ignored) >= set(names):
        raise InputError("Every output is ignored; name at least one that counts.")
    ways: dict[str, _Ways] = {}
    silent: dict[str, str] = dict.fromkeys(ignored, "It was ignored by name.")
    for output in shapes.model.graph.outputs:
        if output.name not in silent and (reason := walk.follow(output, ways)) is not None:
            silent[str(output.name)] = reason
    _drop_false_ways(shapes, ways)
    heads = _weighted(walk, {name: walk.head(name, way) for name, way in ways.items()}, named)
    return Heads(tuple(heads), tuple(_gauges(heads)), silent)


def _weighted(walk: _Walk, found: Mapping[str, Head], named: Mapping[str, Said] | None) -> list[Head]:
    """Give the heads their weights, or take those that are named instead."""
    if not named:
        return _shared(walk, list(found.values()))
    chosen = []
    for name, said in named.items():
        weight, kind = _said(name, said)
        head = found.get(name) or (walk.head(name, _Ways()) if walk.measurable(name) else None)
        if head is None:
            known = ", ".join(f"'{value}'" for value in found) or "none"
            raise InputError(f"The model computes no value '{name}' to measure at; its heads are {known}.")
        chosen.append(_of_kind(replace(head, weight=weight), kind))
    if not any(head.weight for head in chosen):
        raise InputError("The weights of the heads are all 0; give one of them a weight.")
    return chosen


def _shared(walk: _Walk, found: Sequence[Head]) -> list[Head]:
    """Share the weight of one among the heads that give one answer, by the places at which they do."""
    places = [walk.places(head.value) for head in found]
    answers: Counter[tuple[Kind, tuple[str, ...]]] = Counter()
    for head, count in zip(found, places, strict=True):
        answers[head.kind, head.outputs] += count
    return [
        replace(head, weight=count / answers[head.kind, head.outputs])
        for head, count in zip(found, places, strict=True)
    ]


def _said(name: str, said: Said) -> tuple[float, Kind | None]:
    """Weight and kind of a head, as a person gave them."""
    weight, kind = said if isinstance(said, tuple) else (1.0, said) if isinstance(said, str) else (said, None)
    if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0.0):
        raise InputError(f"The weight of head '{name}' must be a number of at least 0, not {weight}.")
    if kind is not None and kind not in get_args(Kind):
        raise InputError(f"Head '{name}' cannot be of the kind '{kind}'; the kinds are {', '.join(get_args(Kind))}.")
    return float(weight), kind


def _of_kind(head: Head, kind: Kind | None) -> Head:
    """A head of the kind that it is said to be: what was found behind it belongs to the kind that was found."""
    return head if kind in (None, head.kind) else replace(head, kind=kind, behind=None, behind_axis=1)


def _gauges(heads: Sequence[Head]) -> list[Gauge]:
    """Share the weight of every head out: some of it behind its Sigmoid or Softmax where that is measured, too."""
    parts: dict[str, tuple[int, float]] = {}
    for head in heads:
        before = head.weight if head.behind is None else head.weight * (1.0 - _BEHIND)
        places = [(head.value, head.axis, before)]
        if head.behind is not None:
            places.append((head.behind, head.behind_axis, head.weight - before))
        for value, axis, weight in places:
            parts[value] = (axis, parts.get(value, (axis, 0.0))[1] + weight)
    total = sum(weight for _, weight in parts.values())
    mixed = {head.value for head in heads if head.kind == "numbers"}
    return [
        Gauge(value, axis, weight / total, value in mixed) for value, (axis, weight) in parts.items() if weight > 0.0
    ]


@dataclass(frozen=True)
class _Path:
    """What was passed between an output and a value before it: how the answer is read, and by which node's output."""

    kind: Kind | None = None
    normaliser: str | None = None


@dataclass
class _Ways:
    """All ways from one head to the outputs."""

    paths: list[_Path] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def _drop_false_ways(shapes: ResolvedShapes, ways: Mapping[str, _Ways]) -> None:
    """Leave out what the graph only seems to say: boxes and scores may lie in one tensor and be split again.

    What becomes of each head is tried out: random numbers take the place of all heads, then others that of one.
    """
    shared = Counter(path.normaliser for way in ways.values() for path in set(way.paths) if path.normaliser)
    names = [name for name, count in shared.items() if count > 1]
    if not names or any(name not in shapes.shapes for name in ways):
        return
    values = ir.convenience.create_value_mapping(shapes.model.graph, include_subgraphs=False)
    rng = np.random.default_rng(0)

    def draw(name: str) -> NDArray[Any]:
        dtype = values[name].dtype or ir.DataType.FLOAT
        return rng.standard_normal(shapes.shapes[name]).astype(dtype.numpy())

    feeds = {name: draw(name) for name in ways}
    feeds |= {
        str(value.name): np.zeros(shapes.inputs[str(value.name)], value.dtype.numpy())
        for value in runtime_inputs(shapes.model)
        if value.dtype is not None and str(value.name) in shapes.inputs
    }
    try:
        tail = Piece(without_shapes(shapes.model), needed(shapes.model, names, feeds), names, threads=1)
        whole = tail.run(feeds)
        moved = {name: tail.run({**feeds, name: draw(name)}) for name in ways}
    except (ModelError, KeyError, ValueError):
        return  # what cannot be tried out stays as the graph says
    for name, way in ways.items():
        same = {one for one, a, b in zip(names, whole, moved[name], strict=True) if np.array_equal(a, b)}
        way.paths = [path for path in way.paths if path.normaliser not in same]


class _Walk:
    """The way back through one graph."""

    def __init__(self, shapes: ResolvedShapes, sites: Sequence[Site]) -> None:
        self._shapes = shapes.shapes
        self._graph = shapes.model.graph
        self._opset = shapes.model.graph.opset_imports.get("", 1)
        self._inputs = {str(value.name) for value in runtime_inputs(shapes.model)}
        # A site is one node to come; what folds into its convolution is gone then.
        learned = [site for site in sites if not _counts(site.node)]
        self._site_of = {node: site for site in learned for node in (site.node, *site.folds)}
        self._reached: dict[ir.Value, frozenset[str]] = {}
        self._values = ir.convenience.create_value_mapping(self._graph, include_subgraphs=False)

    def follow(self, output: ir.Value, ways: dict[str, _Ways]) -> str | None:
        """Add the ways to the heads behind an output; gives a sentence where there is nothing to compare."""
        start = _Path("picture" if self._picture(output) else None)
        stack: list[tuple[ir.Value, _Path]] = [(output, start)]
        seen: set[tuple[ir.Value, _Path]] = set()
        told = False
        while stack:
            step = stack.pop()
            value, path = step
            reached = self._reach(value)
            if step in seen or not reached - {_RAW}:
                continue
            seen.add(step)
            node = value.producer()
            assert node is not None, "only what is computed reaches a head"
            if node in self._site_of or reached == {str(value.name)}:
                end = self._site_of[node].output if node in self._site_of else value
                if self._floating(end):
                    told = True
                    way = ways.setdefault(str(end.name), _Ways())
                    way.paths.append(path)
                    if output.name not in way.outputs:
                        way.outputs.append(str(output.name))
                continue
            further = self._passed(node, value, path)
            stack.extend((one, further) for one in self._before(value))
        if told:
            return None
        if not _tensor(output):
            return "It is no tensor, and nothing before it can be compared; cut the model off in front of it."
        return "Nothing learned goes into it, or only values that are no floating-point numbers."

    def measurable(self, name: str) -> bool:
        """Whether a value of this name is computed and holds floating-point numbers."""
        value = self._values.get(name)
        return value is not None and value.producer() is not None and self._floating(value)

    def head(self, name: str, ways: _Ways) -> Head:
        """What is known of a head."""
        value = self._values[name]
        kinds: list[Kind] = [path.kind for path in ways.paths if path.kind is not None]
        kind: Kind = min(kinds, key=_KINDS.index, default="numbers")
        behind = next((path.normaliser for path in ways.paths if path.kind == kind and path.normaliser), None)
        if behind is not None and not (self._scored(behind) and self._places(value) >= _MANY_PLACES):
            behind = None
        last = 1 if behind is None else self._channels_of(self._values[behind])
        return Head(name, kind, tuple(ways.outputs), self._channels_of(value), 1.0, behind, last)

    def places(self, name: str) -> int:
        """Places at which a value answers, in one example; at least one."""
        return max(1, self._places(self._values[name]))

    # --- which heads a value comes from ---------------------------------------------------------------------------

    def _reach(self, value: ir.Value | None) -> frozenset[str]:
        """Names of the heads that a value is made of; `_RAW` among them for an input that nothing learned lies behind.

        Graphs are deep, so the way is kept on a list of its own.
        """
        if value is None:
            return frozenset()
        stack: list[ir.Value] = [value]
        while stack:
            top = stack[-1]
            if top in self._reached:
                stack.pop()
                continue
            waiting = [one for one in self._before(top) if one not in self._reached]
            if waiting:
                stack.extend(waiting)
                continue
            self._reached[top] = self._made_of(top)
            stack.pop()
        return self._reached[value]

    def _before(self, value: ir.Value) -> list[ir.Value]:
        """Values that must be known before `_made_of` can tell of this one."""
        node = value.producer()
        if node is None or constant(value) is not None:
            return []
        kind = self._family(node)
        read = {"moves": node.inputs[:1], "fixed": node.inputs[:1], "gathers": node.inputs, "arithmetic": node.inputs}
        return [one for one in read.get(kind, ()) if one is not None]

    def _family(self, node: ir.Node) -> str:
        """How a node is passed on the way back; an empty string for one that is not."""
        return "" if node in self._site_of else _family(node)

    def _made_of(self, value: ir.Value) -> frozenset[str]:
        name = str(value.name)
        node = value.producer()
        if constant(value) is not None:
            return frozenset()
        if node is None:
            return frozenset({_RAW} if name in self._inputs else ())
        if node in self._site_of:
            return frozenset({str(self._site_of[node].output.name)})
        kind = self._family(node)
        if kind == "sizes":
            return frozenset()
        parts = [self._reached[one] for one in self._before(value)]
        told = [part for part in parts if part]
        if kind in ("moves", "fixed"):
            return told[0] if told else frozenset()
        if kind == "gathers":
            return frozenset().union(*told)
        if kind == "arithmetic":
            if len(set(told)) <= 1:
                return told[0] if told else frozenset()
            if node.op_type == "Mul" and all(self._scores(one) for one in self._before(value) if self._reached[one]):
                return frozenset().union(*told)
        return frozenset({name})

    def _scores(self, value: ir.Value) -> bool:
        """Whether a value comes from a Sigmoid or Softmax, moved about: scores that are multiplied stay apart."""
        while (node := value.producer()) is not None and node not in self._site_of:
            if node.op_type in ("Sigmoid", "Softmax"):
                return True
            if self._family(node) != "moves" or node.inputs[0] is None:
                return False
            value = node.inputs[0]
        return False

    # --- and how they are read ------------------------------------------------------------------------------------

    def _passed(self, node: ir.Node, value: ir.Value, path: _Path) -> _Path:
        """What is known once a node was passed on the way back."""
        if self._family(node) == "fixed":
            return _Path("numbers")  # scores of bins that are averaged are no answer of their own
        if _names_classes(node) and path.kind is None:
            return _Path("classes")
        kind = _NORMALISERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if kind is None or path.kind == "numbers":
            return path
        if path.kind == "picture" and kind == "presence" and self._colourful(value):
            return path  # a picture between 0 and 1
        known = kind if path.kind in (None, "picture") else path.kind
        return _Path(known, str(value.name))

    def _scored(self, name: str) -> bool:
        """Whether a value is what a Sigmoid or Softmax gives."""
        node = self._values[name].producer()
        return node is not None and node.op_type in ("Sigmoid", "HardSigmoid", "Softmax")

    def _places(self, value: ir.Value) -> int:
        """Places at which a value answers, in one example."""
        shape = self._shapes.get(str(value.name), ())
        axis = self._channels_of(value) % max(len(shape), 1)
        return math.prod(size for index, size in enumerate(shape) if index not in (0, axis))

    def _channels_of(self, value: ir.Value) -> int:
        """Axis of the channels of a value."""
        shape = self._shapes.get(str(value.name), ())
        turns: list[Sequence[int]] = []
        while (axis := self._channels_made(value)) is None:
            node = value.producer()
            inner = None if node is None else self._laid_out_alike(node, value)
            if node is None or inner is None:
                return 1 if len(shape) > 1 and shape[1] <= shape[-1] else -1  # channels are fewer than places
            if node.op_type == "Transpose":
                turns.append(node.attributes.get_ints("perm", range(len(shape))[::-1]))
            value = inner
        for turn in reversed(turns):
            axis = turn.index(axis % len(turn))
        return axis

    def _channels_made(self, value: ir.Value) -> int | None:
        """Axis at which a node puts its channels; None for one that leaves them where they are, or anywhere."""
        node = value.producer()
        if node is None:
            return None
        if node in self._site_of or node.op_type in _CHANNELS_FIRST:
            return 1
        if node.op_type in _CHANNELS_LAST:
            return -1
        if node.op_type == "Softmax":
            return node.attributes.get_int("axis", -1 if self._opset >= _SOFTMAX_OF_LAST else 1)
        return None

    def _laid_out_alike(self, node: ir.Node, value: ir.Value) -> ir.Value | None:
        """An input with the same axes as the output, or those that a Transpose turns; None for none."""
        shape = self._shapes.get(str(value.name))
        if not shape or node.op_type == "Reshape":
            return None
        if node.op_type == "Transpose":
            return node.inputs[0]
        alike = (one for one in node.inputs if one is not None and self._shapes.get(str(one.name)) == shape)
        return next(alike, None)

    def _floating(self, value: ir.Value) -> bool:
        return _tensor(value) and (value.dtype is None or value.dtype.is_floating_point())

    def _picture(self, value: ir.Value) -> bool:
        shape = self._shapes.get(str(value.name), ())
        if len(shape) != 4 or not self._floating(value):
            return False
        first, last = min(shape[2:]) >= _LEAST_SIDE, min(shape[1:3]) >= _LEAST_SIDE
        return (shape[1] in _COLOURS and first) or (shape[3] in _COLOURS and last)

    def _colourful(self, value: ir.Value) -> bool:
        shape = self._shapes.get(str(value.name), ())
        return len(shape) == 4 and 3 in (shape[1], shape[3])


def _names_classes(node: ir.Node) -> bool:
    """Whether a node gives classes their names: in a map of their scores, or in the place of a number."""
    return node.domain == "ai.onnx.ml" and node.op_type in ("ZipMap", "LabelEncoder")


def _family(node: ir.Node) -> str:
    """How a node is passed on the way back; an empty string for one that is not."""
    if node.domain not in ("", "ai.onnx"):
        return "moves" if _names_classes(node) else ""
    if node.op_type in _SIZES:
        return "sizes"
    if node.op_type in _MOVES:
        return "moves"
    if node.op_type in _GATHERS:
        return "gathers"
    if node.op_type in _ARITHMETIC:
        return "arithmetic"
    return "fixed" if _counts(node) else ""


def _tensor(value: ir.Value) -> bool:
    """Whether a value is a tensor; a sequence of them is none, though it has a dtype."""
    return value.type is None or isinstance(value.type, ir.TensorType)


def _counts(node: ir.Node) -> bool:
    """Whether a node is the mean of bins numbered 0, 1, 2, ..., as detectors read distances off (Li et al. 2020)."""
    if node.op_type not in ("Conv", "MatMul") or len(node.inputs) < 2:
        return False
    weights = constant(node.inputs[1])
    if weights is None or weights.dtype is None or not weights.dtype.is_floating_point():
        return False
    if math.prod(weights.shape.numpy()) > 1024:
        return False
    numbers = weights.numpy().astype(np.float64).ravel()
    return numbers.size > 1 and bool(np.array_equal(numbers, np.arange(numbers.size)))


def needed(model: ir.Model, names: Sequence[str], given: Collection[str]) -> list[str]:
    """Names among the given values that others are computed from, with nothing before them looked at.

    Raises:
        KeyError: A value is computed from something that is not given.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    stack, seen, found = list(names), set[str](), []
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in given:
            found.append(name)
            continue
        value = values[name]
        node = value.producer()
        if node is not None:
            stack.extend(reads(node))
        elif value.const_value is None:
            raise KeyError(name)
    return found
