"""Find out which column is what, and what each table of a channel holds, from the names of the columns.

A table with labels holds judgements; one with queries and their ids, queries; one with product texts and their ids,
products. Tables of one kind are read as one, even if their columns have different names. Other tables are not read,
which is said; one that looks like judgements is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from lorry.config import PairOptions
from lorry.data.column_names import OPTIONS, Choice, choose_columns, names_of, product_id_of
from lorry.data.sources import Source
from lorry.data.wording import listed, plain, quoted, short
from lorry.errors import UserError, nearest

log = logging.getLogger("lorry")

# What a judgement needs: what it is called, the columns that have it, and the option that names one.
PARTS = {
    "label": (("label",), "--label_column NAME"),
    "query": (("query", "query_id"), "--query_column NAME"),
    "product text": (("text", "product_id"), "--text_columns NAME,NAME"),
}
# Columns that tables of many kinds have, so that sharing them with judged pairs means nothing: row numbers (those of
# pandas have no name, or one of the prefixes), and what databases add.
GENERIC, GENERIC_PREFIXES = {"", "id", "index", "created_at", "updated_at"}, ("unnamed:", "__index_level_")
NO_COLUMNS = "no columns (a JSON file needs one object per line)"


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
    """What the sources of a channel hold.

    Attributes:
        judgements: Tables with labels.
        queries: Tables of queries; empty where the judgements include them.
        products: Tables of products; empty where the judgements include their texts.
        unused: Why a table is not read, by its name.
    """

    judgements: list[SourceSchema]
    queries: list[SourceSchema]
    products: list[SourceSchema]
    unused: dict[str, str] = field(default_factory=dict)

    @property
    def tables(self) -> tuple[list[SourceSchema], list[SourceSchema], list[SourceSchema]]:
        """Return the three tables."""
        return self.judgements, self.queries, self.products


def find_schema(location: str, sources: Sequence[Source], options: PairOptions, purpose: str) -> Schema:
    """Look at the columns of every source of a channel and find out what it holds.

    Args:
        location: The channel, for errors.
        sources: Its files, data set or splits.
        options: Names columns that are not recognised.
        purpose: "train", "validation" or "test" where the channel is given as that, else "".

    Raises:
        UserError: A column that `options` names does not exist (validation and test pairs need no teacher's scores); no
            query, text or label is recognised, or several columns may be meant; or a table that the judgements refer to
            is missing.
    """
    columns = [source.column_names() for source in sources]
    known = list(dict.fromkeys(name for names in columns for name in names))
    optional = ("teacher_column",) if purpose in ("validation", "test") else ()  # only training learns from it
    _check_named_columns(location, known, options, optional)
    tables = [
        _Table(source, names, choose_columns(names, options)) for source, names in zip(sources, columns, strict=True)
    ]
    judged = [table for table in tables if not table.missing]
    others = _with_product_ids([table for table in tables if table.missing])
    _refuse_what_lacks_a_part(location, judged, others)
    with_query, with_text = _check_alike(location, judged)
    read: dict[str, list[tuple[_Table, list[str]]]] = {"judgements": [], "queries": [], "products": []}
    for table in judged:
        unneeded = {"query_id"} if with_query else set()
        unneeded |= {"product_id"} if with_text else set()
        read["judgements"].append((table, [kind for kind in table.found if kind not in unneeded]))
    unused: dict[str, str] = {}
    for table in others:
        if table.holds_queries and not with_query:
            read["queries"].append((table, ["query", "query_id"]))
        elif table.holds_products and not with_text:
            read["products"].append((table, ["text", "product_id", "locale"]))
        else:
            unused[plain(table.source.name)] = table.why_unused
    _check_tables_exist(location, judged[0], with_query or bool(read["queries"]), with_text or bool(read["products"]))
    _check_choices(location, [item for items in read.values() for item in items])
    schemas = {name: [table.schema(kinds) for table, kinds in items] for name, items in read.items()}
    return Schema(**schemas, unused=unused)


@dataclass(frozen=True)
class _Table:
    """A source, its columns, and what they are recognised as."""

    source: Source
    names: list[str]
    found: dict[str, Choice]

    @property
    def missing(self) -> list[str]:
        """Return what a table of judgements must have, and this one lacks."""
        return [part for part, (kinds, _) in PARTS.items() if not self.found.keys() & set(kinds)]

    @property
    def holds_queries(self) -> bool:
        return {"query", "query_id"} <= self.found.keys()

    @property
    def holds_products(self) -> bool:
        return {"text", "product_id"} <= self.found.keys()

    @property
    def why_unused(self) -> str:
        if self.holds_queries or self.holds_products:
            return f"the judged pairs have the {'query' if self.holds_queries else 'product text'} themselves"
        if "text" in self.found and not self.holds_products and product_id_of(self.names):
            return "its column id is not taken for the product's id, as another table has a surer column"
        return f"no column is recognised as {' or '.join(self.missing)}" if self.names else NO_COLUMNS

    def schema(self, kinds: Sequence[str]) -> SourceSchema:
        return SourceSchema(self.source, {kind: self.found[kind].taken for kind in kinds if kind in self.found})


def _with_product_ids(others: Sequence[_Table]) -> list[_Table]:
    """Take the column `id` of tables with texts for the product's id, unless one of them says which column that is.

    Beside a table with a column `product_id`, one with `id` and `name` may be one of brands.
    """
    if any(table.holds_products for table in others):
        return list(others)
    ids = [product_id_of(table.names) if "text" in table.found else None for table in others]
    return [
        replace(table, found={**table.found, "product_id": choice}) if choice else table
        for table, choice in zip(others, ids, strict=True)
    ]


def _refuse_what_lacks_a_part(location: str, judged: Sequence[_Table], others: Sequence[_Table]) -> None:
    """Refuse a channel without judgements, and a table that seems to be meant as judgements but lacks a part."""
    for table in others:
        if table.source.split:  # a split that is to be read must be one of judgements
            ways = ", or give the split train alone (FOLDER/train, ?split=train)"
            _refuse(location, [table], ways)
    if not judged:
        _refuse(location, others)
    ids = {"query_id", "product_id", "locale"}
    for table in others:
        known = {name for kind, choice in table.found.items() if kind in ids for name in choice.taken}
        shared = [name for name in table.names if name in judged[0].names and name not in known and not _generic(name)]
        known_table = table.holds_queries or table.holds_products
        if len(table.missing) < 2 or (len(shared) > 1 and not known_table):
            flags = " ".join(PARTS[part][1] for part in table.missing)
            raise UserError(
                f"{plain(table.source.name)} of {location} looks like judged pairs, but no column is recognised as "
                f"{' or '.join(table.missing)}: it has {listed(table.names)}",
                f"Name the column as in the other files, or for all of them with {flags}, or move the file elsewhere"
                f"{_or_rename(table)}.",
            )


def _or_rename(table: _Table) -> str:
    """Return the advice for a table that only looks like judged pairs because a column is taken for the label."""
    label = table.found.get("label")
    return f", or rename its column {short(label.taken[0])} if it means something else" if label else ""


def _generic(name: str) -> bool:
    simple = name.strip().lower()
    return simple in GENERIC or simple.startswith(GENERIC_PREFIXES)


def _refuse(location: str, tables: Sequence[_Table], also: str = "") -> NoReturn:
    """Say which of label, query and text is not recognised.

    Args:
        location: The channel.
        tables: None of them has judgements.
        also: What else the user can do.
    """
    missing = [part for part in PARTS if all(part in table.missing for table in tables)]
    held = "; ".join(f"{plain(table.source.name)} has {listed(table.names, NO_COLUMNS)}" for table in tables[:4])
    what = f"no column of {location} is recognised as {' or '.join(missing)}"
    if not missing:
        what = f"no table of {location} has label, query and product together, as text or as id"
    flags = " ".join(PARTS[part][1] for part in missing or PARTS)
    raise UserError(f"{what}: {held}", f"Name it: {flags}{also}")


def _check_alike(location: str, judged: Sequence[_Table]) -> tuple[bool, bool]:
    """Return whether the judgements have the query, and the product text, as text rather than as id."""
    kinds = [{"query", "text"} & table.found.keys() for table in judged]
    for table, kind in zip(judged, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"{plain(judged[0].source.name)} and {plain(table.source.name)} of {location} have labels, but not "
                "both have query and product text",
                "Give both the same columns, or keep them in separate channels.",
            )
    return "query" in kinds[0], "text" in kinds[0]


def _check_tables_exist(location: str, judged: _Table, queries: bool, products: bool) -> None:
    """Refuse judgements with ids that no table explains."""
    first = plain(judged.source.name)
    if not queries:
        raise UserError(
            f"{first} has query ids, but {location} has no table of queries",
            "Add one to the files (query_id, query), or name the column of the query: --query_column NAME",
        )
    if not products:
        raise UserError(
            f"{first} has product ids, but {location} has no table of products",
            "Add one to the files (product_id, product_title); join the text to the rows of a data set; or name its "
            "columns: --text_columns NAME,NAME",
        )


def _check_choices(location: str, read: Sequence[tuple[_Table, list[str]]]) -> None:
    """Refuse a table with several columns that may be meant; say which columns are passed over for surer ones."""
    notes: list[str] = []
    for table, kinds in read:
        for kind, choice in ((kind, table.found.get(kind)) for kind in kinds):
            what = {"text": "product text", "teacher": "teacher's score"}.get(kind, kind.replace("_", " "))
            if choice and choice.equal:
                repeated = len(set(choice.equal)) < len(choice.equal)
                hint = (
                    f"Name one: --{OPTIONS[kind]} NAME" if kind in OPTIONS and not repeated else "Rename all but one."
                )
                raise UserError(
                    f"{plain(table.source.name)} of {location} has several columns that may be the {what}: "
                    f"{listed(choice.equal)}",
                    hint,
                )
            if choice and choice.passed_over:
                notes.append(
                    f"{location}: the {what} is read from column {listed(choice.taken)}, not from "
                    f"{listed(choice.passed_over)}"
                )
    for note in dict.fromkeys(notes):
        log.info("%s", note)


def _check_named_columns(location: str, columns: list[str], options: PairOptions, optional: Collection[str]) -> None:
    for option in (option for option in OPTIONS.values() if option not in optional):
        for name in names_of(option, options):
            if name not in columns:
                guess = nearest(name, columns)
                hint = f"Did you mean {short(guess)}?" if guess else f"Give one of them: --{option}"
                raise UserError(f"{location} has no column {quoted(name)} ({option}); it has {listed(columns)}", hint)
