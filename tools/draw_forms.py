"""Draw the forms that a convolution may take, as an SVG for the documentation.

    python -m tools.draw_forms docs/forms.svg

Boxes are convolutions, as wide as their kernels are, a depthwise one in stripes; lines between them are feature maps,
as thick as there are many.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

#: Each form: its name, feature maps in front of, between and behind its pieces, and its kernels.
FORMS = (
    ("dense", ("I", "O"), ("kxk",)),
    ("reduce", ("I", "R", "O"), ("1x1", "kxk")),
    ("expand", ("I", "R", "O"), ("kxk", "1x1")),
    ("reduce_expand", ("I", "R₁", "R₂", "O"), ("1x1", "kxk", "1x1")),
    ("vertical", ("I", "R", "O"), ("kx1", "1xk")),
    ("horizontal", ("I", "R", "O"), ("1xk", "kx1")),
    ("depthwise", ("I", "R+", "R+", "O"), ("1x1", "each", "1x1")),
)
_ROW, _TOP, _LEFT, _WIDTH = 64, 20, 150, 720
_SIZES = {"kxk": (64, 44), "1x1": (40, 24), "kx1": (40, 44), "1xk": (64, 24), "each": (64, 44)}
_GAP = 86
# With + more than on either side.
_THICK = {"I": 14, "O": 14, "R": 6, "R₁": 6, "R₂": 6, "R+": 22}
_STYLE = """
text { font: 15px sans-serif; fill: #222; text-anchor: middle; dominant-baseline: central; }
.name { text-anchor: start; font-weight: bold; }
.large { fill: #cfe0f5; stroke: #33598c; } .small { fill: #fbe0b8; stroke: #b8741a; }
.stripe { stroke: #33598c; stroke-opacity: 0.4; } .maps { fill: #b9b9b9; } .count { font-size: 13px; fill: #555; }
@media (prefers-color-scheme: dark) {
text { fill: #eee; } .large { fill: #27476f; } .small { fill: #7a5014; } .maps { fill: #777; } .count { fill: #bbb; }
}
"""


def drawing() -> str:
    """The picture."""
    height = _TOP + _ROW * len(FORMS)
    rows = [_row(number, *form) for number, form in enumerate(FORMS)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" aria-label="A convolution and the forms that it may take">\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(rows) + "\n</svg>\n"
    )


def _row(number: int, name: str, maps: tuple[str, ...], kernels: tuple[str, ...]) -> str:
    """One form: its name, then maps and kernels in turns."""
    middle = _TOP + _ROW * number + _ROW // 2 - 10
    parts = [f'<text class="name" x="8" y="{middle}">{escape(name)}</text>']
    x = _LEFT
    for place, count in enumerate(maps):
        thick = _THICK[count]
        parts.append(f'<rect class="maps" x="{x}" y="{middle - thick / 2:g}" width="{_GAP - 20}" height="{thick}"/>')
        written = escape(count.rstrip("+"))
        parts.append(f'<text class="count" x="{x + (_GAP - 20) / 2:g}" y="{middle - 18}">{written}</text>')
        x += _GAP - 20
        if place < len(kernels):
            wide, high = _SIZES[kernels[place]]
            kind = "small" if kernels[place] == "1x1" else "large"
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{middle - high / 2:g}" width="{wide}" height="{high}" rx="4"/>'
            )
            if kernels[place] == "each":
                places = range(x + wide // 4, x + wide, wide // 4)
                lines = " ".join(f"M{at} {middle - high / 2:g}v{high}" for at in places)
                parts.append(f'<path class="stripe" d="{lines}"/>')
            parts.append(f'<text x="{x + wide / 2:g}" y="{middle}">{_times(kernels[place])}</text>')
            x += wide
    return "\n".join(parts)


def _times(kernel: str) -> str:
    return escape(kernel.replace("each", "kxk").replace("x", "\N{MULTIPLICATION SIGN}"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tools.draw_forms FILE.svg")
    Path(sys.argv[1]).write_text(drawing(), encoding="utf-8")
