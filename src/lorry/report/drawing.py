"""How the report's charts are drawn: inline SVG by matplotlib.

Colours are CSS variables of the page, so that one chart works in light and dark mode, and text stays text. matplotlib
is used without pyplot: no global state, no display.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from markupsafe import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib draws in placeholder colours; the page gets the CSS colours.
_COLOURS = {
    "#010101": "currentColor",
    "#020202": "var(--line)",
    "#030303": "var(--base)",
    "#040404": "var(--tuned)",
    "#050505": "var(--paper)",
    "#060606": "var(--good)",
    "#070707": "var(--bad)",
}
INK, LINE, BASE, TUNED, PAPER, GOOD, BAD = _COLOURS
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def svg(draw: Callable[[Figure], None], height: float, label: str) -> str:
    """Return what `draw` puts on a figure of 4.6 by `height` inches, as an element to place in the page.

    Args:
        draw: Draws on the figure.
        height: In inches.
        label: What the picture shows, for those who do not see it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    salt = draw.__qualname__  # ids of clip paths must differ between the charts of a page
    out = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs missing from matplotlib's font: the browser has them
        figure = Figure(figsize=(4.6, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r' id="[^"]*_\d+"', "", drawn)  # names like axes_1, the same in every chart
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawn, count=2)
    for placeholder, colour in _COLOURS.items():
        drawn = drawn.replace(placeholder, colour)
    return drawn.strip().replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
