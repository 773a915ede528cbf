"""Which convolution did it: each that the second network computes otherwise, by itself and with all before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_pointwise.check.kept import Kept
from onnx_pointwise.check.running import exposed, shapes_of
from onnx_pointwise.check.trials import Batch, is_open
from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import ModelSource, as_model, constant, find_sites, runtime_source
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import ValueMeter
from onnx_pointwise.runtime import Array, InputSpec, Piece, open_session, reads, run_session, without_shapes

# Examples that are looked at; the values of all sites are kept for each, in a file where they are many.
_EXAMPLES = 8


@dataclass(frozen=True)
class SiteCheck:
    """What one convolution that is computed otherwise does.

    Attributes:
        name: The site.
        output: The value that it gives, in both networks.
        drift: Relative L2 of that value between both networks, channel means taken out, with all that earlier sites
            did; None where the second network has no such value any more.
        own: The same where the second network's pieces are fed what the site gets in the first network: its own doing.
            None where it cannot be told apart from its neighbours.
    """

    name: str
    output: str
    drift: float | None
    own: float | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {"name": self.name, "output": self.output, "drift": self.drift, "own": self.own}


@dataclass(frozen=True)
class _Moved:
    """A site whose value is computed otherwise."""

    name: str
    source: str
    output: str


def compare_sites(
    before: ModelSource | bytes,
    after: ModelSource | bytes,
    specs: Sequence[InputSpec],
    batches: Sequence[Batch],
    *,
    threads: int | None = None,
) -> tuple[SiteCheck, ...]:
    """Find the sites that the second network computes otherwise, and how far each is off, on the CPU.

    Args:
        before: The first network.
        after: The second one, which shares the names of the sites' values.
        specs: What the inputs take.
        batches: What both are given; the first examples of those that count are looked at.
        threads: Threads of the sessions.

    Returns:
        The sites in the order of the graph.

    Raises:
        ModelError: One of the networks does not run.
    """
    first, second = (shapes_of(as_model(source), batches[0].shapes).model for source in (before, after))
    moved, gone = _moved(first, second)
    if not moved:
        return tuple(SiteCheck(*gone[place], None, None) for place in sorted(gone))
    drifts, own = ({site.name: ValueMeter(1) for site in moved} for _ in range(2))
    pieces = _pieces(second, moved, threads)
    sources, outputs = ([getattr(site, part) for site in moved] for part in ("source", "output"))
    examples = _examples(specs, batches)
    # One after the other: both networks at once may be more than the memory.
    fed = {spec.name for spec in specs}
    wanted = [name for name in dict.fromkeys(sources + outputs) if name not in fed]
    true = _values(before, wanted, examples, threads)
    now = _values(after, outputs, examples, threads)
    for feeds, first_gave, second_gave in zip(examples, true, now, strict=True):
        assert not isinstance(first_gave, str) and not isinstance(second_gave, str), "only values are kept"
        known = {**first_gave, **feeds}
        for site in moved:
            _add(drifts[site.name], known[site.output], second_gave[site.output])
            if site.name in pieces:
                (alone,) = pieces[site.name].run({site.source: known[site.source]})
                _add(own[site.name], known[site.output], alone)
    return tuple(
        SiteCheck(name, output, _relative(drifts.get(name)), _relative(own.get(name)))
        for name, output in _in_order(moved, gone)
    )


def _values(
    source: ModelSource | bytes, names: Sequence[str], examples: Sequence[Mapping[str, Array]], threads: int | None
) -> Kept:
    """What a network has at some values, for each example."""
    kept = Kept()
    with runtime_source(exposed(source, names), in_place=True) as path:
        session = open_session(path, "cpu", threads=threads)
        for feeds in examples:
            kept.add(dict(zip(names, run_session(session, names, feeds), strict=True)))
    return kept


def _add(meter: ValueMeter, reference: Array, output: Array) -> None:
    if reference.shape == output.shape and reference.dtype.kind == "f":
        meter.add(reference, output)


def _relative(meter: ValueMeter | None) -> float | None:
    drift = None if meter is None else meter.result()
    return None if drift is None else drift.relative


def _in_order(moved: Sequence[_Moved], gone: Mapping[int, tuple[str, str]]) -> list[tuple[str, str]]:
    """Names and outputs of all sites, those whose value is gone at their place."""
    found = [(site.name, site.output) for site in moved]
    for place in sorted(gone):
        found.insert(place, gone[place])
    return found


def _examples(specs: Sequence[InputSpec], batches: Sequence[Batch]) -> list[dict[str, Array]]:
    """The first examples that count, one by one where the model leaves its batch size open."""
    found: list[dict[str, Array]] = []
    for batch in batches:
        if not batch.counts:
            continue
        lengths = {len(batch.feeds[spec.name]) for spec in specs if batch.feeds[spec.name].ndim}
        if len(lengths) != 1 or not all(is_open(spec, 0) for spec in specs if batch.feeds[spec.name].ndim):
            found.append(dict(batch.feeds))
            continue
        found += [
            {name: array[index : index + 1] if array.ndim else array for name, array in batch.feeds.items()}
            for index in range(lengths.pop())
        ]
    return found[:_EXAMPLES]


# --- which are computed otherwise -------------------------------------------------------------------------------------


def _moved(first: ir.Model, second: ir.Model) -> tuple[list[_Moved], dict[int, tuple[str, str]]]:
    """Sites of the first network that the second computes otherwise, and those whose value it lacks, by place."""
    before, after = (
        ir.convenience.create_value_mapping(model.graph, include_subgraphs=False) for model in (first, second)
    )
    moved: list[_Moved] = []
    gone: dict[int, tuple[str, str]] = {}
    for site in find_sites(first):
        output = str(site.output.name)
        if before.get(output) is not site.output or not site.source:
            continue  # inside control flow or a function
        if output not in after:
            gone[len(moved) + len(gone)] = (site.name, output)
        elif not _same(_chain(before[output], site.source), _chain(after[output], site.source)):
            moved.append(_Moved(site.name, site.source, output))
    return moved, gone


def _chain(output: ir.Value, source: str) -> list[ir.Node] | None:
    """The nodes between two values, the last one first; None where other values go in on the way."""
    waiting, nodes = [output], []
    while waiting:
        value = waiting.pop(0)
        node = value.producer()
        if str(value.name) == source or constant(value) is not None:
            continue
        if node is None:
            return None
        if node not in nodes:
            nodes.append(node)
            waiting.extend(one for one in node.inputs if one is not None)
    return nodes


def _same(first: Sequence[ir.Node] | None, second: Sequence[ir.Node] | None) -> bool:
    """Whether two chains hold the same nodes with the same constants."""
    if first is None or second is None or len(first) != len(second):
        return first is None and second is None
    return all(_same_node(one, other) for one, other in zip(first, second, strict=True))


def _same_node(one: ir.Node, other: ir.Node) -> bool:
    if one.op_type != other.op_type or len(one.inputs) != len(other.inputs):
        return False
    for first, second in zip(one.inputs, other.inputs, strict=True):
        a, b = constant(first), constant(second)
        if (a is None) != (b is None):
            return False
        if a is not None and b is not None and not np.array_equal(a.numpy(), b.numpy()):
            return False
    return True


def _pieces(model: ir.Model, moved: Sequence[_Moved], threads: int | None) -> dict[str, Piece]:
    """The second network from one site's input to its output, for each site that stands by itself there."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    plain = without_shapes(model)
    found: dict[str, Piece] = {}
    for site in moved:
        chain = _chain(values[site.output], site.source)
        if chain is None or not any(site.source in reads(node) for node in chain):
            continue
        try:
            found[site.name] = Piece(plain, [site.source], [site.output], threads=threads)
        except ModelError:
            continue  # the runtime does not take it apart
    return found
