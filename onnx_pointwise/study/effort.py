"""How much may be spent on looking at a network and on fitting its weights."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_pointwise.runtime import MEMORY
from onnx_pointwise.study.collect import PATCHES


@dataclass(frozen=True)
class Effort:
    """How much may be spent on looking and fitting.

    Attributes:
        patch_limit: Patches of a site to look at, about.
        memory: Bytes of activations or moments to hold in memory.
        seed: Seed of everything that is drawn.
        threads: Threads of the runtime, and pieces of the algebra to work on at a time; as many as there are cores if
            None.
    """

    patch_limit: int = PATCHES
    memory: int = MEMORY
    seed: int = 0
    threads: int | None = None


DEFAULT_EFFORT = Effort()
