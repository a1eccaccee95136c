"""The charts of what has changed: intervals, queries that gained or lost, and how far a threshold can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorry.evaluation.intervals import Change
from lorry.report.drawing import BAD, BASE, GOOD, INK, LINE, PAPER, TUNED, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def interval_chart(changes: Mapping[str, Change]) -> str:
    """Return each change as a dot in its 95 % interval, green or red where the interval excludes 0; "" without any.

    Args:
        changes: By the title of the row, the first one on top.
    """
    if not changes:
        return ""

    def draw_intervals(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, lw=0.9)
        for row, found in enumerate(changes.values()):
            colour = GOOD if found.low > 0 else BAD if found.high < 0 else BASE
            axes.plot([found.low, found.high], [row, row], color=colour, lw=2.5, solid_capstyle="butt")
            axes.plot([found.change], [row], color=colour, marker="o", ms=7, mec=PAPER, mew=1)
        axes.set_yticks(range(len(changes)), list(changes))
        axes.set_ylim(len(changes) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("change, tuned minus base")
        axes.locator_params(axis="x", nbins=5)

    said = "; ".join(
        f"{name} {found.change:+.3f}, {found.low:+.3f} to {found.high:+.3f}" for name, found in changes.items()
    )
    return svg(draw_intervals, 0.8 + 0.3 * len(changes), f"Changes with their 95% intervals: {said}")


def outcome_chart(outcomes: Mapping[str, Mapping[str, int]]) -> str:
    """Return for each metric how many queries lost, stayed as they were, and won; "" without any.

    Args:
        outcomes: `wins`, `ties` and `losses` by the title of the metric.
    """
    if not outcomes:
        return ""
    parts = (("losses", "worse", BAD, PAPER), ("ties", "as before", LINE, INK), ("wins", "better", GOOD, PAPER))

    def draw_outcomes(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, found in enumerate(outcomes.values()):
            all_queries, left = max(sum(found[name] for name, *_ in parts), 1), 0
            for name, _, colour, ink in parts:
                axes.barh(row, found[name], left=left, color=colour, height=0.62)
                if found[name] > 0.08 * all_queries:
                    middle = left + found[name] / 2
                    axes.text(middle, row, f"{found[name]:,}", color=ink, ha="center", va="center")
                left += found[name]
        axes.set_yticks(range(len(outcomes)), list(outcomes))
        axes.set_ylim(len(outcomes) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("queries")
        handles = [axes.plot([], [], color=colour, lw=5)[0] for _, _, colour, _ in parts]
        figure.legend(handles, [title for _, title, _, _ in parts], loc="outside upper right", ncols=3)

    said = "; ".join(
        f"{name}: {found['wins']} better, {found['ties']} as before, {found['losses']} worse"
        for name, found in outcomes.items()
    )
    return svg(draw_outcomes, 1.1 + 0.36 * len(outcomes), f"Queries that changed: {said}")


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> str:
    """Return the share of relevant pairs against the predicted one; the larger a dot, the more pairs; "" without any.

    Args:
        bins: Of the predicted share, with `predicted`, `observed` and `pairs`.
    """
    if not bins:
        return ""
    most = max(found["pairs"] for found in bins)

    def draw_reliability(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
        predicted, observed = ([found[name] for found in bins] for name in ("predicted", "observed"))
        axes.plot(predicted, observed, color=TUNED, lw=1.2)
        sizes = [20 + 130 * found["pairs"] / most for found in bins]
        axes.scatter(predicted, observed, s=sizes, color=TUNED, edgecolors=PAPER, linewidths=1, zorder=3)
        axes.set(
            xlabel="predicted share of relevant pairs", ylabel="true share", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04)
        )

    said = ", ".join(f"{found['predicted']:.2f} was {found['observed']:.2f}" for found in bins)
    return svg(draw_reliability, 3.0, f"Predicted share of relevant pairs against the true one: {said}")
