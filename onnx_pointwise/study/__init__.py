"""What example inputs tell of a network: heads, moments, sensitivities.

It chooses nothing and makes no weights that are handed over.
"""

from onnx_pointwise.study.collect import declared_batch, named_seed, patch_count
from onnx_pointwise.study.distilled import distilled
from onnx_pointwise.study.effort import Effort
from onnx_pointwise.study.heads import Head, Heads, Kind, Said, find_heads
from onnx_pointwise.study.sensitivity import Sensitivity
from onnx_pointwise.study.survey import Rehearsal, Study, study
from onnx_pointwise.study.telling import telling
from onnx_pointwise.study.whole import answers

__all__ = [
    "Effort",
    "Head",
    "Heads",
    "Kind",
    "Rehearsal",
    "Said",
    "Sensitivity",
    "Study",
    "answers",
    "declared_batch",
    "distilled",
    "find_heads",
    "named_seed",
    "patch_count",
    "study",
    "telling",
]
