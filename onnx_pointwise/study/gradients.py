"""Gradients at all sites at once: vector-Jacobian products by a backward graph, in ONNX like the network itself.

Two sessions do it. The forward one is the network, asked for the heads and for what the backward one needs; the
backward one takes those and a cotangent ("probe") for each head, and gives at every site's output s

    g_s = sum over heads h of J_{h <- s}^T v_h.

The backward graph is written by one rule an operator (`vjp`) for one size of the inputs, in an opset of its own, so
that it does not matter how old the model is. Only what lies between the sites and the heads is differentiated, and
with respect to activations only, never to weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import Shape, Site, runtime_source
from onnx_pointwise.runtime import bindable, open_waiting, reads, run_bound, sentence
from onnx_pointwise.study.vjp import FLAT, RULES, Call, Draft, Facts, RefusedError, between, ends, size_of

Array = NDArray[Any]

#: Probes by head, or what makes them of the heads' values.
Probes = Mapping[str, Array] | Callable[[Mapping[str, Array]], Mapping[str, Array]]

# Operators whose rule takes the gradients of all outputs.
_MANY_OUTPUTS = {"Split"}
# Sizes of inputs that sessions are kept for: that of full batches and that of the last one.
_SIZES = 2


@dataclass(frozen=True, order=True)
class Unsupported:
    """A node that no gradient leads through.

    Attributes:
        op_type: Its operator.
        node: Its name, or that of its first output where it has none.
        reason: Why, in a few words.
    """

    op_type: str
    node: str
    reason: str = "no rule"


class Backward:
    """Gradients at many values of a network.

    Args:
        model: The model with its types inferred (`ResolvedShapes.model`); it is left as it is.
        heads: Names of the float values where cotangents come in.
        points: Where gradients are asked for: names of values by any key, see `site_outputs`.
        inputs: One batch of example inputs by name, [N, ...]. Other sizes may be run later; each costs two sessions.
        keep: Names of forward values to give beside the heads.
        threads: Threads of the sessions; the runtime's own choice if None.

    Attributes:
        unsupported: By the key of a point, what cuts it off from a head; such points get no gradient.
        unreached: Keys of the points that no head depends on; their gradient is zero and is not given.
        held: Bytes of forward values and gradients that a batch like the example holds until its results are dropped;
            the runtime needs about as much again while it works.

    Raises:
        ModelError: A value is missing, or the model does not run on the inputs.
    """

    def __init__(
        self,
        model: ir.Model,
        heads: Sequence[str],
        points: Mapping[str, str],
        inputs: Mapping[str, Array],
        *,
        keep: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        self._model, self._points, self._threads = model, dict(points), threads
        self.heads, self._keep = list(dict.fromkeys(heads)), list(keep)
        self._pairs: dict[tuple[tuple[str, Shape], ...], _Pair] = {}
        first = self._pair(inputs)
        self.unsupported: Mapping[str, tuple[Unsupported, ...]] = first.unsupported
        self.unreached: Sequence[str] = first.unreached
        self.held: int = first.held

    def forward(self, inputs: Mapping[str, Array], *, after: Forward | None = None) -> Forward:
        """Run the network on a batch.

        Args:
            inputs: Example inputs by name, [N, ...].
            after: What came out of an earlier batch, if nobody wants any of it or its gradients any more: their memory
                is written over.

        Returns:
            What came out, and what gradients are then computed from; hold it no longer than needed.

        Raises:
            ModelError: The model does not run on the inputs.
        """
        return self._pair(inputs).forward(inputs, _Room() if after is None else after.room.again())

    def run(self, inputs: Mapping[str, Array], probes: Probes) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run the network on a batch, and back.

        Args:
            inputs: Example inputs by name, [N, ...].
            probes: Cotangent of each head by its name, of its shape, or what makes them of the heads' values; heads
                that are left out count as zero.

        Returns:
            The forward values by name, heads and those to keep; and the gradient of every point by its key.

        Raises:
            ModelError: The model does not run on the inputs.
        """
        forward = self.forward(inputs)
        given = probes(forward.values) if callable(probes) else probes
        return forward.values, forward.gradients(given)

    def _pair(self, inputs: Mapping[str, Array]) -> _Pair:
        key = tuple((name, array.shape) for name, array in sorted(inputs.items()))
        if key not in self._pairs:
            while len(self._pairs) >= _SIZES:
                self._pairs.pop(next(iter(self._pairs)))
            self._pairs[key] = _Pair(self._model, self.heads, self._points, inputs, self._keep, self._threads)
        return self._pairs[key]


class _Room:
    """Arrays for what comes out of sessions, to be used again: memory that was never touched has to be found first."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[Shape, np.dtype[Any]], list[Array]] = defaultdict(list)
        self._taken: Counter[tuple[Shape, np.dtype[Any]]] = Counter()

    def take(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """An array of this shape and type that nobody has, its numbers any."""
        key = shape, dtype
        arrays, index = self._arrays[key], self._taken[key]
        self._taken[key] += 1
        if index == len(arrays):
            arrays.append(np.empty(shape, dtype))
        return arrays[index]

    def again(self) -> _Room:
        """Have all arrays back."""
        self._taken.clear()
        return self


class Forward:
    """A batch on its way: forward values, and gradients for as many sets of probes as are wanted.

    Attributes:
        values: Values of the heads and of what was to be kept, by name.
        room: What they lie in.
    """

    def __init__(self, pair: _Pair, values: dict[str, Array], saved: Mapping[str, ort.OrtValue], room: _Room) -> None:
        self.values, self.room = values, room
        self._pair, self._saved = pair, saved

    def gradients(self, probes: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the gradient of every point that is not cut off.

        Args:
            probes: Cotangent of each head by its name, of its shape; heads that are left out count as zero.

        Returns:
            Gradients by the points' keys, each of its value's shape, in float32 (float64 where the value is).
        """
        return self._pair.backward(self._saved, probes, self.values, self.room)


def site_outputs(sites: Sequence[Site]) -> dict[str, str]:
    """Names of what sites put out, behind all that folds into them, by the sites' names."""
    return {site.name: str(site.output.name) for site in sites}


class _Pair:
    """The forward and the backward session for one size of the inputs."""

    def __init__(
        self,
        model: ir.Model,
        heads: Sequence[str],
        points: Mapping[str, str],
        inputs: Mapping[str, Array],
        keep: Sequence[str],
        threads: int | None,
    ) -> None:
        self._facts = Facts(model, inputs)
        self._heads, self._keep = heads, keep
        for name in (*heads, *keep):
            if name not in self._facts.values:
                raise ModelError(f"The model has no value '{name}' outside of its subgraphs.")
        self._facts.learn([self._facts.values[name] for name in (*heads, *keep)], inputs)
        walk = _Walk(self._facts, heads, set(points.values()), inputs)
        self._results = {key: name for key, name in points.items() if name in walk.reached}
        self.unsupported = {
            key: tuple(sorted(walk.blocked[name])) for key, name in points.items() if walk.blocked.get(name)
        }
        self.unreached = [key for key in points if key not in self._results and key not in self.unsupported]
        kinds = {name: self._facts.gradient_dtype(self._facts.values[name]) for name in self._results.values()}
        backward = walk.draft.model({f"gradient/{name}": (walk.reached[name], kind) for name, kind in kinds.items()})
        taken = {str(value.name) for value in backward.graph.inputs}
        self._probes = {head: str(value.name) for head, value in walk.probes.items() if str(value.name) in taken}
        self._saved = {
            name: str(value.name) for name, value in walk.draft.saved_values.items() if str(value.name) in taken
        }
        self._backward = _session(backward, threads) if self._results else None
        given = set(inputs)
        self._computed = [name for name in dict.fromkeys([*heads, *keep, *self._saved]) if name not in given]
        graph = ir.convenience.extract(self._facts.model.graph, sorted(inputs), self._computed)
        graph.opset_imports.update(self._facts.model.graph.opset_imports)
        self._forward = _session(ir.Model(graph, ir_version=self._facts.model.ir_version), threads)
        self._fed = {value.name for value in self._forward.get_inputs()}

    @property
    def held(self) -> int:
        """Bytes of forward values and gradients of a batch."""
        values = {name: self._facts.dtype(self._facts.values[name]) for name in (*self._computed, *self._saved)}
        kinds = [*values.items()]
        kinds += [(name, self._facts.gradient_dtype(self._facts.values[name])) for name in set(self._results.values())]
        return sum(size_of(self._facts.shape(self._facts.values[name])) * kind.itemsize for name, kind in kinds)

    def forward(self, inputs: Mapping[str, Array], room: _Room) -> Forward:
        """Run the network."""
        arrays = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        places = {name: self._place(name, self._facts.dtype(self._facts.values[name]), room) for name in self._computed}
        fed = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        values, shown = _run(self._forward, places, {name: fed[name] for name in self._fed})
        values, shown = values | fed, shown | arrays
        kept = {name: shown[name] for name in dict.fromkeys([*self._heads, *self._keep])}
        return Forward(self, kept, {place: values[name] for name, place in self._saved.items()}, room)

    def backward(
        self, saved: Mapping[str, ort.OrtValue], probes: Mapping[str, Array], values: Mapping[str, Array], room: _Room
    ) -> dict[str, Array]:
        """Run the backward graph."""
        if self._backward is None:
            return {}
        feeds = dict(saved)
        for head, place in self._probes.items():
            dtype, shape = self._facts.gradient_dtype(self._facts.values[head]), values[head].shape
            probe = probes[head].astype(dtype, copy=False) if head in probes else np.zeros(shape, dtype)
            if probe.shape != shape:
                raise ValueError(f"the probe of {head} has the shape {probe.shape}, its value {shape}")
            feeds[place] = ort.OrtValue.ortvalue_from_numpy(np.asarray(probe, order="C"))
        names = list(dict.fromkeys(self._results.values()))
        places = {
            f"gradient/{name}": self._place(name, self._facts.gradient_dtype(self._facts.values[name]), room)
            for name in names
        }
        _, found = _run(self._backward, places, feeds)
        return {key: found[f"gradient/{name}"] for key, name in self._results.items()}

    def _place(self, name: str, dtype: np.dtype[Any], room: _Room) -> Array | None:
        """Where a value of the network, or its gradient, is to lie; None for types that only the runtime holds."""
        return room.take(self._facts.shape(self._facts.values[name]), dtype) if bindable(dtype) else None


class _Walk:
    """The way back from the heads, with everything that it writes.

    Attributes:
        draft: The backward graph.
        probes: Its inputs for the heads that something asked for depends on.
        reached: The gradient of each value asked for, by its name.
        blocked: What cuts values off from a head, by their names.
    """

    def __init__(self, facts: Facts, heads: Sequence[str], points: set[str], inputs: Mapping[str, Array]) -> None:
        known = {name for name in points if name in facts.values}
        nodes, _ = between(facts, known, heads, FLAT)
        facts.learn(ends(nodes), inputs)
        # Types that inference did not know are known now.
        nodes, self._path = between(facts, known, heads, FLAT)
        self.draft = Draft(facts)
        self.probes: dict[str, ir.Value] = {}
        self.reached: dict[str, ir.Value] = {}
        self.blocked: dict[str, set[Unsupported]] = defaultdict(set)
        self._facts, self._points = facts, known
        self._parts: dict[str, list[ir.Value]] = defaultdict(list)
        for index, head in enumerate(heads):
            if head in self._path:
                value = facts.values[head]
                dtype = facts.gradient_dtype(value)
                self.probes[head] = self.draft.input(f"probe{index}", dtype, facts.shape(value))
                self._parts[head].append(self.probes[head])
        for node in reversed(nodes):
            self._step(node)
        for name in known & self._path:  # values that no node makes
            self._gradient(name)

    def _step(self, node: ir.Node) -> None:
        """Take gradients from a node's outputs to its inputs."""
        gradients = [self._gradient(str(value.name)) if value.name else None for value in node.outputs]
        cut = {fault for value in node.outputs for fault in self.blocked.get(str(value.name), ())}
        if not cut:
            try:
                self._apply(node, gradients)
                return
            except RefusedError as error:
                cut = {Unsupported(node.op_type, str(node.name or node.outputs[0].name), str(error))}
        for name in reads(node):
            if name in self._path:
                self.blocked[name] |= cut

    def _apply(self, node: ir.Node, gradients: Sequence[ir.Value | None]) -> None:
        if node.op_type not in RULES or node.domain not in ("", "ai.onnx"):
            raise RefusedError("no rule")
        if any(gradient is not None for gradient in gradients[1:]) and node.op_type not in _MANY_OUTPUTS:
            raise RefusedError("a further output is used")
        wanted = [value is not None and str(value.name) in self._path for value in node.inputs]
        found = RULES[node.op_type](Call(node, self.draft, gradients, wanted))
        missing = [index for index, asked in enumerate(wanted) if asked and index not in found]
        if missing:
            raise RefusedError(f"no rule for input {missing[0]}")
        for index, value in enumerate(node.inputs):
            if value is not None and wanted[index]:
                self._parts[str(value.name)].append(found[index])

    def _gradient(self, name: str) -> ir.Value | None:
        """Sum what came back to a value from all that read it."""
        parts = self._parts.pop(name, None)
        if not parts:
            return None
        total = self.draft.total(parts)
        if name in self._points and not self.blocked.get(name):
            self.reached[name] = total
        return total


def _session(model: ir.Model, threads: int | None) -> ort.InferenceSession:
    with runtime_source(model, in_place=True) as source:
        # All values of the network are held from one run to the next: the two sessions need no memory of their own.
        return open_waiting(source, threads, arena=False)


def _run(
    session: ort.InferenceSession, places: Mapping[str, Array | None], feeds: Mapping[str, ort.OrtValue]
) -> tuple[dict[str, ort.OrtValue], dict[str, Array]]:
    """Run a session, what comes out written to the places given; gives it as the runtime's values and as arrays."""
    try:
        try:
            values = run_bound(session, places, feeds)
        except Exception:  # a shape is not what inference said; whatever else it is, it comes again
            places = dict.fromkeys(places)
            values = run_bound(session, places, feeds)
    except Exception as error:  # the runtime's exceptions share no base class
        raise ModelError(f"The model does not run on the calibration inputs: {sentence(error)}.") from error
    return values, {name: values[name].numpy() if place is None else place for name, place in places.items()}
