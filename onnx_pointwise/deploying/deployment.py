"""A deployment: what is made of a float network before it runs. Everything that is timed or judged goes through it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.deploying.quantizer import quantized, quantizer_settings
from onnx_pointwise.errors import ModelError, PlanError
from onnx_pointwise.graph import find_sites, load, named_after, origin, save
from onnx_pointwise.runtime import input_specs, sentence
from onnx_pointwise.scratch import ScratchFolder

Array = NDArray[Any]

Precision = Literal["float32", "float16", "int8"]
_QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
# Settings of the quantizer that hold names of nodes or tensors.
_NAMING = {"nodes_to_quantize", "nodes_to_exclude", "TensorQuantOverrides"}
_HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Deployment:
    """The precision that a network is to run in.

    Attributes:
        precision: ``int8`` or ``float16``; ``float32`` leaves a float32 network as it is, None leaves any.
        settings: Settings of ONNX Runtime's quantizer for int8, by its own names.
    """

    precision: Precision | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.settings and self.precision != "int8":
            raise PlanError("Settings of the quantizer are for int8 alone: --deploy int8, or leave them out.")
        object.__setattr__(self, "settings", quantizer_settings(self.settings))

    @property
    def changes(self) -> bool:
        """Whether another network runs than the one that was given."""
        return self.precision in ("int8", "float16")

    @property
    def takes_examples(self) -> bool:
        """Whether example inputs are needed: int8 takes its ranges from them."""
        return self.precision == "int8"

    @property
    def key(self) -> str:
        """What of it a latency depends on; empty where networks run as they are."""
        told = sorted((name, str(value)) for name, value in self.settings.items())
        return f"{self.precision} {told}" if self.changes else ""

    def nameless(self) -> Deployment:
        """The same without settings that name nodes or tensors of one network: what stands for a part has others."""
        kept = {name: value for name, value in self.settings.items() if name not in _NAMING}
        return replace(self, settings=kept)

    def require(self, model: ir.Model) -> None:
        """See that it can be done to a network.

        Raises:
            ModelError: The network is quantised already, or computes in a half precision that it would have to leave.
        """
        if self.precision is None:
            return
        where = origin(model) or "the model in memory"
        node = next((node for node in model.graph.all_nodes() if _is_quantised(node)), None)
        if node is not None and self.changes:
            raise ModelError(
                f"{where}: node '{node.name}' ({node.op_type}) is quantised already; give the float network that it "
                f"was made from, or leave out --deploy {self.precision}."
            )
        half = next((str(value.name) for value in model.graph.initializers.values() if value.dtype in _HALF), None)
        if half is not None and self.precision != "float16":
            raise ModelError(
                f"{where}: '{half}' is kept in half precision, and --deploy {self.precision} takes a float32 network; "
                "leave it out, or export the network in float32."
            )

    def require_examples(self, examples: Mapping[str, Array] | None) -> None:
        """See that there are examples where they are needed.

        Raises:
            PlanError: There are none.
        """
        if self.takes_examples and not examples:
            raise PlanError(
                "int8 takes the ranges of activations from example inputs, and there are none: name some with "
                "--calibration, or leave out --deploy int8."
            )

    def made(self, model: ir.Model, examples: Mapping[str, Array] | None = None) -> ir.Model:
        """Make the network that runs; every convolution keeps the name that its site has.

        Args:
            model: A float network; it is left as it is.
            examples: Inputs by name, [N, ...]; int8 takes its ranges from them.

        Returns:
            The network; the very one that was given where nothing changes.

        Raises:
            ModelError: It cannot be converted.
            PlanError: There are no examples to take ranges from.
        """
        if not self.changes:
            return model
        self.require_examples(examples)
        where = origin(model) or "the model in memory"
        with ScratchFolder() as folder, _silence():
            source = folder / "float.onnx"
            save(_named(model), source)
            try:
                proto = self._converted(source, folder / "made.onnx", model, examples or {})
            except Exception as error:  # whatever the runtime's tools raise
                raise ModelError(
                    f"{where}: cannot be converted to {self.precision}: {type(error).__name__}: {sentence(error)}; "
                    f"leave out --deploy {self.precision}."
                ) from error
        return named_after(load(proto), model)

    def _converted(self, source: Path, target: Path, model: ir.Model, examples: Mapping[str, Array]) -> onnx.ModelProto:
        if self.precision == "float16":
            from onnxruntime.transformers.float16 import convert_float_to_float16  # which few jobs need

            half: onnx.ModelProto = convert_float_to_float16(onnx.load(source), keep_io_types=True)
            return half
        quantized(source, target, examples, _batch(model, examples), self.settings)
        return onnx.load(target)


#: Networks run as they are.
AS_IS = Deployment()


def _is_quantised(node: ir.Node) -> bool:
    return node.op_type in _QUANTISED or node.op_type.startswith("QLinear")


def _batch(model: ir.Model, examples: Mapping[str, Array]) -> int:
    """Examples in one run: as many as the inputs declare, one where they leave that open."""
    fixed = [spec.shape[0] for spec in input_specs(model) if spec.name in examples and spec.shape]
    return max([1, *(size for size in fixed if isinstance(size, int))])


def _named(model: ir.Model) -> ir.Model:
    """A copy in which every convolution's node has its site's name: profiles of what is made of it find it by that."""
    copy = model.clone()
    for site in find_sites(copy):
        site.node.name = site.name
    return copy


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the tools' advice out of the log: they warn of what was just done."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
