"""What example inputs tell of a network: heads, moments, sensitivities.

It chooses nothing and makes no weights that are handed over.
"""

from onnx_pointwise.study.collect import named_seed, patch_count
from onnx_pointwise.study.effort import Effort
from onnx_pointwise.study.survey import Progress, Rehearsal, Study, study

__all__ = ["Effort", "Progress", "Rehearsal", "Study", "named_seed", "patch_count", "study"]
