"""What depends on what: which sites come after which, and which that stay whole have something to make up for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnx_pointwise.graph import Choice, Site
from onnx_pointwise.runtime import reads, site_values

# Nodes that tell how large a value is; of a batch that is smaller they tell something else.
_SIZES = {"Shape", "Size"}


def latest(model: ir.Model, sites: Sequence[Site]) -> dict[str, int]:
    """Number of the last site that each value depends on, by its name; -1 for none."""
    numbers = {name: number for number, site in enumerate(sites) for name in site_values(site)}
    last: dict[str, int] = defaultdict(lambda: -1)
    for node in model.graph:
        above = max((last[name] for name in reads(node)), default=-1)
        for value in node.outputs:
            last[str(value.name)] = max(above, numbers.get(str(value.name), -1))
    return last


def worth_correcting(
    model: ir.Model, sites: Sequence[Site], choices: Mapping[str, Choice], answers: Collection[str]
) -> list[Site]:
    """The sites that are rewritten, and those others that have something to make up for, and where it can be told.

    Args:
        model: The model.
        sites: The sites, in graph order.
        choices: Form and rank of those that are rewritten, by name.
        answers: Names of the values that count; all that the network computes if there are none.

    Returns:
        Of the sites that stay whole those that lie behind a rewritten one and before an answer. What tells a size on
        the way is no obstacle where it lies on the way to a rewritten site, too; else examples could not be run in
        batches of several sizes.
    """
    last = latest(model, [site for site in sites if site.name in choices])
    heard, told = _above(model, answers), _sizes(model)
    known = {size for site in sites if site.name in choices for size in told[site.source]}

    def worth(site: Site) -> bool:
        output = str(site.output.name)
        return last[site.source] >= 0 and told[_beside(site)] <= known and (not answers or output in heard)

    return [site for site in sites if site.name in choices or worth(site)]


def _beside(site: Site) -> str:
    """What a site reads; where its output goes into one sum, that: it depends on what is added, too."""
    users = [node for node, _ in site.output.uses()]
    return str(users[0].outputs[0].name) if len(users) == 1 and users[0].op_type == "Add" else site.source


def _above(model: ir.Model, names: Collection[str]) -> set[str]:
    """Names of values and of all that they depend on."""
    found = set(names)
    for node in reversed(list(model.graph)):
        if any(value.name in found for value in node.outputs):
            found.update(reads(node))
    return found


def _sizes(model: ir.Model) -> dict[str, frozenset[str]]:
    """Which sizes each value depends on, by its name."""
    told: dict[str, frozenset[str]] = defaultdict(frozenset)
    for node in model.graph:
        above = frozenset[str]().union(*(told[name] for name in reads(node)))
        if node.op_type in _SIZES:
            above |= {str(node.outputs[0].name)}
        for value in node.outputs:
            told[str(value.name)] = above
    return told
