"""What every benchmark records: its results, when they were made, and on which machine."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch


def new_record(precision: str) -> dict[str, Any]:
    """Return an empty record of a benchmark that runs now, here and in this precision."""
    return {"date": date.today().isoformat(), "machine": machine(precision)}


def machine(precision: str) -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def describe(record: Mapping[str, Any]) -> str:
    """Return date and machine of a record in a line."""
    about, day = record["machine"], record["date"]
    if about is None:
        return f"{day}, machine not recorded."
    where = about.get("gpu") or f"{about['cpu']}, {about['threads']} threads"
    return f"{day}, {where}, torch {about['torch']}, {about['precision']}."


def save(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as JSON; an interruption leaves the whole old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    beside.replace(path)


def load(path: str | Path) -> dict[str, Any]:
    """Read a record."""
    record: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    return record


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table: the first column left-aligned, the others right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
