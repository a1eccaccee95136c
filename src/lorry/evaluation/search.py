"""Full-catalogue search: the best hundred of all products for each query, by vectors, by BM25, and by both.

Judged pairs say how a model orders what somebody looked at; search says what it finds among everything. A product that
nobody judged counts as irrelevant (gain 0), so that every figure is a lower bound, and all scorers have the same.

Nothing of queries x products is ever held as a whole: queries are searched with block by block.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lorry.data.pairs import Pairs
from lorry.evaluation import baselines
from lorry.evaluation.catalogue import Catalogue, SearchQueries
from lorry.evaluation.intervals import change_over_queries
from lorry.signals import heard

Found = np.ndarray
"""Rows in the catalogue of what was found for each query, the best first, [Q, K]; -1 where nothing more was found."""

DEPTH = 100  # products found for a query
SCORES_AT_ONCE = 4_000_000  # numbers: bounds memory whatever the number of products
FUSION = 60  # k of reciprocal rank fusion


def nearest(query_QD: Tensor, product_CD: Tensor, stop: threading.Event | None = None, depth: int = DEPTH) -> Found:
    """Return the products of the largest dot products.

    Args:
        query_QD: Embeddings of the queries.
        product_CD: Those of the products.
        stop: Give up when this is set.
        depth: K at most.

    Raises:
        StopRequestedError: `stop` was set.
    """
    at_once, depth = max(1, SCORES_AT_ONCE // len(product_CD)), min(depth, len(product_CD))
    parts = heard(query_QD.split(at_once), stop)
    return np.concatenate([torch.topk(part_BD @ product_CD.T, depth).indices.numpy() for part_BD in parts])


def bm25_search(
    catalogue: Catalogue, splits: Mapping[str, Pairs], stop: threading.Event | None = None
) -> dict[str, Found]:
    """Return by split the products of the highest BM25 scores (see `baselines.bm25_scores`); all share a query's word.

    Raises:
        StopRequestedError: `stop` was set.
    """
    depth, at_once = min(DEPTH, len(catalogue)), max(1, SCORES_AT_ONCE // len(catalogue))
    index = baselines.Bm25.of(heard(catalogue.texts.to_pylist(), stop))
    result = {}
    for name, asked in catalogue.queries.items():
        queries = splits[name].queries.take(pa.array(asked.rows)).to_pylist()
        found = np.full((len(queries), depth), -1, np.int64)
        for start in heard(range(0, len(queries), at_once), stop):
            best = torch.topk(torch.from_numpy(index.scores(queries[start : start + at_once])), depth)
            found[start : start + at_once] = torch.where(best.values > 0, best.indices, -1).numpy()
        result[name] = found
    return result


def fuse(one: Found, other: Found) -> Found:
    """Return both results as one, by reciprocal rank fusion with k = 60.

    A product's score is the sum of 1 / (60 + rank) over the results that have it among their first hundred. Cormack,
    Clarke & Buettcher 2009, https://doi.org/10.1145/1571941.1572114
    """
    fused = np.full((len(one), max(one.shape[1], other.shape[1])), -1, np.int64)
    for row, (first, second) in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
        score: dict[int, float] = {}
        for result in (first, second):
            for rank, product in enumerate(result, start=1):
                if product >= 0:
                    score[product] = score.get(product, 0.0) + 1 / (FUSION + rank)
        best = sorted(score, key=lambda product: (-score[product], product))[: fused.shape[1]]
        fused[row, : len(best)] = best
    return fused


def measure(found: Found, asked: SearchQueries, products: int) -> dict[str, np.ndarray]:
    """Return what search gives each query, [Q], by metric.

    - `recall@10`, `recall@100`: share of the query's relevant products among the first 10, 100.
    - `mrr@10`: 1 / rank of the first relevant product, 0 beyond rank 10.
    - `ndcg@10`: with linear gains, 0 for what nobody judged; the ideal order is that of all products judged.

    Args:
        found: The products found.
        asked: The queries, and what was judged for them.
        products: Number of products in the catalogue.
    """
    gain_QK, relevant_QK = _judgements(found, asked, products)
    count = len(asked.rows)
    relevant_Q = np.bincount(asked.query, weights=asked.relevant, minlength=count)
    first = np.where(relevant_QK[:, :10].any(1), relevant_QK[:, :10].argmax(1), -1)
    best_first = np.lexsort((-asked.gain, asked.query))
    ends = np.bincount(asked.query, minlength=count).cumsum()
    rank = np.arange(len(best_first)) - np.repeat(ends - np.diff(ends, prepend=0), np.diff(ends, prepend=0))
    ideal_Q = np.bincount(asked.query[best_first], weights=asked.gain[best_first] * _discount(rank), minlength=count)
    return {
        "recall@10": relevant_QK[:, :10].sum(1) / relevant_Q,
        "recall@100": relevant_QK.sum(1) / relevant_Q,
        "mrr@10": np.where(first >= 0, 1 / (first + 1.0 + (first < 0)), 0.0),
        "ndcg@10": (gain_QK * _discount(np.arange(found.shape[1]))).sum(1) / ideal_Q,
    }


def compare_searches(
    catalogue: Catalogue, split: str, bm25: Found, models: Mapping[str, Found], seed: int
) -> tuple[dict[str, Any], dict[str, dict[str, float]], dict[str, dict[str, float]], dict[str, Any]]:
    """Return what is said of the searches of a split.

    Args:
        catalogue: What was searched.
        split: Whose queries.
        bm25: What BM25 found.
        models: What each model found, the first one being what the others are compared with.
        seed: Seed of the intervals.

    Returns:
        How many products and queries, with the metrics of `bm25`; the metrics of each model; those of each model fused
        with BM25; and of each model but the first the change of every metric, with its interval.
    """
    asked = catalogue.queries[split]
    size = {"products": len(catalogue), "products_all": catalogue.all}
    size |= {"queries": len(asked.rows), "queries_all": asked.all}
    alone = {name: measure(found, asked, len(catalogue)) for name, found in models.items()}
    hybrid = {name: means(measure(fuse(bm25, found), asked, len(catalogue))) for name, found in models.items()}
    first, *others = models
    change = {name: changes(alone[first], alone[name], seed) for name in others}
    said = {**size, "bm25": means(measure(bm25, asked, len(catalogue)))}
    return said, {name: means(values) for name, values in alone.items()}, hybrid, change


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean over the queries of what `measure` gives."""
    return {name: float(value_Q.mean()) for name, value_Q in values.items()}


def changes(base: dict[str, np.ndarray], tuned: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Return the change of every metric with its interval; none where there is one query."""
    if len(base["ndcg@10"]) < 2:
        return {}
    ones = np.ones(len(base["ndcg@10"]))
    return {name: asdict(change_over_queries(tuned[name] - base[name], ones, seed)) for name in base}


def _judgements(found: Found, asked: SearchQueries, products: int) -> tuple[np.ndarray, np.ndarray]:
    """Return gain and relevance of what was found, [Q, K]; 0 and False for what nobody judged."""
    key_J = asked.query * products + asked.products
    order = np.argsort(key_J, kind="stable")
    key_QK = np.arange(len(found))[:, None] * products + found
    place = np.minimum(np.searchsorted(key_J[order], key_QK), len(order) - 1)
    judged = (key_J[order][place] == key_QK) & (found >= 0)
    return np.where(judged, asked.gain[order][place], 0.0), judged & asked.relevant[order][place]


def _discount(rank: np.ndarray) -> np.ndarray:
    discount: np.ndarray = np.where(rank < 10, 1 / np.log2(rank + 2.0), 0.0)
    return discount
