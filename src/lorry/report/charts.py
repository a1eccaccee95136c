"""The charts of training: loss and metrics over the steps, and the similarities that it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorry.report.drawing import BASE, INK, LINE, PAPER, TUNED, svg
from lorry.report.similarities import LabelSpread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINTS = 500


def loss_curve(log: Sequence[Mapping[str, Any]]) -> str:
    """Return the training and evaluation loss over the steps; "" where nothing was logged."""
    train_step, train_loss = _series(log, "loss")
    eval_step, eval_loss = _series(log, "eval_loss")
    if not len(train_step) and not len(eval_step):
        return ""

    def draw_losses(figure: Figure) -> None:
        axes = figure.add_subplot()
        marker = "o" if len(train_step) < 20 else ""
        axes.plot(*_thinned(train_step, train_loss), color=TUNED, lw=1.4, marker=marker, ms=3, label="training")
        if len(eval_step):
            marker = "o" if len(eval_step) < 30 else ""
            axes.plot(
                *_thinned(eval_step, eval_loss), color=BASE, lw=1.4, ls="--", marker=marker, ms=4, label="validation"
            )
        axes.legend()
        axes.set(xlabel="step", ylabel="loss")

    return svg(draw_losses, 2.7, "Loss of training and validation over the steps")


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
    epochs = [line["step"] for line in log if "eval_loss" in line and line["step"]]

    def draw_metrics(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(0, color=INK, lw=0.8)
        for step in epochs[:-1] if len(epochs) <= 20 else ():
            axes.axvline(step, color=LINE, lw=1.2)
        styles = zip(("-", "--", ":"), (TUNED, BASE, INK), strict=True)
        for (title, (step, value)), (dashes, colour) in zip(curves.items(), styles, strict=False):
            marker = "o" if len(step) < 30 else ""
            axes.plot(
                *_thinned(step, value - value[0]), color=colour, ls=dashes, lw=1.4, marker=marker, ms=3, label=title
            )
        axes.legend()
        axes.set(xlabel="step", ylabel="change")

    last = ", ".join(f"{title} {value[-1] - value[0]:+.3f}" for title, (_, value) in curves.items())
    return svg(draw_metrics, 2.7, f"Change of metrics over the steps; at the end {last}")


def similarity_by_label(spreads: Sequence[LabelSpread]) -> str:
    """Return the spread of the cosine similarities for each label, under both models; "" without labels.

    A thin line runs from the 5th to the 95th percentile, a thick one from the 25th to the 75th, the dot is the median.
    """
    if not spreads:
        return ""

    def draw_similarities(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, spread in enumerate(spreads):
            for percentiles, colour, shift in ((spread.base, BASE, -0.16), (spread.tuned, TUNED, 0.16)):
                _spread(axes, percentiles, row + shift, colour)
        axes.set_yticks(range(len(spreads)), [f"{_short(spread.label)}  ({spread.pairs:,})" for spread in spreads])
        axes.set_ylim(len(spreads) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("cosine similarity of query and product")
        handles = [axes.plot([], [], color=colour, lw=5)[0] for colour in (BASE, TUNED)]
        figure.legend(handles, ["base", "tuned"], loc="outside upper right", ncols=2)

    medians = ", ".join(f"{spread.label} {spread.base[2]:.2f} and {spread.tuned[2]:.2f}" for spread in spreads)
    label = f"Similarity by label; medians under base and tuned model: {medians}"
    return svg(draw_similarities, 1.1 + 0.36 * len(spreads), label)


def _spread(axes: Axes, percentiles: Sequence[float], height: float, colour: str) -> None:
    low, lower, median, upper, high = percentiles
    axes.plot([low, high], [height, height], color=colour, lw=1, solid_capstyle="butt")
    axes.plot([lower, upper], [height, height], color=colour, lw=5, solid_capstyle="butt")
    axes.plot([median], [height], color=colour, marker="o", ms=6, mec=PAPER, mew=1)


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
