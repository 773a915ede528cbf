"""Which site gets which form and rank: budgets, candidates, knapsack, plans held to what they promise. It makes no weights."""

from onnx_pointwise.planning.budget import Budget, NO_BUDGET, Split, choose, hand_made, options_of, settle
from onnx_pointwise.planning.candidates import COLUMNS, Measured, Resource, candidates
from onnx_pointwise.planning.measured import faster, meeting

__all__ = ["Budget", "COLUMNS", "Measured", "NO_BUDGET", "Resource", "Split", "candidates", "choose", "faster", "hand_made", "meeting", "options_of", "settle"]
