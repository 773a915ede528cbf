"""Where example inputs come from: files, readers, preprocessing, synthetic images. It does not know what they are used for."""

from onnx_pointwise.examples.calibration import Calibration, CalibrationSource, calibrate, read_npz
from onnx_pointwise.examples.preprocessing import ChannelOrder, Layout, PRESETS, Preprocessing, preprocessing_of

__all__ = ["Calibration", "CalibrationSource", "ChannelOrder", "Layout", "PRESETS", "Preprocessing", "calibrate", "preprocessing_of", "read_npz"]
