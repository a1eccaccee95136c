"""What a run leaves in its output folder so that its report can be made again, without its pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorry.data.health import Health, Overlap
from lorry.errors import UserError
from lorry.evaluation.intervals import Change
from lorry.outputs import write_json
from lorry.report.changes import QueryChange
from lorry.report.facts import ReportFacts
from lorry.report.similarities import LabelSpread

STORED = "report.json"
FORMAT = 1
_ELSEWHERE = ("metrics", "log", "differences")  # in metrics.json and training.jsonl


def store_facts(folder: Path, facts: ReportFacts) -> None:
    """Write `report.json`: what the report says beside `metrics.json` and `training.jsonl`.

    Raises:
        OutputError: It cannot be written.
    """
    kept = {name: value for name, value in asdict(facts).items() if name not in _ELSEWHERE}
    write_json(folder / STORED, {"format": FORMAT, **kept})


def load_facts(folder: Path) -> ReportFacts:
    """Return the facts of a finished run from its output folder.

    Raises:
        UserError: The folder holds no finished run, or one of its files is damaged.
    """
    hint = "Give the output_data_dir of a finished run, with metrics.json, training.jsonl and report.json."
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", hint)
    if missing := [name for name in ("metrics.json", STORED, "training.jsonl") if not (folder / name).is_file()]:
        raise UserError(f"{folder} holds no finished run: there is no {' and no '.join(missing)}", hint)
    try:
        metrics, stored = (json.loads((folder / name).read_text("utf-8")) for name in ("metrics.json", STORED))
        lines = (folder / "training.jsonl").read_text("utf-8").splitlines()
        if stored["format"] > FORMAT:
            raise UserError(f"{folder / STORED} was written by a newer version of Lorry", "Update Lorry.")
        return _facts(metrics, stored, [json.loads(line) for line in lines])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the results in {folder} cannot be read: {type(error).__name__} {error}", hint) from None


def _facts(metrics: Mapping[str, Any], stored: Mapping[str, Any], log: list[dict[str, Any]]) -> ReportFacts:
    values = {name: value for name, value in stored.items() if name != "format"}
    values["similarities"] = {
        split: [LabelSpread(**spread) for spread in spreads] for split, spreads in stored["similarities"].items()
    }
    values["health"] = {name: _health(health) for name, health in stored["health"].items()}
    values["changes"] = [QueryChange(**change) for change in stored["changes"]]
    differences = {
        split: {name: Change(**change) for name, change in block["change"].items()}
        for split, block in metrics["splits"].items()
    }
    return ReportFacts(metrics=metrics, log=log, differences=differences, **values)


def _health(stored: Mapping[str, Any]) -> Health:
    overlap = stored["overlap"]
    return Health(**{**stored, "overlap": overlap and Overlap(**overlap)})
