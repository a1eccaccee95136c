"""Find out which column is what, and what each table of a channel holds, from the names of the columns.

A table with labels holds judgements; one with queries and their ids, queries; one with product texts and their ids,
products. Tables of one kind are read as one, even if their columns have different names. Other tables are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from lorry.config import PairOptions
from lorry.data.sources import Source
from lorry.errors import UserError, nearest

# Names by which a column is recognised, the most reliable first. Case, blanks and the part before a dot are ignored.
# The text is the title alone: longer texts make training several times slower, so they must be asked for.
NAMES = {
    "query": ("query", "search_term", "search_query", "query_text"),
    "text": ("product_title", "product_name", "title", "name", "product_text", "text"),
    "label": ("esci_label", "relevance_label", "relevance", "label", "grade"),
    "query_id": ("query_id",),
    "product_id": ("product_id", "product_uid", "item_id", "asin"),
    "locale": ("product_locale", "locale"),
    "small_version": ("small_version",),
    "split": ("split",),
}


@dataclass(frozen=True)
class SourceSchema:
    """A source and which of its columns is what.

    Attributes:
        source: The file or data set.
        columns: The columns to read, by what they are ("query", "label", …); a text may come from several columns.
    """

    source: Source
    columns: dict[str, list[str]]


@dataclass(frozen=True)
class Schema:
    """What the sources of a channel hold; `queries` and `products` are empty where the judgements include them."""

    judgements: list[SourceSchema]
    queries: list[SourceSchema]
    products: list[SourceSchema]

    @property
    def tables(self) -> tuple[list[SourceSchema], list[SourceSchema], list[SourceSchema]]:
        """Return the three tables."""
        return self.judgements, self.queries, self.products


def find_schema(location: str, sources: Sequence[Source], options: PairOptions) -> Schema:
    """Look at the columns of every source of a channel and find out what it holds.

    Args:
        location: The channel, for errors.
        sources: Its files, data set or splits.
        options: Names columns that are not recognised.

    Raises:
        UserError: A column that `options` names does not exist; no query, text or label is recognised; or a table that
            the judgements refer to is missing.
    """
    columns = [source.column_names() for source in sources]
    _check_named_columns(location, list(dict.fromkeys(name for names in columns for name in names)), options)
    schema = Schema([], [], [])
    seen: dict[str, list[str]] = {}
    for source, names in zip(sources, columns, strict=True):
        found = _recognise(names, options)
        seen |= found
        if "label" in found and found.keys() & {"query", "query_id"} and found.keys() & {"text", "product_id"}:
            unneeded = {"query_id"} if "query" in found else set()
            unneeded |= {"product_id"} if "text" in found else set()
            schema.judgements.append(SourceSchema(source, {key: found[key] for key in found if key not in unneeded}))
        elif source.split:  # a split that is to be read must be one of judgements
            _refuse(
                location, {source.name: names}, found, ", or give the split train alone (FOLDER/train, ?split=train)"
            )
        elif {"query", "query_id"} <= found.keys():
            schema.queries.append(SourceSchema(source, {key: found[key] for key in ("query", "query_id")}))
        elif "text" in found and (product_id := found.get("product_id") or _recognise_id(names)):
            locale = {"locale": found["locale"]} if "locale" in found else {}
            schema.products.append(SourceSchema(source, {"text": found["text"], "product_id": product_id, **locale}))
    if not schema.judgements:
        _refuse(location, {source.name: names for source, names in zip(sources, columns, strict=True)}, seen)
    return _only_needed(location, schema)


def _recognise(columns: Sequence[str], options: PairOptions) -> dict[str, list[str]]:
    short: dict[str, str] = {}
    for column in columns:
        short.setdefault(_short(column), column)
    found = {
        kind: [next(short[name] for name in names if name in short)]
        for kind, names in NAMES.items()
        if any(name in short for name in names)
    }
    wanted = {"query": options.query_column, "text": options.text_columns, "label": options.label_column}
    for kind, text in wanted.items():
        if text:
            named = _listed(text)
            found.pop(kind, None)
            if set(named) <= set(columns):
                found[kind] = named
    return found


def _recognise_id(columns: Sequence[str]) -> list[str]:
    """Return the column `id`, which in a table of products is the product's id."""
    return [column for column in columns if _short(column) == "id"][:1]


def _short(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.rpartition(".")[2].strip().lower())


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_named_columns(location: str, columns: list[str], options: PairOptions) -> None:
    for option in ("query_column", "text_columns", "label_column"):
        names = _listed(getattr(options, option)) if option == "text_columns" else [getattr(options, option)]
        for name in names:
            if name and name not in columns:
                guess = nearest(name, columns)
                hint = f"Did you mean {guess}?" if guess else f"Give one of them: --{option}"
                raise UserError(f"{location} has no column {name!r} ({option}); it has {_shown(columns)}", hint)


def _refuse(location: str, columns: dict[str, list[str]], seen: dict[str, list[str]], also: str = "") -> NoReturn:
    """Say which of label, query and text is not recognised.

    Args:
        location: The channel.
        columns: The columns of each source, by its name.
        seen: What is recognised.
        also: What else the user can do.
    """
    ways = {
        "label": (("label",), "--label_column NAME"),
        "query": (("query", "query_id"), "--query_column NAME"),
        "product text": (("text", "product_id"), "--text_columns NAME,NAME"),
    }
    missing = {what: flag for what, (kinds, flag) in ways.items() if not seen.keys() & set(kinds)}
    held = "; ".join(f"{name} has {_shown(names)}" for name, names in list(columns.items())[:4])
    what = f"no column of {location} is recognised as {' or '.join(missing)}"
    if not missing:
        what = f"no table of {location} has label, query and product together, as text or as id"
        missing = {what: flag for what, (_, flag) in ways.items()}
    raise UserError(f"{what}: {held}", f"Name it: {' '.join(missing.values())}{also}")


def _only_needed(location: str, schema: Schema) -> Schema:
    """Drop tables that the judgements do not refer to, and check that those they refer to exist."""
    kinds = [{"query", "text"} & table.columns.keys() for table in schema.judgements]
    first = schema.judgements[0].source.name
    for table, kind in zip(schema.judgements, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"{first} and {table.source.name} of {location} have labels, but not both have query and product text",
                "Give both the same columns, or keep them in separate channels.",
            )
    queries, products = schema.queries, schema.products
    if "query" not in kinds[0] and not queries:
        raise UserError(
            f"{first} has query ids, but {location} has no table of queries",
            "Add one to the files (query_id, query), or name the column of the query: --query_column NAME",
        )
    if "text" not in kinds[0] and not products:
        raise UserError(
            f"{first} has product ids, but {location} has no table of products",
            "Add one to the files (product_id, product_title); join the text to the rows of a data set; or name its "
            "columns: --text_columns NAME,NAME",
        )
    return Schema(schema.judgements, [] if "query" in kinds[0] else queries, [] if "text" in kinds[0] else products)


def _shown(columns: Iterable[str]) -> str:
    names = list(columns)
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "") or "no columns"
