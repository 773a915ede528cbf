"""ONNX only: read and write, sites, costs, the plan document, surgery. It never runs a network."""

from onnx_pointwise.graph.cost import ModelCost, SiteCost, competing, dense_cost, model_cost, rewritten_cost
from onnx_pointwise.graph.freeze import frozen, origin, overridable
from onnx_pointwise.graph.model_io import ModelSource, file_bytes, load, require_writable, runtime_source, save, write_text
from onnx_pointwise.graph.plan import Choice, Plan, make_choice, require_sites
from onnx_pointwise.graph.shapes import ResolvedShapes, Shape, concrete_inputs, resolve, runtime_inputs
from onnx_pointwise.graph.sites import MIN_CHANNELS, Refusal, Site, constant, find_sites
from onnx_pointwise.graph.surgery import BottleneckPass, Replacement, replacement

__all__ = ["BottleneckPass", "Choice", "MIN_CHANNELS", "ModelCost", "ModelSource", "Plan", "Refusal", "Replacement", "ResolvedShapes", "Shape", "Site", "SiteCost", "competing", "concrete_inputs", "constant", "dense_cost", "file_bytes", "find_sites", "frozen", "load", "make_choice", "model_cost", "origin", "overridable", "replacement", "require_sites", "require_writable", "resolve", "rewritten_cost", "runtime_inputs", "runtime_source", "save", "write_text"]
