"""What example inputs tell of a network: heads, moments, sensitivities.

It chooses nothing and makes no weights that are handed over.
"""

from onnx_pointwise.study.collect import PATCHES, named_seed, patch_count
from onnx_pointwise.study.survey import Progress, Study, few_examples, study, unrefitted
from onnx_pointwise.study.whole import WholeNetwork

__all__ = [
    "PATCHES",
    "Progress",
    "Study",
    "WholeNetwork",
    "few_examples",
    "named_seed",
    "patch_count",
    "study",
    "unrefitted",
]
