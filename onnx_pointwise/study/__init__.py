"""What example inputs tell of a network: heads, moments, sensitivities.

It chooses nothing and makes no weights that are handed over.
"""

<<<<<<< HEAD
from onnx_pointwise.study.collect import named_seed, patch_count
from onnx_pointwise.study.survey import Effort, Progress, Rehearsal, Study, study

__all__ = ["Effort", "Progress", "Rehearsal", "Study", "named_seed", "patch_count", "study"]
=======
from onnx_pointwise.study.collect import PATCHES, named_seed, patch_count
from onnx_pointwise.study.gradients import Backward, Forward, Probes, Unsupported, site_outputs
from onnx_pointwise.study.sensitivity import measured_outputs
from onnx_pointwise.study.survey import Progress, Study, few_examples, study, unrefitted
from onnx_pointwise.study.whole import WholeNetwork

__all__ = [
    "PATCHES",
    "Backward",
    "Forward",
    "Probes",
    "Progress",
    "Study",
    "Unsupported",
    "WholeNetwork",
    "few_examples",
    "measured_outputs",
    "named_seed",
    "patch_count",
    "site_outputs",
    "study",
    "unrefitted",
]
>>>>>>> gradients
