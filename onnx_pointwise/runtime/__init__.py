"""ONNX Runtime only: providers, sessions, shapes by running, segments, benchmark, profile, memory. It knows nothing of plans."""

from onnx_pointwise.runtime.benchmark import Benchmark, LatencyComparison, Verdict, bench, compare, measure
from onnx_pointwise.runtime.inputs import Array, InputSpec, as_model, feedable, input_specs, random_inputs, split_inputs
from onnx_pointwise.runtime.machine import Machine, cores, machine
from onnx_pointwise.runtime.profiling import NodeTime, node_times
from onnx_pointwise.runtime.providers import AssignedNode, ProviderInfo, discover, open_session, provider_info, provider_name, require
from onnx_pointwise.runtime.runner import Runner, model_name, open_initializers
from onnx_pointwise.runtime.runtime_errors import sentence
from onnx_pointwise.runtime.segments import Piece, TwinRun, open_waiting, reads, run_session, site_values, without_shapes

__all__ = ["Array", "AssignedNode", "Benchmark", "InputSpec", "LatencyComparison", "Machine", "NodeTime", "Piece", "ProviderInfo", "Runner", "TwinRun", "Verdict", "as_model", "bench", "compare", "cores", "discover", "feedable", "input_specs", "machine", "measure", "model_name", "node_times", "open_initializers", "open_session", "open_waiting", "provider_info", "provider_name", "random_inputs", "reads", "require", "run_session", "sentence", "site_values", "split_inputs", "without_shapes"]
