"""The results of `throughput.py` as Markdown tables; rounds and contestants may be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import records
from processes import OUT_OF_MEMORY, TIMED_OUT

Figure = Callable[[Mapping[str, float]], float]

NAMES = {
    "lorry": "Lorry",
    "lorry_graphs": "Lorry with cuda_graphs",
    "st": "ST",
    "post": "the blog post's loop",
    "st_flash": "ST with flash-attn",
    "peak": "the matrix products",
}
HEADS = {
    "train": ["training", "pairs per batch", "Lorry, pairs/s", "ST, pairs/s", "speed, Lorry / ST", "memory, Lorry / ST",
              "Lorry, tokens/s", "Lorry, share of peak", "ST, share of peak"],
    "encode": ["encoding", "ST, texts per batch", "Lorry, texts/s", "ST, texts/s", "speed, Lorry / ST"],
    "tokenize": ["tokenising", "ST, pairs per batch", "Lorry, pairs/s", "ST, pairs/s", "speed, Lorry / ST"],
    "first_step": ["start to first step", "pairs per batch", "Lorry, s", "ST, s", "time, Lorry / ST"],
}  # fmt: skip


def tables(record: Mapping[str, Any]) -> str:
    """Return all tables, with date and machine above and the reasons of failures below."""
    parts = [
        f"{records.describe(record)} Rounds: {record['rounds']}. Medians; in brackets the lowest and highest ratio."
    ]
    for task, head in HEADS.items():
        if task in record:
            rows = [Row(item, record["rounds"]) for item in record[task]]
            parts.append(records.markdown(head, [ROWS[task](row) for row in rows]))
            parts += [line for row in rows for line in row.others()]
            parts += [reason for row in rows for reason in row.reasons(task)]
    return "\n\n".join(parts)


class Row:
    """One row: the rounds of one work at one batch size."""

    def __init__(self, item: Mapping[str, Any], rounds_wanted: int) -> None:
        self.item, self.rounds = item, item["rounds"]
        self.failed: Mapping[str, str] = item["failed"]
        self.rounds_wanted = rounds_wanted

    def title(self) -> list[str]:
        """Return the first cells: the work, how many rounds there are if some are missing, and the batch size."""
        missing = len(self.rounds) < self.rounds_wanted
        some = f" ({len(self.rounds)} of {self.rounds_wanted} rounds)" if missing else ""
        return [self.item["work"] + some, str(self.item["batch_size"])]

    def median(self, name: str, figure: Figure, form: str) -> str:
        """Return the median of a contestant's figure, "" if it has none."""
        found = [figure(done[name]) for done in self.rounds if name in done]
        return format(median(found), form) if found else ""

    def result(self, name: str, figure: Figure, form: str) -> str:
        """Return the median of a contestant's figure, and how the contestant failed if it did."""
        shown, reason = self.median(name, figure, form), self.failed.get(name)
        if not reason:
            return shown
        end = reason if reason in (OUT_OF_MEMORY, TIMED_OUT) else "failed"
        rounds = sum(name in done for done in self.rounds)
        return f"{shown} ({rounds} round{'s' * (rounds > 1)}, then {end})" if rounds else end

    def ratio(self, figure: Figure, other: str = "st") -> str:
        """Return the median and range of Lorry's figure divided by another's, over the rounds that have both."""
        ratios = [
            figure(done["lorry"]) / figure(done[other]) for done in self.rounds if {"lorry", other} <= done.keys()
        ]
        return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else ""

    def share(self, name: str) -> str:
        """Return the share of the machine's peak that a contestant's matrix products reached."""
        shares = [
            done[name]["flop"] / done[name]["seconds"] / (done["peak"]["flop"] / done["peak"]["steps"])
            for done in self.rounds
            if {name, "peak"} <= done.keys()
        ]
        return f"{median(shares):.0%}" if shares else ""

    def others(self) -> list[str]:
        """Return a line about each contestant that has no column, if it took part."""
        work, size = self.item["work"], self.item["batch_size"]
        lines = []
        for name in ("lorry_graphs", "post", "st_flash"):
            if name in self.failed or any(name in done for done in self.rounds):
                ratio, title = self.ratio(_speed, name), NAMES[name][0].upper() + NAMES[name][1:]
                line = f"{title}, {work} texts, {size} pairs per batch, pairs/s: {self.result(name, _speed, '.1f')}"
                lines.append(line + (f"; speed, Lorry / {name}: {ratio}." if ratio else "."))
        return lines

    def reasons(self, task: str) -> list[str]:
        """Return a line for each failure that no cell of the table explains."""
        work, size = self.item["work"], self.item["batch_size"]
        return [
            f"Failed ({task}, {work}, {size}): {NAMES[name]}: {reason}"
            for name, reason in self.failed.items()
            if name == "peak" or reason not in (OUT_OF_MEMORY, TIMED_OUT)
        ]


def _training_row(row: Row) -> list[str]:
    return [
        *row.title(),
        row.result("lorry", _speed, ".0f"),
        row.result("st", _speed, ".1f"),
        row.ratio(_speed),
        row.ratio(lambda done: done["peak_memory_bytes"]),
        row.median("lorry", lambda done: done["tokens"] / done["seconds"], ",.0f"),
        row.share("lorry"),
        row.share("st"),
    ]


def _plain_row(row: Row) -> list[str]:
    return [*row.title(), *(row.result(name, _speed, ",.0f") for name in ("lorry", "st")), row.ratio(_speed)]


def _time_row(row: Row) -> list[str]:
    return [*row.title(), *(row.result(name, _seconds, ".1f") for name in ("lorry", "st")), row.ratio(_seconds)]


ROWS = {"train": _training_row, "encode": _plain_row, "tokenize": _plain_row, "first_step": _time_row}


def _speed(done: Mapping[str, float]) -> float:
    return done["pairs"] / done["seconds"]


def _seconds(done: Mapping[str, float]) -> float:
    return done["seconds"]
