"""How messages show what a user wrote: on one line, printable, and not too long."""

from __future__ import annotations

from collections.abc import Iterable

MAX_SHOWN = 40  # characters of a value or of a column's name
MAX_NAMES = 20


def quoted(value: str | None) -> str:
    """Return a value in quotation marks; "missing" where there is none."""
    return "missing" if value is None else repr(_cut(value))


def plain(name: str) -> str:
    """Return a name in full; what cannot be printed, such as bytes that are not UTF-8, is escaped."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def short(name: str) -> str:
    """Return the name of a column."""
    return plain(_cut(name))


def listed(names: Iterable[str], nothing: str = "nothing") -> str:
    """Return names separated by commas, at most the first 20; `nothing` where there are none."""
    names = list(names)
    return ", ".join(map(short, names[:MAX_NAMES])) + (", …" if len(names) > MAX_NAMES else "") or nothing


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
