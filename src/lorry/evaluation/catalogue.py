"""The products that full-catalogue search looks through, and the queries that it is measured with.

The catalogue is every distinct product text of all splits. Where there are more than asked for, those judged for the
queries stay, and of the others a sample, drawn by seed: search among fewer products is easier, so the number is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lorry.data.pairs import Pairs

MOST_QUERIES = 2_000  # of a split; more are a sample: 2,000 tell apart what differs by two points


@dataclass(frozen=True)
class SearchQueries:
    """The queries of a split that search is measured with: such as have a relevant product.

    Attributes:
        rows: [Q] their rows in the split's queries.
        all: Queries that have a relevant product.
        products: [J] of each judged pair of these queries, the product's row in the catalogue.
        query: [J] its query, as an index into `rows`.
        gain: [J]
        relevant: [J]
    """

    rows: NDArray[np.int64]
    all: int
    products: NDArray[np.int64]
    query: NDArray[np.int64]
    gain: NDArray[np.float32]
    relevant: NDArray[np.bool_]


@dataclass(frozen=True)
class Catalogue:
    """C distinct product texts.

    Attributes:
        texts: [C] the texts.
        all: Distinct product texts that there are.
        rows: By split, [C] the row of each product in the split's texts, -1 where it comes from another split: each
            product is taken from one.
        in_train: [C] whether it is a product of the training pairs; all are where there are none.
        queries: By split, what search is measured with; a split without such queries is not there.
    """

    texts: pa.LargeStringArray
    all: int
    rows: dict[str, NDArray[np.int64]]
    in_train: NDArray[np.bool_]
    queries: dict[str, SearchQueries]

    def __len__(self) -> int:
        return len(self.texts)


def make_catalogue(splits: Mapping[str, Pairs], most: int, seed: int, *, but: str = "") -> Catalogue:
    """Return the catalogue of these splits, and the queries to search it with.

    Args:
        splits: The pairs of each split.
        most: Maximum number of products, unless the queries' own judged products are more.
        seed: Seed of the samples.
        but: A split whose queries are not searched with.
    """
    rng = np.random.default_rng(seed)
    every = pc.unique(pa.chunked_array([pairs.texts for pairs in splits.values()]))
    place = {name: pc.index_in(pairs.texts, every).to_numpy().astype(np.int64) for name, pairs in splits.items()}
    queries = {name: _queries(pairs, place[name], rng) for name, pairs in splits.items() if name != but}
    needed = np.zeros(len(every), bool)
    for asked in queries.values():
        needed[asked.products] = True
    others = np.flatnonzero(~needed)
    more = max(0, min(len(others), most - int(needed.sum())))
    needed[rng.choice(others, more, replace=False)] = True
    kept, new = np.flatnonzero(needed), np.cumsum(needed) - 1
    rows, taken = {}, np.zeros(len(every), bool)
    for name in sorted(splits, key=lambda name: name == "train"):  # last, so that least is encoded anew
        row_of = np.full(len(every), -1, np.int64)
        row_of[place[name]] = np.arange(len(place[name]))
        row_of[taken] = -1
        taken |= row_of >= 0
        rows[name] = row_of[kept]
    return Catalogue(
        texts=every.take(pa.array(kept)),
        all=len(every),
        rows=rows,
        in_train=np.isin(kept, place["train"]) if "train" in splits else np.ones(len(kept), bool),
        queries={name: _renumbered(asked, new) for name, asked in queries.items() if len(asked.rows)},
    )


def _queries(pairs: Pairs, place: NDArray[np.int64], rng: np.random.Generator) -> SearchQueries:
    """Return the queries of a split, a sample of them where there are very many; products as `place` numbers them."""
    useful = np.unique(pairs.query[pairs.relevant & (pairs.gain > 0)])
    rows = np.sort(rng.choice(useful, min(len(useful), MOST_QUERIES), replace=False)).astype(np.int64)
    number = np.full(len(pairs.queries), -1, np.int64)
    number[rows] = np.arange(len(rows))
    judged = np.flatnonzero(number[pairs.query] >= 0)
    return SearchQueries(
        rows=rows,
        all=len(useful),
        products=place[pairs.text[judged]],
        query=number[pairs.query[judged]],
        gain=pairs.gain[judged],
        relevant=pairs.relevant[judged],
    )


def _renumbered(asked: SearchQueries, new: NDArray[np.int64]) -> SearchQueries:
    return SearchQueries(asked.rows, asked.all, new[asked.products], asked.query, asked.gain, asked.relevant)
