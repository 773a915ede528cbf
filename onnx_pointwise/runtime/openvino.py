"""What OpenVINO's execution provider is told, in either of its packages: how many threads, and in which precision.

The package ``onnxruntime-openvino`` is an ONNX Runtime with the provider built in, ``onnxruntime-ep-openvino`` is a
plug-in, which offers devices of its maker alone. Both leave ONNX Runtime's own number of threads aside and take all
processors unless an option says otherwise, so that number becomes one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

#: Short name of the provider.
NAME = "openvino"
#: The package that has it built in.
BUILT_IN_PACKAGE = "onnxruntime-openvino"

_THREADS = "num_of_threads"
# The same in OpenVINO's own words, in the JSON that the option load_config takes.
_OWN_THREADS = "INFERENCE_NUM_THREADS"
# What the provider is documented to take; a plug-in spells out those that it knows.
_OPTIONS = (
    "cache_dir", "context", "device_type", "disable_dynamic_shapes", "enable_opencl_throttling",
    "enable_qdq_optimizer", "layout", "load_config", "model_priority", "num_of_threads", "num_streams", "precision",
    "reshape_input",
)  # fmt: skip


def plugin_options(library: bytes) -> frozenset[str]:
    """Give the options that a plug-in's library knows: its texts hold them, each by itself."""
    return frozenset(name for name in _OPTIONS if re.search(rb"(?<![A-Za-z0-9_])" + name.encode() + rb"\0", library))


def ignores_threads(options: Mapping[str, str]) -> bool:
    """Whether nothing in the options says how many threads to take."""
    return _THREADS not in options and _OWN_THREADS not in options.get("load_config", "")


def with_threads(options: Mapping[str, str], threads: int | None, known: Collection[str] | None) -> dict[str, str]:
    """Make "so many threads" mean that, unless the options say how many themselves.

    Args:
        options: The options given.
        threads: Threads of a session; ``None`` leaves the choice to the provider.
        known: What the provider knows; ``None`` where all of its options are built in.
    """
    if threads is None or not ignores_threads(options) or (known is not None and _THREADS not in known):
        return dict(options)
    return {**options, _THREADS: str(threads)}
