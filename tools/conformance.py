"""Rewrite every convolution of the ONNX backend test suite, and run both networks in ONNX Runtime.

The suite comes with the ``onnx`` package: single operators, models that a converter made of PyTorch layers, and known
image networks whose weights are left out (random ones take their place here). A kernel that is an input of a case
becomes an initializer, as it is in a trained network. Each case is rewritten at full rank, which has to compute what
the case computes and what the suite expects of it, and at low rank, which has to be a valid model with the same outputs
by name, type and shape. What is not rewritten needs a reason.

    python -m tools.conformance                     all of it: a quarter of an hour on two cores
    python -m tools.conformance --kind node         only cases of a kind: node, converted, operator, network
    python -m tools.conformance --name squeezenet   only cases whose name contains that

It prints a table, and ends with exit code 1 where a case failed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper, version_converter

import onnx_pointwise
from onnx_pointwise.graph import Choice, Plan, Site, find_sites, load, takes
from onnx_pointwise.numerics import FORMS, Form, Rank, full_rank

Array = NDArray[Any]
Status = Literal["passed", "refused", "failed"]

KINDS = ("node", "converted", "operator", "network")
#: Operator set that older cases are raised to; the package takes 9 and later.
RAISED = 13
#: Relative L2 distance that rounding alone may make, by the type of the output.
TOLERANCES = {np.dtype(np.float16): 1e-2, np.dtype(np.float32): 1e-4}


@dataclass(frozen=True)
class Case:
    """One model of the suite.

    Attributes:
        kind: Where it comes from, one of `KINDS`.
        name: Its name in the suite.
        make: Gives the model with its kernels frozen, inputs for it, and the outputs that the suite expects, if any.
        tolerance: Relative and absolute tolerance of the expected outputs.
    """

    kind: str
    name: str
    make: Callable[[], tuple[onnx.ModelProto, dict[str, Array], list[Array] | None]]
    tolerance: tuple[float, float] = (1e-3, 1e-7)


@dataclass
class Row:
    """What became of a case.

    Attributes:
        kind: Kind of the case.
        name: Name of the case.
        rewritten: Convolutions that were rewritten.
        refused: Convolutions that stayed dense, by code and sentence.
        faults: What went wrong, one sentence each.
        seconds: Wall time, in seconds.
    """

    kind: str
    name: str
    rewritten: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """Failed, refused where nothing could be rewritten, or passed."""
        if self.faults:
            return "failed"
        return "passed" if self.rewritten else "refused"


# --- the cases --------------------------------------------------------------------------------------------------------


def cases(kinds: Sequence[str] = KINDS, name: str = "") -> Iterator[Case]:
    """List the cases that hold a convolution.

    Args:
        kinds: Which kinds to take.
        name: Only those whose name contains this.
    """
    for kind, listed in (
        ("node", _node_cases),
        ("converted", lambda: _stored_cases("pytorch-converted", "converted")),
        ("operator", lambda: _stored_cases("pytorch-operator", "operator")),
        ("network", _networks),
    ):
        if kind in kinds:
            yield from (case for case in listed() if name in case.name)


def _convolves(graph: onnx.GraphProto) -> bool:
    return any("Conv" in node.op_type for node in graph.node)


def _node_cases() -> Iterator[Case]:
    from onnx.backend.test.loader import load_node_model_tests  # makes all cases of the suite, which takes seconds

    with np.errstate(all="ignore"):
        found = load_node_model_tests()
    for item in found:
        if item.model is not None and item.data_sets and _convolves(item.model.graph):
            inputs, outputs = item.data_sets[0]

            def make(
                model: onnx.ModelProto = item.model, inputs: Any = inputs, outputs: Any = outputs
            ) -> tuple[onnx.ModelProto, dict[str, Array], list[Array]]:
                frozen, feeds = with_kernels(model, [np.asarray(array) for array in inputs])
                return frozen, feeds, [np.asarray(array) for array in outputs]

            yield Case("node", item.name.removeprefix("test_"), make, (item.rtol, item.atol))


def _data() -> Path:
    from onnx.backend.test import loader

    return Path(loader.DATA_DIR)


def _stored_cases(folder: str, kind: str) -> Iterator[Case]:
    for path in sorted((_data() / folder).iterdir()):
        if (path / "model.onnx").is_file() and _convolves(onnx.load(path / "model.onnx").graph):

            def make(path: Path = path) -> tuple[onnx.ModelProto, dict[str, Array], list[Array]]:
                model = version_converter.convert_version(onnx.load(path / "model.onnx"), RAISED)
                inputs, outputs = (_tensors(path / "test_data_set_0", part) for part in ("input", "output"))
                model, feeds = with_kernels(model, inputs)
                return model, feeds, outputs

            yield Case(kind, path.name.removeprefix("test_"), make)


def _tensors(folder: Path, part: str) -> list[Array]:
    files = sorted(folder.glob(f"{part}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.load_tensor(path)) for path in files]


def with_kernels(model: onnx.ModelProto, inputs: Sequence[Array]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Make initializers of the inputs that a convolution takes as kernel, bias or parameter.

    Args:
        model: A case of the suite.
        inputs: What the suite feeds, in the order of the inputs.

    Returns:
        The model, and what is left to feed, by name.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name for tensor in copy.graph.initializer}
    fed = [item for item in copy.graph.input if item.name not in stored]
    feeds = {item.name: array for item, array in zip(fed, inputs, strict=False)}
    parameters = {name for node in copy.graph.node if "Conv" in node.op_type for name in list(node.input)[1:] if name}
    # What an activation is: the first input of any node, or its only one.
    taken = [item for item in fed if item.name in parameters and item.name in feeds]
    for item in taken:
        copy.graph.initializer.append(numpy_helper.from_array(feeds.pop(item.name), item.name))
        copy.graph.input.remove(item)
    return copy, feeds


def _networks() -> Iterator[Case]:
    for path in sorted((_data() / "light").glob("*.onnx")):

        def make(path: Path = path) -> tuple[onnx.ModelProto, dict[str, Array], None]:
            model = with_random_weights(onnx.load(path), seed=len(path.name))
            stored = {tensor.name for tensor in model.graph.initializer}
            (image,) = (item for item in model.graph.input if item.name not in stored)
            shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
            return model, {image.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}, None

        yield Case("network", path.stem.removeprefix("light_"), make)


def with_random_weights(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Fill in the weights of a network that has only their sizes: drawn so that activations neither grow nor vanish.

    Args:
        model: A network whose weights come from ConstantOfShape.
        seed: Seed of the weights.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, rng = copy.graph, np.random.default_rng(seed)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node if node.op_type == "ConstantOfShape"}
    roles = {name: (node.op_type, place) for node in graph.node for place, name in enumerate(node.input)}
    drawn: dict[str, Array] = {}
    for name, node in made.items():
        shape = tuple(int(size) for size in numpy_helper.to_array(stored[node.input[0]]))
        drawn[name] = _drawn(rng, roles.get(name, ("", 0)), shape)
    for name, tensor in stored.items():  # what is stored of a BatchNormalization is as constant as the rest
        if roles.get(name, ("", 0))[0] == "BatchNormalization":
            drawn[name] = _drawn(rng, roles[name], tuple(tensor.dims))
    gone = {made[name].input[0] for name in made}
    keep = [tensor for tensor in graph.initializer if tensor.name not in gone and tensor.name not in drawn]
    inputs = [item for item in graph.input if item.name not in gone and item.name not in drawn]
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    keep += [numpy_helper.from_array(array, name) for name, array in drawn.items()]
    if copy.ir_version < 4:
        inputs += [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, drawn[name].shape) for name in drawn]
    for field_, entries in ((graph.initializer, keep), (graph.input, inputs), (graph.node, nodes)):
        entries = list(entries)
        copies = [type(entry)() for entry in entries]
        for new, entry in zip(copies, entries, strict=True):
            new.CopyFrom(entry)
        del field_[:]
        field_.extend(copies)
    return copy


def _drawn(rng: np.random.Generator, role: tuple[str, int], shape: tuple[int, ...]) -> Array:
    normal = rng.standard_normal(shape)
    match role:
        case ("Conv", 1):
            normal *= math.sqrt(2.0 / max(1, math.prod(shape[1:])))
        case ("Gemm", 1):
            normal *= math.sqrt(2.0 / max(1, shape[-1]))
        case ("BatchNormalization", 4):
            normal = 0.5 + rng.random(shape)
        case ("BatchNormalization", 1) | ("Mul", _):
            normal = 1.0 + 0.1 * normal
        case _:
            normal *= 0.1
    return normal.astype(np.float32)


# --- what is tried ----------------------------------------------------------------------------------------------------


def conform(case: Case) -> Row:
    """Rewrite a case in every form at full and at low rank.

    A network with several convolutions has all of them rewritten at once, the forms taking turns.
    """
    row, start = Row(case.kind, case.name), time.perf_counter()
    try:
        _conform(case, row)
    except Exception as error:  # a traceback anywhere is what this looks for
        row.faults.append(f"{type(error).__name__}: {error}")
    row.seconds = time.perf_counter() - start
    return row


def _conform(case: Case, row: Row) -> None:
    model, feeds, expected = case.make()
    sites = find_sites(load(model), min_channels=1)
    free = [site for site in sites if site.rewritable]
    row.rewritten = len(free)
    for site in sites:
        if not site.rewritable:
            assert site.refusal is not None
            row.refused[site.refusal.code, site.refusal.reason] += 1
            if not site.refusal.reason.strip():
                row.faults.append(f"'{site.name}' is refused without a reason")
    if not sites:
        row.faults.append("its convolution was not found")
    if not free:
        return
    names = [output.name for output in model.graph.output]
    before = _run(model, names, feeds)
    if expected is not None:
        for name, got, wanted in zip(names, before, expected, strict=True):
            if not np.allclose(got, wanted, *case.tolerance):
                row.faults.append(f"'{name}' of the case itself is not what the suite expects")
    for label, choices, exact in _trials(free):
        after_model = _rewritten(model, choices)
        onnx.checker.check_model(after_model, full_check=True)
        if _declared(model) != _declared(after_model):
            row.faults.append(f"{label}: inputs or outputs are declared otherwise")
        after = _run(after_model, names, feeds)
        row.faults += [f"{label}: {text}" for text in _differences(names, before, after, exact)]


def _trials(sites: Sequence[Site]) -> Iterator[tuple[str, dict[str, Choice], bool]]:
    """Name what is tried: which choice for which site, and whether it is exact."""
    if len(sites) == 1:
        turns = [[form] for form in FORMS if takes(sites[0], form)]
    else:
        turns = [[_turn(site, number) for number, site in enumerate(sites)]]
    for forms in turns:
        for exact in (True, False):
            choices = {
                site.name: Choice(form, _rank(site, form, exact)) for site, form in zip(sites, forms, strict=True)
            }
            yield f"{'/'.join(dict.fromkeys(forms))} at {'full' if exact else 'low'} rank", choices, exact


def _turn(site: Site, number: int) -> Form:
    fitting = [form for form in FORMS if takes(site, form)]
    return fitting[number % len(fitting)]


def _rank(site: Site, form: Form, exact: bool) -> Rank:
    full = full_rank(form, site.in_channels, site.out_channels, site.kernel_shape)
    ranks = tuple(size if exact else max(1, size // 2) for size in full)
    return ranks[0] if len(ranks) == 1 else (ranks[0], ranks[1])


def _rewritten(model: onnx.ModelProto, choices: Mapping[str, Choice]) -> onnx.ModelProto:
    result = onnx_pointwise.rewrite(
        model, plan=Plan(choices), calibration=None, provider="none", check=False, min_channels=1
    )
    from onnx_pointwise.graph.model_io import serialize

    return serialize(result.model)


def _declared(model: onnx.ModelProto) -> Any:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [item.SerializeToString(deterministic=True) for item in model.graph.input if item.name not in stored]
    outputs = [item.SerializeToString(deterministic=True) for item in model.graph.output]
    opsets = [(item.domain, item.version) for item in model.opset_import]
    return inputs, outputs, opsets, model.ir_version


def _run(model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(list(names), dict(feeds))]


def _differences(names: Sequence[str], before: Sequence[Array], after: Sequence[Array], exact: bool) -> Iterator[str]:
    for name, old, new in zip(names, before, after, strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            yield f"'{name}' was {old.dtype}{list(old.shape)}, is {new.dtype}{list(new.shape)}"
        elif exact:
            whole = float(np.linalg.norm(old.astype(np.float64)))
            off = float(np.linalg.norm(new.astype(np.float64) - old.astype(np.float64)))
            if not off <= TOLERANCES.get(old.dtype, 1e-4) * whole:
                yield f"'{name}' is off by {off / whole if whole else off:.3g}"
        elif not np.isfinite(new).all():
            yield f"'{name}' is not finite"


# --- the table --------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Write what became of each case, and how many passed, were refused and failed."""
    lines = [
        "| kind | case | result | convolutions rewritten | why not the others | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        reasons = "; ".join(f"{count} {code}" for (code, _), count in sorted(row.refused.items()))
        told = "; ".join(row.faults) or reasons
        lines.append(f"| {row.kind} | {row.name} | {row.status} | {row.rewritten} | {told} | {row.seconds:.1f} |")
    counts = Counter(row.status for row in rows)
    lines.append("")
    lines.append(", ".join(f"{counts[status]} {status}" for status in ("passed", "refused", "failed")))
    sentences = sorted({key for row in rows for key in row.refused})
    lines += [f"{code}: {sentence}" for code, sentence in sentences]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that were asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only cases of this kind; may be repeated")
    parser.add_argument("--name", default="", help="only cases whose name contains this")
    options = parser.parse_args(arguments)
    rows = []
    for case in cases(options.kind or KINDS, options.name):
        rows.append(conform(case))
        print(f"{rows[-1].status:8} {case.kind} {case.name} {rows[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    if not rows:
        print("No case of that kind and name holds a convolution.", file=sys.stderr)
        return 2
    print(table(rows))
    return 1 if any(row.status == "failed" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
