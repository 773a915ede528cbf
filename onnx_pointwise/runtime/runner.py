"""A session with its inputs in place, ready to be run again and again: what every measurement here starts from."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph import ModelSource, as_model, concrete_inputs, origin, overridable
from onnx_pointwise.runtime import providers
from onnx_pointwise.runtime.inputs import Array, feedable, input_specs, random_inputs, require_inputs
from onnx_pointwise.runtime.runtime_errors import sentence


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
        feeds = random_inputs(specs, concrete_inputs(model, input_shapes)[0], seed=seed)
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
        for output in session.get_outputs():
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

    def run(self) -> float:
        """Run once; give the seconds until the outputs are there."""
        start = time.perf_counter()
        self.session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return time.perf_counter() - start

    def first_run(self) -> float:
        """Run for the first time, when a model's faults show."""
        try:
            return self.run()
        except Exception as error:  # the runtime's exceptions share no base class
            raise ModelError(f"{self._name}: the model does not run: {sentence(error)}.") from error


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
