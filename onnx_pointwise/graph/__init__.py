"""ONNX only: read and write, sites, costs, the plan document, surgery.

It never runs a network.
"""

from onnx_pointwise.graph.constants import constant
from onnx_pointwise.graph.cost import ModelCost, SiteCost, competing, dense_cost, model_cost, rewritten_cost
from onnx_pointwise.graph.files import (
    Named,
    atomic_folder,
    require_apart,
    require_writable,
    staged_text,
    write_text,
)
from onnx_pointwise.graph.freeze import frozen, overridable
from onnx_pointwise.graph.functions import inlined
from onnx_pointwise.graph.map_types import holds_map
from onnx_pointwise.graph.model_io import (
    Detached,
    ModelSource,
    as_model,
    file_bytes,
    files_of,
    load,
    model_bytes,
    named_after,
    origin,
    quiet,
    runtime_source,
    save,
    serialize,
    staged,
)
from onnx_pointwise.graph.naming import GAP, full_name
from onnx_pointwise.graph.noise import random_nodes, still, stilled
from onnx_pointwise.graph.pieces import ConvPiece, laid_out, piece_count, pieces, takes, whole
from onnx_pointwise.graph.plan import Choice, Plan, make_choice, require_sites
from onnx_pointwise.graph.shapes import (
    ASSUMED_SIZES,
    ResolvedShapes,
    Shape,
    another_size,
    concrete_inputs,
    other_sizes,
    runtime_inputs,
)
from onnx_pointwise.graph.sites import MIN_CHANNELS, Refusal, Site, find_sites
from onnx_pointwise.graph.statistics import running_statistics
from onnx_pointwise.graph.surgery import BottleneckPass, Replacement, corrected, node_attributes, replacement
from onnx_pointwise.graph.wire import subgraphs_of

__all__ = [
    "ASSUMED_SIZES",
    "GAP",
    "MIN_CHANNELS",
    "BottleneckPass",
    "Choice",
    "ConvPiece",
    "Detached",
    "ModelCost",
    "ModelSource",
    "Named",
    "Plan",
    "Refusal",
    "Replacement",
    "ResolvedShapes",
    "Shape",
    "Site",
    "SiteCost",
    "another_size",
    "as_model",
    "atomic_folder",
    "competing",
    "concrete_inputs",
    "constant",
    "corrected",
    "dense_cost",
    "file_bytes",
    "files_of",
    "find_sites",
    "frozen",
    "full_name",
    "holds_map",
    "inlined",
    "laid_out",
    "load",
    "make_choice",
    "model_bytes",
    "model_cost",
    "named_after",
    "node_attributes",
    "origin",
    "other_sizes",
    "overridable",
    "piece_count",
    "pieces",
    "quiet",
    "random_nodes",
    "replacement",
    "require_apart",
    "require_sites",
    "require_writable",
    "rewritten_cost",
    "running_statistics",
    "runtime_inputs",
    "runtime_source",
    "save",
    "serialize",
    "staged",
    "staged_text",
    "still",
    "stilled",
    "subgraphs_of",
    "takes",
    "whole",
    "write_text",
]
