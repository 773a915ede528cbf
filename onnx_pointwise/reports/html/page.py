"""From the JSON of a result to the page: templates, filters, and a policy that lets nothing in from outside.

Names come from a model and are data: everything is escaped, in text, attributes, pictures and embedded JSON, and a
policy within the page keeps any script from running but its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from onnx_pointwise.check import WORDS, shortened
from onnx_pointwise.errors import OutputError
from onnx_pointwise.reports.html import parts
from onnx_pointwise.reports.needed import require_report
from onnx_pointwise.reports.plain import plain
from onnx_pointwise.reports.terminal import figures

#: Results that there is a page for, by the job that made them.
KINDS = ("rewrite", "check", "inspect", "sweep", "many")
# A picture has room for so much of a name; the whole one is in its title and in the table.
_NAME = 26
_OPTION = re.compile(r"(--[a-z][a-z-]*)")
# Where an element is named, and where it is meant.
_NAMED = re.compile(r'(?<= )(?:id="|data-copy="|href="#|xlink:href="#)|url\(#')


def html(document: Mapping[str, Any]) -> str:
    """Make the page of a result; the same document gives the same bytes.

    Args:
        document: The JSON of a rewrite, check, inspection or sweep, or of a rewrite of many models, as ``to_dict`` of a
            result gives it.

    Returns:
        The page.

    Raises:
        OutputError: A package is missing, or the document is none of these.
    """
    require_report()
    job = document.get("origin", {}).get("job")
    if job not in KINDS:
        raise OutputError(f"There is no report for {job!r}, only for results of {', '.join(KINDS)}.")
    script, style = _resource("page.js"), _resource("page.css")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page: str = (
        _environment()
        .get_template(f"{job}.html")
        .render(d=_clean(document), script=script, style=style, allowed=allowed, parts=parts, words=WORDS)
    )
    return page


def _resource(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Any:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": figures.count,
        "size": figures.size,
        "percent": figures.percent,
        "rank": lambda value: figures.rank(tuple(value) if isinstance(value, list) else value),
        "time": _time,
        "sizes": parts.times,
        "three": lambda value: "" if value is None else f"{value:.3g}",
        "data_uri": _data_uri,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "basename": lambda path: str(path).replace("\\", "/").rsplit("/", 1)[-1],
        "short": lambda name: shortened(name, _NAME),
        "inside": _inside,
        "unbroken": _unbroken,
    }
    return made


def _inside(markup: Any, section: str) -> Any:
    """Make the names that a section's elements go by its own, where a page holds several sections of one kind.

    Texts and attributes from models are escaped, so that what looks like an attribute here is one.
    """
    import markupsafe

    return markupsafe.Markup(_NAMED.sub(lambda found: f"{found[0]}{section}-", str(markup)))


def _unbroken(sentence: str) -> Any:
    """Keep options in a sentence on one line each, which browsers break at their dashes."""
    import markupsafe

    return markupsafe.Markup(_OPTION.sub(r'<span class="option">\1</span>', str(markupsafe.escape(sentence))))


def _time(seconds: float) -> str:
    """Milliseconds, or microseconds where those say nothing."""
    return figures.milliseconds(seconds) if seconds >= 1e-3 else f"{figures.three(1e6 * seconds)} µs"


def _data_uri(value: Any) -> str:
    """JSON as an address that a browser saves as a file; base64 holds nothing that needs escaping."""
    text = json.dumps(value, indent=2) + "\n"
    return f"data:application/json;base64,{base64.b64encode(text.encode()).decode()}"


def _clean(value: Any) -> Any:
    """Write out control characters, which no page may hold, in all texts and names."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
