"""The pages of finished runs, made again from their output folders, and several runs side by side (`lorry report`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lorry.errors import UserError
from lorry.evaluation.intervals import Change
from lorry.outputs import check_output_file, write_text
from lorry.report.evidence_charts import interval_chart
from lorry.report.facts import METRIC_TITLES, ReportFacts
from lorry.report.page import write_report
from lorry.report.rendering import render
from lorry.report.stored import load_facts
from lorry.report.verdict import DECIDES, verdict_of, verdict_split

COMPARISON = "comparison.html"
_FOLDERS = {"model_dir", "output_data_dir", "checkpoint_dir"}  # every run has others


def report(folders: Sequence[str], output: str = "") -> Path:
    """Write the page of a run, or a page that compares several, and return its path.

    Args:
        folders: Output folders of finished runs.
        output: The file to write; empty: `report.html` in the folder of the one run, or `comparison.html` here.

    Raises:
        UserError: A folder holds no finished run, or the file cannot be written.
    """
    facts = [load_facts(Path(folder)) for folder in folders]
    default = Path(folders[0]) / "report.html" if len(folders) == 1 else Path(COMPARISON)
    path = Path(output) if output else default
    check_output_file(path, "report.html")
    if len(folders) == 1:
        write_report(path, facts[0])
    else:
        write_text(path, comparison_page(dict(zip(_names(folders), facts, strict=True))))
    return path


def _names(folders: Sequence[str]) -> list[str]:
    """Return a short name for each run: as much of the end of its path as tells it from the others."""
    paths = [Path(folder).resolve().parts for folder in folders]
    most = max(map(len, paths))
    for parts in range(1, most + 1):
        names = ["/".join(path[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run is given twice", "Give different folders.")


def comparison_page(runs: Mapping[str, ReportFacts]) -> str:
    """Return the page, as HTML, that compares runs; these by the names to show."""
    splits = {name: verdict_split(facts.metrics) for name, facts in runs.items()}
    blocks = {name: facts.metrics["splits"][splits[name]] for name, facts in runs.items()}
    metrics = {
        metric: title for metric, title in METRIC_TITLES.items() if all(metric in b["tuned"] for b in blocks.values())
    }
    return render(
        "comparison.html.j2",
        runs=runs,
        splits=splits,
        blocks=blocks,
        verdicts={name: verdict_of(facts) for name, facts in runs.items()},
        metrics=metrics,
        differences={name: facts.differences.get(splits[name], {}) for name, facts in runs.items()},
        best={metric: max(round(block["tuned"][metric], 4) for block in blocks.values()) for metric in metrics},
        chart=Markup(interval_chart(_deciding(runs, splits))),
        options=_options_that_differ(runs),
        apart=_apart(runs, splits),
    )


def _deciding(runs: Mapping[str, ReportFacts], splits: Mapping[str, str]) -> dict[str, Change]:
    found = {name: facts.differences.get(splits[name], {}).get(DECIDES) for name, facts in runs.items()}
    return {name: change for name, change in found.items() if change is not None}


def _options_that_differ(runs: Mapping[str, ReportFacts]) -> dict[str, list[Any]]:
    """Return the values of the options that are not the same in all runs; None where a run has no such option."""
    names = dict.fromkeys(name for facts in runs.values() for name in facts.config)
    values = {name: [facts.config.get(name) for facts in runs.values()] for name in names if name not in _FOLDERS}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _apart(runs: Mapping[str, ReportFacts], splits: Mapping[str, str]) -> list[str]:
    """Return what keeps the figures of the runs from being compared."""

    def differ(of: Mapping[str, str]) -> bool:
        return len({facts.fingerprints.get(of[name], "") for name, facts in runs.items()}) > 1

    said = []
    if len(set(splits.values())) > 1 or differ(splits):
        said.append("The runs were measured on different pairs: their figures cannot be compared with each other.")
    if differ(dict.fromkeys(runs, "base")):
        said.append("The runs started from different base models: their changes have different starting points.")
    return said
