"""Tell what each file of a channel is, and each column, by the names of the columns.

A file with labels holds judgements; one with queries and their ids, queries; one with product texts and ids, products.
Files of one kind are read as one table, each with column names of its own. What is none of these is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorry.config import PairOptions
from lorry.data.files import column_names, list_files
from lorry.errors import UserError, nearest

# Names by which a column is recognised, the surest first; case, blanks and what stands before a dot do not matter.
# The text is the title alone: long descriptions cost many times the training, so they are there for the asking.
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
class Source:
    """A file and its columns, by what they are to us; several columns of a file may make one text."""

    path: Path
    columns: dict[str, list[str]]


@dataclass(frozen=True)
class Schema:
    """What the files of a channel are; `queries` and `products` are empty where the judgements hold them already."""

    judgements: list[Source]
    queries: list[Source]
    products: list[Source]

    @property
    def tables(self) -> tuple[list[Source], list[Source], list[Source]]:
        """Return the three tables."""
        return self.judgements, self.queries, self.products


def find_schema(folder: Path, options: PairOptions) -> Schema:
    """Look at the columns of every file of a channel and tell what each is.

    Raises:
        UserError: Nothing is there; a column that `options` names is nowhere; no query, text or label is recognised;
            or a table that the judgements refer to is missing.
    """
    files = {path: column_names(path) for path in list_files(folder)}
    _check_wanted(folder, list(dict.fromkeys(name for names in files.values() for name in names)), options)
    schema = Schema([], [], [])
    seen: dict[str, list[str]] = {}
    for path, columns in files.items():
        found = _recognise(columns, options)
        seen |= found
        if "label" in found and found.keys() & {"query", "query_id"} and found.keys() & {"text", "product_id"}:
            needless = {"query_id"} if "query" in found else set()
            needless |= {"product_id"} if "text" in found else set()
            schema.judgements.append(Source(path, {key: found[key] for key in found if key not in needless}))
        elif {"query", "query_id"} <= found.keys():
            schema.queries.append(Source(path, {key: found[key] for key in ("query", "query_id")}))
        elif "text" in found and (product_id := found.get("product_id") or _recognise_id(columns)):
            locale = {"locale": found["locale"]} if "locale" in found else {}
            schema.products.append(Source(path, {"text": found["text"], "product_id": product_id, **locale}))
    if not schema.judgements:
        _refuse(folder, files, seen)
    return _only_needed(folder, schema)


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
    """Return the column `id`, which in a table of products alone is the product's."""
    return [column for column in columns if _short(column) == "id"][:1]


def _short(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.rpartition(".")[2].strip().lower())


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_wanted(folder: Path, columns: list[str], options: PairOptions) -> None:
    for option in ("query_column", "text_columns", "label_column"):
        names = _listed(getattr(options, option)) if option == "text_columns" else [getattr(options, option)]
        for name in names:
            if name and name not in columns:
                guess = nearest(name, columns)
                hint = f"Did you mean {guess}?" if guess else f"Give one of them: --{option}"
                raise UserError(f"{folder} has no column {name!r} ({option}); it has {_shown(columns)}", hint)


def _refuse(folder: Path, files: dict[Path, list[str]], seen: dict[str, list[str]]) -> None:
    """Say which of label, query and text is not recognised in any file."""
    ways = {
        "label": (("label",), "--label_column NAME"),
        "query": (("query", "query_id"), "--query_column NAME"),
        "product text": (("text", "product_id"), "--text_columns NAME,NAME"),
    }
    missing = {what: flag for what, (kinds, flag) in ways.items() if not seen.keys() & set(kinds)}
    held = "; ".join(f"{path.name} has {_shown(columns)}" for path, columns in list(files.items())[:4])
    what = f"no column of {folder} is recognised as {' or '.join(missing)}"
    if not missing:
        what = f"no file of {folder} has label, query and product together, by text or by id"
        missing = {what: flag for what, (_, flag) in ways.items()}
    raise UserError(f"{what}: {held}", f"Name it: {' '.join(missing.values())}")


def _only_needed(folder: Path, schema: Schema) -> Schema:
    """Drop tables that the judgements do not refer to; see that those they refer to are there."""
    kinds = [{"query", "text"} & source.columns.keys() for source in schema.judgements]
    first = schema.judgements[0].path.name
    for source, kind in zip(schema.judgements, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"{first} and {source.path.name} in {folder} have labels, but not both have query and product text",
                "Give both the same columns, or keep them in folders of their own.",
            )
    queries, products = schema.queries, schema.products
    if "query" not in kinds[0] and not queries:
        raise UserError(
            f"{first} has query ids, but {folder} has no table of queries",
            "Put it there (query_id, query), or name the column of the query: --query_column NAME",
        )
    if "text" not in kinds[0] and not products:
        raise UserError(
            f"{first} has product ids, but {folder} has no table of products",
            "Put it there (product_id, product_title), or name the columns of the text: --text_columns NAME,NAME",
        )
    return Schema(schema.judgements, [] if "query" in kinds[0] else queries, [] if "text" in kinds[0] else products)


def _shown(columns: Iterable[str]) -> str:
    names = list(columns)
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "") or "no columns"
