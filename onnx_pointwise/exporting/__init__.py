"""From Keras and PyTorch to ONNX, one file a step, in this order, each held against what it was made from.

`sources` opens a file, folder or function; `trace` makes something to convert of it; `convert` calls tf2onnx; `names`
gives nodes and weights the names of their layers; `check` holds the result against Keras; `summary` says what became
of each layer; `export` does all of it. `runtime` imports TensorFlow, late. `torch` does the same for programs that
PyTorch has exported. `foreign` tells what has to be converted. It knows nothing of convolutions that may be rewritten.
"""

from onnx_pointwise.exporting.export import export
from onnx_pointwise.exporting.foreign import exported, is_foreign
from onnx_pointwise.exporting.runtime import ExportError, runtime

__all__ = ["ExportError", "export", "exported", "is_foreign", "runtime"]
