"""Where example inputs come from: files, readers, preprocessing, synthetic images.

It does not know what they are used for.
"""

from onnx_pointwise.examples.calibration import Calibration, CalibrationSource, calibrate, calibration_path, read_npz
from onnx_pointwise.examples.preprocessing import PRESETS, ChannelOrder, Layout, Preprocessing, preprocessing_of

__all__ = [
    "PRESETS",
    "Calibration",
    "CalibrationSource",
    "ChannelOrder",
    "Layout",
    "Preprocessing",
    "calibrate",
    "calibration_path",
    "preprocessing_of",
    "read_npz",
]
