"""What example inputs tell of a network: heads, moments, sensitivities. It chooses nothing."""

from onnx_pointwise.study.collect import PATCHES, named_seed, patch_count
from onnx_pointwise.study.study import Options, Progress, Study, Weights, few_examples, make_weights, options, share_out, study, unrefitted
from onnx_pointwise.study.whole import WholeNetwork

__all__ = ["Options", "PATCHES", "Progress", "Study", "Weights", "WholeNetwork", "few_examples", "make_weights", "named_seed", "options", "patch_count", "share_out", "study", "unrefitted"]
