"""The report's charts as inline SVG.

Colours are CSS variables of the page, so that one chart works in light and dark mode, and text stays text. matplotlib
is used without pyplot: no global state, no display.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib draws in placeholder colours; the page gets the CSS colours.
_COLOURS = {
    "#010101": "currentColor",
    "#020202": "var(--line)",
    "#030303": "var(--base)",
    "#040404": "var(--tuned)",
    "#050505": "var(--paper)",
}
_INK, _LINE, _BASE, _TUNED, _PAPER = _COLOURS
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
_MAX_POINTS = 500


def loss_curve(log: Sequence[Mapping[str, Any]]) -> str:
    """Return the training and evaluation loss over the steps; "" where nothing was logged."""
    train_step, train_loss = _series(log, "loss")
    eval_step, eval_loss = _series(log, "eval_loss")
    if not len(train_step) and not len(eval_step):
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        marker = "o" if len(train_step) < 20 else ""
        axes.plot(*_thinned(train_step, train_loss), color=_TUNED, lw=1.4, marker=marker, ms=3, label="training")
        if len(eval_step):
            axes.plot(eval_step, eval_loss, color=_BASE, lw=1.4, ls="--", marker="o", ms=4, label="evaluation")
        axes.legend()
        axes.set(xlabel="step", ylabel="loss")

    return _svg(draw, height=2.7)


def metric_curve(log: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Return the change of each metric since the first evaluation; "" with fewer than two evaluations.

    Args:
        log: The lines of `training.jsonl`.
        names: Titles of the metrics to draw, by metric.
    """
    curves = {title: _series(log, name) for name, title in names.items()}
    curves = {title: curve for title, curve in curves.items() if len(curve[0]) > 1}
    if not curves:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(0, color=_INK, lw=0.8)
        styles = zip(("-", "--", ":"), (_TUNED, _BASE, _INK), strict=True)
        for (title, (step, value)), (dashes, colour) in zip(curves.items(), styles, strict=False):
            axes.plot(step, value - value[0], color=colour, ls=dashes, lw=1.4, marker="o", ms=4, label=title)
        axes.legend()
        axes.set(xlabel="step", ylabel="change")

    return _svg(draw, height=2.7)


def similarity_by_label(label_names: Sequence[str], label: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> str:
    """Return the spread of the cosine similarities for each label, under both models.

    A thin line runs from the 5th to the 95th percentile, a thick one from the 25th to the 75th, the dot is the median.
    Labels with fewer than 0.5% of the pairs are left out.

    Args:
        label_names: Names of the labels, best first.
        label: Index into `label_names` of each pair, [N].
        base: Similarity under the base model, [N].
        tuned: Similarity under the tuned model, [N].
    """
    pairs = np.bincount(label, minlength=len(label_names))
    shown = np.flatnonzero((pairs > 0) & (pairs >= len(label) / 200)).tolist()

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, index in enumerate(shown):
            for score, colour, shift in ((base, _BASE, -0.16), (tuned, _TUNED, 0.16)):
                _spread(axes, score[label == index], row + shift, colour)
        axes.set_yticks(range(len(shown)), [f"{_short(label_names[index])}  ({pairs[index]:,})" for index in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("cosine similarity of query and product")
        handles = [axes.plot([], [], color=colour, lw=5)[0] for colour in (_BASE, _TUNED)]
        figure.legend(handles, ["base", "tuned"], loc="outside upper right", ncols=2)

    return _svg(draw, height=1.1 + 0.36 * len(shown))


def _spread(axes: Axes, score: np.ndarray, height: float, colour: str) -> None:
    low, lower, median, upper, high = np.percentile(score, (5, 25, 50, 75, 95))
    axes.plot([low, high], [height, height], color=colour, lw=1, solid_capstyle="butt")
    axes.plot([lower, upper], [height, height], color=colour, lw=5, solid_capstyle="butt")
    axes.plot([median], [height], color=colour, marker="o", ms=6, mec=_PAPER, mew=1)


def _series(log: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[name]) for line in log if isinstance(line.get(name), int | float)]
    step, value = np.array(points, dtype=float).reshape(-1, 2).T
    return step, value


def _thinned(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbours down to `_MAX_POINTS`, so that the page of a long run stays small."""
    parts = min(len(step), _MAX_POINTS)
    if parts == 0:
        return step, value
    mean = [
        (s.mean(), v.mean()) for s, v in zip(np.array_split(step, parts), np.array_split(value, parts), strict=True)
    ]
    thin_step, thin_value = np.array(mean).T
    return thin_step, thin_value


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _svg(draw: Callable[[Figure], None], height: float) -> str:
    """Return what `draw` puts on a figure of 4.6 by `height` inches, as an element to place in the page."""
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
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="[^"]*_\d+"', "", svg)  # names like axes_1, the same in every chart
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    for placeholder, colour in _COLOURS.items():
        svg = svg.replace(placeholder, colour)
    return svg.strip()
