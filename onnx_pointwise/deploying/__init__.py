"""What becomes of a network when it is deployed: as it is, in float16, or in int8 with ranges from examples.

It knows nothing of sites that are rewritten, nor what time or accuracy is.
"""

from onnx_pointwise.deploying.deployment import AS_IS, Deployment, Precision
from onnx_pointwise.deploying.quantizer import quantizer_settings

__all__ = ["AS_IS", "Deployment", "Precision", "quantizer_settings"]
