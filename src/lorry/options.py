"""How a dataclass becomes options of the command line, and how their values are read and checked.

A field made with `option` carries its help text and its bounds. Values arrive as strings, from the command line as from
SageMaker's `hyperparameters.json`, and are read by `from_strings`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from typing import Any, TypeVar

from lorry.errors import UserError, nearest

T = TypeVar("T")

LONGEST = 60  # characters of a value that are shown


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    switch: bool = False,
    repeatable: bool = False,
) -> Any:
    """Return a dataclass field that carries its own help text and bounds.

    A `switch` may stand without a value; the values of a `repeatable` one are joined by commas.
    """
    bounds = {"choices": choices, "minimum": minimum, "maximum": maximum, "above": above}
    return field(default=default, metadata={"help": text, **bounds, "switch": switch, "repeatable": repeatable})


def add_options(parser: argparse._ActionsContainer, cls: type, wanted: Collection[str] = ()) -> None:
    """Add an option to `parser` for every field of the dataclass `cls`; values stay strings (see `from_strings`).

    Args:
        parser: The command's parser, or a group of it.
        cls: `TrainConfig`, say.
        wanted: Only these fields; empty: all.
    """
    for item in dataclasses.fields(cls):
        if wanted and item.name not in wanted:
            continue
        flags = dict.fromkeys((f"--{item.name}", f"--{item.name.replace('_', '-')}"))
        default = str(item.default).lower() if isinstance(item.default, bool) else item.default
        shown = "none" if default in ("", None) else default
        choices = item.metadata["choices"] or (("true", "false") if isinstance(item.default, bool) else ())
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if item.metadata["switch"] else {}
        repeatable: dict[str, Any] = {"action": _Joined} if item.metadata["repeatable"] else {}
        parser.add_argument(
            *flags,
            dest=item.name,
            default=argparse.SUPPRESS,
            metavar="|".join(choices) or _kind(item).upper(),
            help=f"{item.metadata['help']} (default: {shown})".replace("%", "%%"),
            **switch,
            **repeatable,
        )


class _Joined(argparse.Action):
    """Joins the values of an option that is given several times by commas."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def from_strings(cls: type[T], values: Mapping[str, str]) -> T:
    """Build the dataclass `cls` from strings, as they come from a command line or `hyperparameters.json`.

    Raises:
        UserError: A name is unknown (the nearest known one is given), or a value is not of its kind or out of bounds.
    """
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    read: dict[str, Any] = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in known:
            guess = nearest(name, known)
            hint = f"Did you mean {guess}?" if guess else "`lorry train --help` lists them."
            raise UserError(f"unknown hyperparameter {given}", hint)
        read[name] = _read(known[name], str(value).strip())
    return cls(**read)


def as_dict(config: Any) -> dict[str, Any]:
    """Return the config as plain values, in the order of its fields."""
    return dataclasses.asdict(config)


def _kind(item: dataclasses.Field[Any]) -> str:
    return str(item.type).removesuffix(" | None")


def _read(item: dataclasses.Field[Any], text: str) -> Any:
    kind = _kind(item)
    shown = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    _check_utf8(item.name, text)
    if text == "" and (kind == "str" or "None" in str(item.type)):
        return item.default if kind == "str" else None
    try:
        value = READERS[kind](text)
    except (ValueError, OverflowError):
        wanted = {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
        raise UserError(f"{item.name} is {shown!r}", f"Give {wanted}.") from None
    rules = item.metadata
    if rules["choices"] and value not in rules["choices"]:
        raise UserError(f"{item.name} is {shown!r}", f"Give one of: {', '.join(rules['choices'])}.")
    if rules["minimum"] is not None and not value >= rules["minimum"]:
        raise UserError(f"{item.name} is {shown}", f"Give {rules['minimum']} or more.")
    if rules["above"] is not None and not value > rules["above"]:
        raise UserError(f"{item.name} is {shown}", f"Give more than {rules['above']}.")
    if rules["maximum"] is not None and not value <= rules["maximum"]:
        raise UserError(f"{item.name} is {shown}", f"Give {rules['maximum']} or less.")
    if kind == "float" and not math.isfinite(value):
        raise UserError(f"{item.name} is {shown}", "Give a finite number.")
    return value


def _check_utf8(name: str, text: str) -> None:
    """Refuse what cannot be written after the run: every value goes into `lorry.json` and the report."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        part = text[max(0, error.start - 30) : error.start + 30]
        raise UserError(f"{name} is not UTF-8: {part!r}", "Rename the file or folder, or write it in UTF-8.") from None


def _int(text: str) -> int:
    number = float(text)  # SageMaker and shells also write 8.0 and 1e3
    if number != int(number):
        raise ValueError(text)
    return int(number)


def _bool(text: str) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]


READERS: dict[str, Callable[[str], Any]] = {"int": _int, "float": float, "bool": _bool, "str": str}
