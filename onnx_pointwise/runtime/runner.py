"""A session with its inputs in place, ready to be run again and again: what every measurement here starts from."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph import ModelSource, as_model, origin, overridable
from onnx_pointwise.runtime import providers
from onnx_pointwise.runtime.inputs import Array, feedable, input_specs, random_inputs, require_inputs, split_inputs
from onnx_pointwise.runtime.runtime_errors import sentence
from onnx_pointwise.runtime.shape_inference import input_sizes


def require_positive(**values: float) -> None:
    """Check counts and times.

    Raises:
        ValueError: One of them is not above 0.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}.")


def model_name(source: ModelSource | bytes) -> str:
    """Name a model in a sentence: its path where it has one, or the one that it is a frozen copy of."""
    path = origin(source) if isinstance(source, ir.Model) else source if isinstance(source, str | Path) else None
    return "the model in memory" if path is None else str(path)


def feeds_for(
    source: ModelSource | bytes,
    inputs: Mapping[str, Array] | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
) -> dict[str, Array]:
    """Check given inputs, or draw random ones."""
    if inputs is not None and input_shapes:
        raise InputError("Inputs have their own shapes; give either inputs or input shapes.")
    model = as_model(source)
    specs = input_specs(model)
    if inputs is None:
        feeds = random_inputs(specs, input_sizes(model, input_shapes), seed=seed)
    else:
        feeds = require_inputs(specs, inputs)
    # Sessions hold the weights from here on, and graphs are cyclic: only a collection gives gigabytes back.
    del model
    gc.collect()
    return feedable(feeds)


class Runner:
    """A session with inputs and outputs bound where the provider works on them."""

    def __init__(self, session: ort.InferenceSession, feeds: Mapping[str, Array], provider: str, name: str) -> None:
        self.session = session
        self._binding = session.io_binding()
        self._name = name
        self._arrays = dict(feeds)  # bound host memory must outlive the binding
        place = providers.device_memory(provider)
        self.bound = "host"
        self._device = "cpu", 0
        if place is not None and self._bind_device(*place):
            self.bound = place[0]
        else:
            for key, array in feeds.items():
                self._binding.bind_cpu_input(key, array)
        # Sequences and maps are bound nowhere.
        self._plain = any(not output.type.startswith("tensor(") for output in session.get_outputs())
        for output in session.get_outputs() if not self._plain else ():
            self._binding.bind_output(output.name, *self._device)

    def _bind_device(self, kind: str, index: int) -> bool:
        """Put the inputs into device memory; False where this build of the runtime cannot."""
        try:
            for key, array in self._arrays.items():
                if kind == "webgpu":
                    value = self.session.create_ortvalue_from_shape_and_type(array.shape, array.dtype.type, kind, index)
                    value.update_inplace(array)
                else:
                    value = ort.OrtValue.ortvalue_from_numpy(array, kind, index)
                self._binding.bind_ortvalue_input(key, value)
        except Exception:  # the runtime's exceptions share no base class
            self._binding.clear_binding_inputs()
            return False
        if kind != "webgpu":
            # WebGPU runs return before the device is done, and only reading an output waits for it.
            self._device = kind, index
        return True

    @property
    def plain(self) -> bool:
        """Whether nothing is bound: outputs come as they are made."""
        return self._plain

    def unbind(self) -> None:
        """Run without binding from here on, as beside a network that cannot be bound."""
        self._plain, self.bound = True, "host"

    def run(self) -> float:
        """Run once; give the seconds until the outputs are there.

        Raises:
            ModelError: The network does not run, or does so no more.
        """
        try:
            return self._run()
        except Exception as error:  # the runtime's exceptions share no base class
            raise ModelError(f"{self._name}: the model does not run: {sentence(error)}.") from error

    def _run(self) -> float:
        start = time.perf_counter()
        if self._plain:
            self.session.run(None, self._arrays)
            return time.perf_counter() - start
        try:
            self.session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception:  # the runtime's exceptions share no base class
            # From the second run on, bound outputs must have the rank that the file declares; without binding the
            # runtime takes any, and so do those who deploy such files.
            self.unbind()
            return self._run()
        return time.perf_counter() - start


def one_batch(model: ModelSource | bytes, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Take of given inputs what one run takes: all of them, or as many as the batch that a model fixes.

    Raises:
        InputError: The inputs do not fit the model.
    """
    return split_inputs(input_specs(as_model(model)), inputs, limit=sys.maxsize)[0]


def inputs_that_run(
    model: ir.Model,
    input_shapes: Mapping[str, Sequence[int]],
    given: Mapping[str, Array] | None,
    *,
    provider: str = "cpu",
    seed: int = 0,
) -> dict[str, Array] | None:
    """Choose what a network is timed on: random inputs where it runs on them, else the first item of those given.

    Detectors may fail on random inputs, in which they find nothing.

    Args:
        model: The network.
        input_shapes: Shapes of the random inputs.
        given: Input name to array, [N, ...]; None where there are none.
        provider: Execution provider, as for `providers.open_session`.
        seed: Of the random inputs.

    Returns:
        The inputs; None where random ones do.

    Raises:
        ModelError: The network runs on neither.
        InputError: The inputs given do not fit the network.
    """
    if given is None:
        return None
    specs = input_specs(model)
    first = split_inputs(specs, given, limit=1)[0]
    with providers.session_source(model, provider) as source:
        session = providers.open_session(source, provider)
        name = model_name(model)
        try:
            Runner(session, feeds_for(model, None, input_shapes, seed), provider, name).run()
        except ModelError:
            Runner(session, feeds_for(model, first, None, seed), provider, name).run()
            return feedable(first)
    return None


def open_initializers(model: ir.Model, name: str) -> list[str]:
    """Warn of initializers that a caller may override: the runtime takes them for variables and folds none of them.

    Args:
        model: The model.
        name: What the sentence calls it.

    Returns:
        No sentence, or one.
    """
    names = overridable(model)
    if not names:
        return []
    return [
        f"{name}: {len(names)} initializers are graph inputs too ('{names[0]}'...), so ONNX Runtime takes them for "
        "variables and optimises less; --freeze-initializers makes constants of them, for a fair comparison."
    ]
