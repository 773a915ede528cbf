"""Which site gets which form and rank: budgets, candidates, knapsack, plans held to what they promise.

It makes no weights.
"""

from onnx_pointwise.planning.budget import NO_BUDGET, Budget, Split, choose, hand_made, options_of, settle
from onnx_pointwise.planning.correction import Corrected
from onnx_pointwise.planning.measured import faster, meeting
from onnx_pointwise.planning.options import Options

__all__ = [
    "NO_BUDGET",
    "Budget",
    "Corrected",
    "Options",
    "Split",
    "choose",
    "faster",
    "hand_made",
    "meeting",
    "options_of",
    "settle",
]
