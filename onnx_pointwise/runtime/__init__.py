"""ONNX Runtime only: providers, sessions, shapes by running, segments, timing, profile, memory.

It knows nothing of plans.
"""

from onnx_pointwise.runtime.inputs import UNNAMED, Array, InputSpec, feedable, input_specs, random_inputs, split_inputs
from onnx_pointwise.runtime.machine import Machine, machine
from onnx_pointwise.runtime.memory import PeakMemory, peak_memory
from onnx_pointwise.runtime.non_finite import first_non_finite
from onnx_pointwise.runtime.origin import Origin, origin_of
from onnx_pointwise.runtime.other_providers import Elsewhere, elsewhere
from onnx_pointwise.runtime.outputs import not_compared, output_of, run_outputs
from onnx_pointwise.runtime.profile import Kernel, profile_cost, read_profile
from onnx_pointwise.runtime.profiling import CONVERSIONS, FloatShare, NodeTime, float_shares, node_times
from onnx_pointwise.runtime.providers import (
    AssignedNode,
    ProviderInfo,
    discover,
    ignores_threads,
    installed_providers,
    is_cpu,
    nodes_off_provider,
    open_session,
    provider_info,
    provider_name,
    require,
    session_source,
)
from onnx_pointwise.runtime.runner import Runner, inputs_that_run, model_name, one_batch, open_initializers
from onnx_pointwise.runtime.runtime_errors import sentence
from onnx_pointwise.runtime.segments import (
    MEMORY,
    Piece,
    TwinRun,
    bindable,
    open_waiting,
    reads,
    run_bound,
    run_session,
    site_values,
    tensor_outputs,
    without_shapes,
)
from onnx_pointwise.runtime.shape_inference import input_sizes, resolve
from onnx_pointwise.runtime.timing import NOISY, Latency, LatencyComparison, Verdict, compare, measure

__all__ = [
    "CONVERSIONS",
    "MEMORY",
    "NOISY",
    "UNNAMED",
    "Array",
    "AssignedNode",
    "Elsewhere",
    "FloatShare",
    "InputSpec",
    "Kernel",
    "Latency",
    "LatencyComparison",
    "Machine",
    "NodeTime",
    "Origin",
    "PeakMemory",
    "Piece",
    "ProviderInfo",
    "Runner",
    "TwinRun",
    "Verdict",
    "bindable",
    "compare",
    "discover",
    "elsewhere",
    "feedable",
    "first_non_finite",
    "float_shares",
    "ignores_threads",
    "input_sizes",
    "input_specs",
    "inputs_that_run",
    "installed_providers",
    "is_cpu",
    "machine",
    "measure",
    "model_name",
    "node_times",
    "nodes_off_provider",
    "not_compared",
    "one_batch",
    "open_initializers",
    "open_session",
    "open_waiting",
    "origin_of",
    "output_of",
    "peak_memory",
    "profile_cost",
    "provider_info",
    "provider_name",
    "random_inputs",
    "read_profile",
    "reads",
    "require",
    "resolve",
    "run_bound",
    "run_outputs",
    "run_session",
    "sentence",
    "session_source",
    "site_values",
    "split_inputs",
    "tensor_outputs",
    "without_shapes",
]
