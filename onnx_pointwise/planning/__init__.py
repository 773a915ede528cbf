"""Which site gets which form and rank: budgets, candidates, knapsack, plans held to what they promise.

It makes no weights.
"""

from onnx_pointwise.planning.budget import Budget, Split, choose, hand_made, options_of, plan_of, settle
from onnx_pointwise.planning.candidates import COLUMNS, Resource
from onnx_pointwise.planning.correction import Corrected
from onnx_pointwise.planning.measured import faster, meeting, timed_once
from onnx_pointwise.planning.options import Options, share_out
from onnx_pointwise.planning.repair import repaired
from onnx_pointwise.planning.search import Ladder, Outcome, next_strain

__all__ = [
    "COLUMNS",
    "Budget",
    "Corrected",
    "Ladder",
    "Options",
    "Outcome",
    "Resource",
    "Split",
    "choose",
    "faster",
    "hand_made",
    "meeting",
    "next_strain",
    "options_of",
    "plan_of",
    "repaired",
    "settle",
    "share_out",
    "timed_once",
]
