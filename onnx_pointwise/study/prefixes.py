"""Sites that see the beginning of what others see.

In a dense block every convolution reads all that the ones before it gave, put one behind the other: what the first
sees of a place are the first channels of what the last sees of it, and its moments a corner of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnx_pointwise.graph import Site


def widest(model: ir.Model, sites: Sequence[Site]) -> dict[object, Site]:
    """Find, for the views of sites, the site whose patches begin with theirs and are longest.

    Args:
        model: The model.
        sites: All its sites, whichever are looked at: what is found must not depend on that.

    Returns:
        By `Site.view`; views that no longer one begins with are left out.
    """
    makers = {str(value.name): node for node in model.graph for value in node.outputs if value.name}
    by_sliding: dict[object, list[tuple[tuple[str, ...], Site]]] = {}
    for site in sites:
        if not site.transposed:
            parts = _parts(makers, site.source, len(site.kernel_shape) + 2)
            by_sliding.setdefault(site.sliding, []).append((parts, site))
    found: dict[object, Site] = {}
    for alike in by_sliding.values():
        longest = sorted(alike, key=lambda one: -len(one[0]))
        for parts, site in alike:
            for longer, other in longest:
                if len(longer) <= len(parts):
                    break
                if longer[: len(parts)] == parts and other.width > site.width:
                    found[site.view] = other
                    break
    return found


def _parts(makers: Mapping[str, ir.Node], name: str, rank: int) -> tuple[str, ...]:
    """Names of the values that a value's channels consist of, in order."""
    node = makers.get(name)
    if node is None or node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
        return (name,)
    axis = node.attributes.get_int("axis", 0)
    if axis not in (1, 1 - rank):
        return (name,)
    return tuple(part for value in node.inputs if value is not None for part in _parts(makers, str(value.name), rank))
