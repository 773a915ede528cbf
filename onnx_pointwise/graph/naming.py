"""Convolutions by a part of their name, as tables show it and as a person types it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnx_pointwise.errors import PlanError

#: Stands for what is left out of a name.
GAP = "…"
# Names in an error message.
_NAMED = 5


def full_name(text: str, names: Sequence[str]) -> str:
    """Find the name that a part of it stands for.

    Args:
        text: A name, the end of one, or one with ``…`` (or ``...``) for what is left out.
        names: The names that there are.

    Returns:
        The name; the text itself where none is meant.

    Raises:
        PlanError: Several may be meant.
    """
    if text in names:
        return text
    parts = text.replace("...", GAP).split(GAP)
    if len(parts) > 1:
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        found = [name for name in names if pattern.fullmatch(name)]
    else:
        found = [name for name in names if text and name.endswith(text)]
    if len(found) > 1:
        listed = ", ".join(f"'{name}'" for name in found[:_NAMED])
        more = ", ..." if len(found) > _NAMED else ""
        raise PlanError(f"'{text}' may be any of {len(found)} convolutions: {listed}{more}; write more of the name.")
    return found[0] if found else text
