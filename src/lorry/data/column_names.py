"""Recognise columns by their names, and notice where several may be meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lorry.config import PairOptions

# Names by which a column is recognised, the surest first; those of one group are as sure as each other. Case, blanks
# and the part before a dot are ignored. The text is the title alone: longer texts make training several times slower,
# so they must be asked for.
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "query": (("query",), ("search_term", "search_query", "query_text")),
    "text": (("product_title", "product_name"), ("title", "name"), ("product_text", "text")),
    "label": (("esci_label",), ("relevance_label",), ("relevance", "label", "grade")),
    "teacher": (("teacher_score",),),
    "query_id": (("query_id",),),
    "product_id": (("product_id",), ("product_uid", "item_id", "asin")),
    "locale": (("product_locale",), ("locale",)),
    "small_version": (("small_version",),),
    "split": (("split",),),
}
ID_KINDS = ("query_id", "product_id", "locale")
OPTIONS = {
    "query": "query_column",
    "text": "text_columns",
    "label": "label_column",
    "teacher": "teacher_column",
}


@dataclass(frozen=True)
class Choice:
    """Which columns of a table are taken for something.

    Attributes:
        taken: The columns; a text may come from several.
        equal: Columns that are as sure as the one taken, itself included; empty where there is no doubt.
        passed_over: Columns that would be taken if there were no surer one.
    """

    taken: list[str]
    equal: list[str]
    passed_over: list[str]


def choose_columns(columns: Sequence[str], options: PairOptions) -> dict[str, Choice]:
    """Return which columns of a table are what: those that `options` names, else those that are recognised."""
    plain = [_plain(column) for column in columns]
    found = {kind: choice for kind in NAMES if (choice := _recognise(columns, plain, kind))}
    for kind, option in OPTIONS.items():
        if names := names_of(option, options):
            found.pop(kind, None)
            if set(names) <= set(columns):
                twice = [column for column in columns if column in names and columns.count(column) > 1]
                found[kind] = Choice(names, twice, [])
    return found


def names_of(option: str, options: PairOptions) -> list[str]:
    """Return the columns that an option names."""
    value: str = getattr(options, option)
    names = value.split(",") if option == "text_columns" else [value]
    return [name.strip() for name in names if name.strip()]


def changes_choice(column: str, known: Collection[str]) -> bool:
    """Tell whether a column that comes to known ones would change what is read.

    It would not if one as sure, or surer, is known; but any split may say which rows are for tests. Ids and locales
    only join tables and choose among rows, so that none is missed beside query and text.
    """
    plain = {_plain(name) for name in known}
    kinds = {kind for kind, groups in NAMES.items() if plain & {name for group in groups for name in group}}
    for kind, groups in NAMES.items():
        for place, group in enumerate(groups):
            if _plain(column) in group:
                as_sure = {name for names in groups[: place + 1] for name in names}
                needless = kind in ID_KINDS and {"query", "text"} <= kinds
                return kind == "split" or not (needless or plain & as_sure)
    return False


def product_id_of(columns: Sequence[str]) -> Choice | None:
    """Return the column `id`, which in a table of products is the product's id."""
    named = [column for column in columns if _plain(column) == "id"]
    return Choice(named[:1], [], named[1:]) if named else None


def _recognise(columns: Sequence[str], plain: Sequence[str], kind: str) -> Choice | None:
    """Return the column of the surest group, of which one within no other field is surer than one within a field."""
    groups = NAMES[kind]
    ranked = sorted(
        (group, columns[place].count("."), place)
        for group, names in enumerate(groups)
        for place, name in enumerate(plain)
        if name in names
    )
    if not ranked:
        return None
    best = [columns[place] for group, depth, place in ranked if (group, depth) == ranked[0][:2]]
    return Choice(best[:1], best if len(best) > 1 else [], [columns[place] for *_, place in ranked[len(best) :]])


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.rpartition(".")[2].strip().lower())
