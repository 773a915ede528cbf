"""Run a network twice, untouched and rewritten, from one site to the next.

The graph is cut at the sites. Between two of them both versions run the same nodes, so one session serves both; until
the first site is rewritten they even hold the same values, which are then computed once. Only values that a node still
to come needs are kept, and beyond a limit they lie in files. Every node runs once, however many sites there are.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph import Site, holds_map, named_after, origin, runtime_source, still, subgraphs_of
from onnx_pointwise.runtime.providers import open_session
from onnx_pointwise.runtime.runtime_errors import sentence
from onnx_pointwise.scratch import ScratchFolder

Array = NDArray[Any]


def without_shapes(model: ir.Model) -> ir.Model:
    """Copy a model and forget the shapes of everything computed, so that it runs at any batch size.

    Its random nodes draw the same in every run, see ``graph.noise``.
    """
    copy = model.clone()
    still(copy)
    for graph in copy.graphs():
        for value in graph.inputs:
            if value.const_value is None:
                value.shape = None
        for node in graph:
            for value in node.outputs:
                value.shape = None
    return named_after(copy, model)


def tensor_outputs(model: ir.Model) -> list[str]:
    """Name the outputs of a network that are tensors, or may be: sequences and maps have no part for each example."""
    return [
        str(value.name)
        for value in model.graph.outputs
        if isinstance(value.type, ir.TensorType) or (value.type is None and not holds_map(value))
    ]


def open_waiting(source: str | Path | bytes, threads: int | None, *, arena: bool = True) -> ort.InferenceSession:
    """Open a CPU session whose idle threads sleep, so that the algebra between two runs has the processors."""
    return open_session(source, "cpu", threads=threads, config={"session.intra_op.allow_spinning": "0"}, arena=arena)


class Piece:
    """A part of a graph as a session, run in batches.

    Args:
        model: A model without shapes.
        inputs: Names of the values that bound the part above; empty for the model's own inputs.
        outputs: Names of the values to compute.
        threads: Threads of the session; the runtime's own choice if None.

    Raises:
        ModelError: The runtime refuses the part.
    """

    def __init__(
        self, model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], *, threads: int | None = None
    ) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)
        graph = ir.convenience.extract(model.graph, self.inputs, self.outputs)
        for name, version in model.graph.opset_imports.items():
            graph.opset_imports.setdefault(name, version)
        part = ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))
        try:
            with runtime_source(part, in_place=True) as source:
                self._session = open_waiting(source, threads)
        except ModelError as error:
            path, reason = origin(model), str(error).partition("cannot load the model: ")[2]
            if path is None or not reason:
                raise
            raise ModelError(f"{path}: ONNX Runtime cannot load the model: {reason}") from error

    def run(self, feeds: Mapping[str, Array], room: Mapping[str, Array] | None = None) -> list[Array]:
        """Compute the outputs for one batch; with `room` as `run_session` does.

        Raises:
            ModelError: The runtime fails on it.
        """
        return run_session(self._session, self.outputs, {name: feeds[name] for name in self.inputs}, room)


def run_session(
    session: ort.InferenceSession,
    outputs: Sequence[str],
    feeds: Mapping[str, Array],
    room: Mapping[str, Array] | None = None,
) -> list[Array]:
    """Run a session once.

    Args:
        session: The session.
        outputs: Names of the outputs to compute.
        feeds: Inputs by name.
        room: Where some outputs are to lie, by name: contiguous arrays of their type and shape, which save the runtime
            memory of its own and a copy. Outputs that turn out to have another shape lie elsewhere.

    Returns:
        The outputs.

    Raises:
        ModelError: The runtime fails; the sentence is its own.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    try:
        if room:
            with contextlib.suppress(Exception):  # another shape than expected; whatever else it is, it comes again
                fed = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
                made = run_bound(session, {name: room.get(name) for name in outputs}, fed)
                return [room[name] if name in room else made[name].numpy() for name in outputs]
        return list(session.run(list(outputs), arrays))
    except Exception as error:  # the runtime's exceptions share no base class
        raise ModelError(f"The model does not run on the calibration inputs: {sentence(error)}.") from error


def run_bound(
    session: ort.InferenceSession, places: Mapping[str, Array | None], feeds: Mapping[str, ort.OrtValue]
) -> dict[str, ort.OrtValue]:
    """Run a session once, its outputs written to where they are to lie.

    Args:
        session: The session.
        places: The outputs to compute, and where each is to lie: a contiguous array of its type and shape, see
            `bindable`; where the runtime likes if None.
        feeds: Inputs by name.

    Returns:
        The outputs by name.

    Raises:
        Exception: The runtime's own, also where an output has another shape than its place.
    """
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for name, place in places.items():
        if place is None:
            binding.bind_output(name)
        else:
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(place))
    session.run_with_iobinding(binding)
    return dict(zip(places, binding.get_outputs(), strict=True))


def bindable(dtype: np.dtype[Any]) -> bool:
    """Whether an array of this type can be a place of `run_bound`: NumPy has it, and it is no text."""
    return dtype.kind in "fiub"


class Store:
    """Arrays over all examples: in memory up to a limit, in files of a temporary folder beyond.

    Args:
        limit: Bytes to hold in memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._count = limit, 0, 0
        self._folder: ScratchFolder | None = None

    def new(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Make an array to be filled."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if self._held + size <= self._limit or size == 0:
            self._held += size
            return np.empty(tuple(shape), dtype)
        if self._folder is None:
            self._folder = ScratchFolder()
        self._count += 1
        return np.memmap(self._folder.path / f"{self._count}.bin", dtype, "w+", shape=tuple(shape))

    def drop(self, array: Array) -> None:
        """Give an array's room back; the caller must not use it any more."""
        if isinstance(array, np.memmap):
            Path(str(array.filename)).unlink(missing_ok=True)
        else:
            self._held -= array.nbytes

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


class TwinRun:
    """Both versions of a network on all examples, advanced from site to site.

    Args:
        model: The untouched model with its types inferred; it is left as it is.
        sites: The sites to cut at, in graph order; each must be reported to `finish` before what follows it is needed.
        inputs: Example inputs by name, [N, ...].
        batch: Examples in one run.
        memory: Bytes of activations to hold in memory.
        threads: Threads of the sessions; the runtime's own choice if None.
        outputs: Names of the values to keep to the end; the network's outputs, as far as they are tensors, if None.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[Site],
        inputs: Mapping[str, Array],
        *,
        batch: int,
        memory: int,
        threads: int | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self._model = without_shapes(model)
        self._batch, self._threads = batch, threads
        self._values = ir.convenience.create_value_mapping(self._model.graph, include_subgraphs=False)
        self.outputs = list(outputs or tensor_outputs(self._model))
        self._store = Store(memory)
        self.dense: dict[str, Array] = dict(inputs)
        self.rewritten: dict[str, Array] = dict(inputs)
        self._given = set(inputs)
        self.count = len(next(iter(inputs.values())))
        self._cut = {str(name): site for site in sites for name in site_values(site)}
        self._varying = _varying(self._model.graph, inputs)
        self._pending: Counter[str] = Counter()
        self._done: set[ir.Node] = set()
        for node in self._model.graph:
            self._pending.update(reads(node))

    def __enter__(self) -> TwinRun:
        """Start; the files go with the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the files."""
        self._store.close()

    def reachable(self, name: str) -> bool:
        """Whether a value depends on no site that is still unfinished."""
        return self._missing([name]) is not None

    def advance(self, names: Iterable[str]) -> None:
        """Compute values in both versions.

        Raises:
            ModelError: The runtime fails, or a value depends on a site that is not finished.
        """
        wanted = [name for name in names if name not in self.dense]
        nodes = self._missing(wanted)
        if nodes is None:
            raise ModelError("A value was asked for before the sites that it depends on were done.")
        if not nodes:
            return
        feeds = sorted({name for node in nodes for name in reads(node) if name in self.dense})
        taken = Counter(name for node in nodes for name in reads(node))
        # What does not depend on the examples is computed anew in every piece: it has no part for each of them.
        made = [str(value.name) for node in nodes for value in node.outputs if value.name in self._varying]
        made += [name for name in wanted if name not in self._varying]
        kept = [name for name in made if name in wanted or name in self.outputs or self._pending[name] > taken[name]]
        piece = Piece(self._model, feeds, kept, threads=self._threads)
        dense = self._over_batches(piece, self.dense)
        shared = all(self.rewritten[name] is self.dense[name] for name in feeds)
        rewritten = dense if shared else self._over_batches(piece, self.rewritten)
        self.dense.update(dense)
        self.rewritten.update(rewritten)
        self._done.update(nodes)
        self._pending.subtract(taken)
        self._free()

    def dense_output(self, site: Site) -> Array:
        """Compute what a site gives in the untouched network; its input must be there."""
        piece = Piece(self._model, [site.source], [str(site.output.name)], threads=self._threads)
        return self._over_batches(piece, self.dense)[str(site.output.name)]

    def finish(self, site: Site, dense: Array, session: ort.InferenceSession | None) -> None:
        """Take over a site's outputs and go on.

        Args:
            site: The site.
            dense: What `dense_output` gave.
            session: Session of the rewritten site with one input and one output; None where it stays as it is.
        """
        name, source = str(site.output.name), site.source
        self.dense[name] = dense
        if session is None and self.rewritten[source] is self.dense[source]:
            self.rewritten[name] = dense
        elif session is None:
            piece = Piece(self._model, [source], [name], threads=self._threads)
            self.rewritten[name] = self._over_batches(piece, self.rewritten)[name]
        else:
            self.rewritten[name] = self.apply(session, self.rewritten[source])
        made = site_values(site)
        nodes = [node for node in self._model.graph if any(value.name in made for value in node.outputs)]
        self._done.update(nodes)
        self._pending.subtract(Counter(name for node in nodes for name in reads(node)))
        for value in made:
            self._cut.pop(value, None)
        self._free()

    def apply(self, session: ort.InferenceSession, source: Array, given: Mapping[str, Array] | None = None) -> Array:
        """Run a session with one output on all examples.

        Args:
            session: The session; its first input takes the examples.
            source: The examples, [N, ...].
            given: Its other inputs, by name.

        Returns:
            Its output; give it to `release` or `finish`.
        """
        feed, (result,) = session.get_inputs()[0], session.get_outputs()
        results: dict[str, Array] = {}
        runs = max(1, -(-self.count // self._batch))
        for start in range(0, self.count, self._batch):
            stop = min(start + self._batch, self.count)
            feeds = {feed.name: source[start:stop], **(given or {})}
            (part,) = run_session(session, [result.name], feeds, self._room(results, start, stop))
            self._collect(results, result.name, part, start, stop, runs)
        return results[result.name]

    def release(self, array: Array) -> None:
        """Give the room of an array back that `apply` made."""
        self._store.drop(array)

    def rest(self, site: Site) -> Piece | None:
        """The network behind a site whose input is there: from its output, and what else is there, to the outputs.

        Returns:
            The piece; None where the site reaches no output.
        """
        start = str(site.output.name)
        stack, seen, feeds = [name for name in self.outputs if name not in self.dense], set[str](), {start}
        reached = False
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            value = self._values.get(name)
            if name == start or name in self.dense:
                reached |= name == start
                feeds.add(name)
            elif value is not None and (node := value.producer()) is not None:
                stack.extend(reads(node))
        if not reached:
            return None
        names = [name for name in self.outputs if name not in self.dense]
        return Piece(self._model, sorted(feeds), names, threads=self._threads)

    def outcome(self, rest: Piece, site: Site, output: Array) -> list[Array]:
        """Run what `rest` gave on an output of the site, all else as in the untouched network."""
        values = {**self.dense, str(site.output.name): output}
        parts = []
        for start in range(0, self.count, self._batch):
            stop = min(start + self._batch, self.count)
            parts.append(rest.run({name: self._part(values[name], start, stop) for name in rest.inputs}))
        return [np.concatenate(column) if column[0].ndim else column[0] for column in zip(*parts, strict=True)]

    def _missing(self, names: Iterable[str]) -> list[ir.Node] | None:
        """Nodes still to run for values, in graph order; None where an unfinished site is in the way."""
        stack, found = list(names), set()
        while stack:
            name = stack.pop()
            if name in self.dense:
                continue
            if name in self._cut:
                return None
            value = self._values.get(name)
            node = None if value is None else value.producer()
            if node is None or node in found or node in self._done:
                continue
            found.add(node)
            stack.extend(reads(node))
        return [node for node in self._model.graph if node in found]

    def _over_batches(self, piece: Piece, values: Mapping[str, Array]) -> dict[str, Array]:
        results: dict[str, Array] = {}
        runs = max(1, -(-self.count // self._batch))
        for start in range(0, self.count, self._batch):
            stop = min(start + self._batch, self.count)
            feeds = {name: self._part(values[name], start, stop) for name in piece.inputs}
            for name, part in zip(piece.outputs, piece.run(feeds, self._room(results, start, stop)), strict=True):
                self._collect(results, name, part, start, stop, runs)
        return results

    def _room(self, results: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
        """Where the values of some examples are to lie, of those that have a part for each of all examples."""
        return {
            name: array[start:stop]
            for name, array in results.items()
            if array.ndim and len(array) == self.count and bindable(array.dtype) and array.nbytes
        }

    def _part(self, array: Array, start: int, stop: int) -> Array:
        return array[start:stop] if array.ndim and len(array) == self.count else array

    def _collect(self, results: dict[str, Array], name: str, part: Array, start: int, stop: int, runs: int) -> None:
        if runs == 1:
            results[name] = part
        elif part.ndim and len(part) == stop - start:
            if start == 0:
                results[name] = self._store.new((self.count, *part.shape[1:]), part.dtype)
            if part.shape[1:] != results[name].shape[1:]:
                raise InputError("The calibration inputs lead to activations of different sizes; give equal sizes.")
            if not np.may_share_memory(part, results[name]):
                results[name][start:stop] = part
        elif start == 0:
            results[name] = part  # does not depend on the examples: shapes, constants
        elif part.shape != results[name].shape or not np.array_equal(part, results[name]):
            raise ModelError(f"The value '{name}' mixes examples of a batch; give calibration inputs one by one.")

    def _free(self) -> None:
        for name in list(self.dense):
            if self._pending[name] > 0 or name in self.outputs:
                continue
            first, second = self.dense.pop(name), self.rewritten.pop(name)
            if name in self._given:
                continue
            self._store.drop(first)
            if second is not first:
                self._store.drop(second)


def _varying(graph: ir.Graph, inputs: Iterable[str]) -> set[str]:
    """Names of the values that depend on inputs."""
    found = set(inputs)
    for node in graph:
        if not found.isdisjoint(reads(node)):
            found.update(str(value.name) for value in node.outputs if value.name)
    return found


def site_values(site: Site) -> list[str]:
    """Names of what a site's nodes compute."""
    return [str(value.name) for node in (site.node, *site.folds) for value in node.outputs if value.name]


def reads(node: ir.Node) -> list[str]:
    """Names of the values that a node reads, those that its subgraphs take from outside included."""
    names = [str(value.name) for value in node.inputs if value is not None and value.name]
    for graph in subgraphs_of(node):
        inner = {str(value.name) for item in graph for value in item.outputs}
        inner |= {str(value.name) for value in graph.inputs} | set(graph.initializers)
        names.extend(name for item in graph for name in reads(item) if name not in inner)
        names.extend(str(value.name) for value in graph.outputs if value.name not in inner)
    return names


#: Bytes of activations held in memory, unless told otherwise; beyond, they lie in files.
MEMORY = 2**31
