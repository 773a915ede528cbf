"""Both sides of a check: what is known of a network without running it, and what it gave when it ran."""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnx_pointwise.check.kept import Kept
from onnx_pointwise.check.trials import Batch, Shapes, is_open
from onnx_pointwise.graph import (
    ModelCost,
    ModelSource,
    ResolvedShapes,
    as_model,
    file_bytes,
    inlined,
    model_cost,
    named_after,
    random_nodes,
    runtime_inputs,
    stilled,
)
from onnx_pointwise.runtime import (
    AssignedNode,
    InputSpec,
    input_specs,
    is_cpu,
    model_name,
    nodes_off_provider,
    not_compared,
    open_initializers,
    open_session,
    resolve,
    run_outputs,
    sentence,
    session_source,
)
from onnx_pointwise.settings import CheckSettings


@dataclass(frozen=True)
class Side:
    """What is known of one network without running it, its weights left out.

    Attributes:
        source: The network.
        specs: What its inputs take.
        inputs: Its inputs as declared.
        outputs: Its outputs as declared.
        names: Names of its outputs.
        cost: What it costs.
        warnings: What makes a comparison with it worth less.
    """

    source: ModelSource | bytes
    specs: tuple[InputSpec, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    cost: ModelCost
    warnings: tuple[str, ...]


def described(source: ModelSource | bytes, model: ir.Model, shapes: ResolvedShapes) -> Side:
    """Say what is known of a network."""
    size = file_bytes(source, model) if isinstance(source, str | Path) else None
    return Side(
        source=source,
        specs=tuple(input_specs(model)),
        inputs=tuple(_declaration(value) for value in runtime_inputs(model)),
        outputs=tuple(_declaration(value) for value in model.graph.outputs),
        names=tuple(str(value.name) for value in model.graph.outputs),
        cost=model_cost(model, shapes, file_bytes=size),
        warnings=(*open_initializers(model, model_name(source)), *_random_nodes(source, model)),
    )


def _random_nodes(source: ModelSource | bytes, model: ir.Model) -> list[str]:
    """Say that random nodes were made to draw alike."""
    names = random_nodes(model)
    if not names:
        return []
    shown = ", ".join(f"'{name}'" for name in names[:4]) + (", ..." if len(names) > 4 else "")
    return [f"{model_name(source)}: {shown} draw random numbers; for the comparison they drew the same in both."]


def _declaration(value: ir.Value) -> str:
    sizes = "..."
    if value.shape is not None:
        sizes = ", ".join(str(size if isinstance(size, int) else size.value or "?") for size in value.shape)
    dtype = "unknown" if value.dtype is None else value.dtype.name.lower()
    return f"{value.name}: {dtype}[{sizes}]"


def shapes_of(model: ir.Model, shapes: Shapes | None) -> ResolvedShapes:
    """Find the shapes of all values for one item, at the sizes of a run."""
    one = None
    if shapes is not None:
        one = {
            spec.name: (1, *shapes[spec.name][1:]) if shapes[spec.name] and is_open(spec, 0) else shapes[spec.name]
            for spec in input_specs(model)
        }
    return resolve(model, one)


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What one network gave.

    Attributes:
        values: For each batch its values by name, or why it did not run.
        others: Outputs that hold no numbers, maps and strings, and their types.
        nodes_off: Nodes that ran on another provider.
    """

    values: Kept
    others: Mapping[str, str]
    nodes_off: tuple[AssignedNode, ...]


def run(
    source: ModelSource | bytes,
    batches: Sequence[Batch],
    provider: str,
    settings: CheckSettings,
    hidden: Collection[str] = (),
) -> Run:
    """Run one network on all batches.

    Args:
        source: The network.
        batches: What it is given.
        provider: Where it runs.
        settings: How.
        hidden: Values inside it that are given beside the outputs, where a batch counts.
    """
    values = Kept()
    with session_source(exposed(source, hidden), provider) as path:
        if hidden:
            gc.collect()  # graphs are cyclic: only a collection gives the weights of the working copy back
        session = open_session(path, provider, threads=settings.threads, optimization=settings.optimization)
        others = not_compared(session)
        for number, batch in enumerate(batches):
            settings.tell("check", f"{model_name(source)} on {provider}", number, len(batches))
            try:
                given = run_outputs(session, batch.feeds)
            except Exception as error:  # the runtime's exceptions share no base class
                values.add(sentence(error))
            else:
                values.add({name: value for name, value in given.items() if batch.counts or name not in hidden})
        nodes_off = () if is_cpu(provider) else tuple(nodes_off_provider(session))
    return Run(values, others, nodes_off)


def exposed(source: ModelSource | bytes, names: Collection[str]) -> ModelSource | bytes:
    """The same network with further values as outputs, if it has them, and the same noise in any run."""
    source = stilled(source)
    if not names:
        return source
    model = named_after(as_model(source).clone(), source)
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    if model.functions and any(name not in values for name in names):
        model = inlined(model)
        values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    for name in names:
        value = values.get(name)
        if value is not None and not value.is_graph_output():
            value.shape = None  # a stored one may hold for another size
            model.graph.outputs.append(value)
    return model
