"""The change from the base to the tuned model for kinds of queries, and the similarities of each label.

- query_length: words of the query.
- judged_products: head queries have most judged products and hold about half of the pairs; the others are the tail.
  Where pairs come from a shop's log, what is judged most is what is asked for most.
- lexical_overlap: share of the query's words that its relevant products have, in the mean.
- label: pairs of one label, and their mean cosine.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorry.data.pairs import Pairs
from lorry.evaluation.intervals import change_over_queries
from lorry.evaluation.metrics import PerQuery
from lorry.signals import heard

WORD = r"(?u)\w+"
TEXTS_AT_ONCE = 20_000
LONG_QUERY = 4  # words: queries of so many and more are one slice
Slices = dict[str, list[dict[str, Any]]]


def slices(
    pairs: Pairs, base: np.ndarray, tuned: np.ndarray, *, seed: int, stop: threading.Event | None = None
) -> Slices:
    """Return for each kind of slice its slices, in the order to show them; an empty one is left out.

    Args:
        pairs: The judged pairs.
        base: Score of each pair by the base model, [N].
        tuned: Score of each pair by the tuned model, [N].
        seed: Seed of the intervals.
        stop: Give up when this is set.

    Returns:
        Of each slice of queries: `name`, `queries`, `queries_rankable`, `pairs`, nDCG@10 over its rankable queries of
        `base` and `tuned`, and `change` with its interval; None where no query, or only one, can be ranked. Of each
        label: `name`, `relevant`, `pairs`, the mean cosine of `base` and `tuned`, and `change`.

    Raises:
        StopRequestedError: `stop` was set.
    """
    before, after = (PerQuery.of(pairs.query, pairs.gain, pairs.relevant, score) for score in (base, tuned))
    judged_Q = np.bincount(pairs.query)[np.unique(pairs.query)]  # as PerQuery: the queries that have pairs
    kinds = {
        "query_length": _by_length(pairs),
        "judged_products": _by_judged(judged_Q),
        "lexical_overlap": _by_overlap(pairs),
    }
    found: Slices = {
        kind: [
            _of_queries(name, mask, before, after, judged_Q, seed)
            for name, mask in heard(masks.items(), stop)
            if mask.any()
        ]
        for kind, masks in kinds.items()
    }
    return {**found, "label": _by_label(pairs, base, tuned, seed, stop)}


def _of_queries(
    name: str, mask: NDArray[np.bool_], before: PerQuery, after: PerQuery, judged_Q: np.ndarray, seed: int
) -> dict[str, Any]:
    counted = mask & before.rankable
    rankable = int(counted.sum())
    found = (
        change_over_queries((after.ndcg - before.ndcg) * counted, counted.astype(float), seed) if rankable > 1 else None
    )
    return {
        "name": name,
        "queries": int(mask.sum()),
        "queries_rankable": rankable,
        "pairs": int(judged_Q[mask].sum()),
        "base": float(before.ndcg[counted].mean()) if rankable else None,
        "tuned": float(after.ndcg[counted].mean()) if rankable else None,
        "change": asdict(found) if found else None,
    }


def _by_length(pairs: Pairs) -> Mapping[str, NDArray[np.bool_]]:
    words_Q = np.array([len(query.split()) for query in pairs.queries.to_pylist()])[np.unique(pairs.query)]
    names = {1: "1 word", 2: "2 words", 3: "3 words"}
    longest = {f"{LONG_QUERY} or more words": words_Q >= LONG_QUERY}
    return {name: words_Q == count for count, name in names.items()} | longest


def _by_judged(judged_Q: np.ndarray) -> Mapping[str, NDArray[np.bool_]]:
    most_first = np.sort(judged_Q)[::-1]
    least = int(most_first[np.searchsorted(most_first.cumsum(), judged_Q.sum() / 2)])  # of a head query
    head_Q = judged_Q >= least
    return {f"head: {least} or more judged products": head_Q, "tail: fewer": ~head_Q}


def _by_overlap(pairs: Pairs) -> Mapping[str, NDArray[np.bool_]]:
    overlap_N, kept_N = word_overlap(pairs), pairs.relevant
    queries, index_N = np.unique(pairs.query, return_inverse=True)
    relevant_Q = np.bincount(index_N, weights=kept_N, minlength=len(queries))
    has_relevant = relevant_Q > 0
    sums_Q = np.bincount(index_N, weights=overlap_N * kept_N, minlength=len(queries))
    overlap_Q = np.divide(sums_Q, relevant_Q, out=np.zeros_like(sums_Q), where=has_relevant)
    return {
        "up to a third of the words": has_relevant & (overlap_Q <= 1 / 3),
        "a third to two thirds": has_relevant & (overlap_Q > 1 / 3) & (overlap_Q <= 2 / 3),
        "more than two thirds": has_relevant & (overlap_Q > 2 / 3),
        "no relevant product": ~has_relevant,
    }


def word_overlap(pairs: Pairs) -> np.ndarray:
    """Return the share of each query's distinct words that the product text has, [N]; 0 for a query without words."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, token_pattern=WORD, dtype=np.float32)
    try:
        query_QV = counter.fit_transform(pairs.queries.to_pylist())
    except ValueError:  # no query has a word
        return np.zeros(len(pairs))
    words_Q = np.asarray(query_QV.sum(axis=1)).ravel()
    shared_N = np.zeros(len(pairs))
    by_text = np.argsort(pairs.text, kind="stable")
    for start in range(0, len(pairs.texts), TEXTS_AT_ONCE):
        text_TV = counter.transform(pairs.texts.slice(start, TEXTS_AT_ONCE).to_pylist())
        first, last = np.searchsorted(pairs.text[by_text], [start, start + text_TV.shape[0]])
        rows = by_text[first:last]
        both = query_QV[pairs.query[rows]].multiply(text_TV[pairs.text[rows] - start])
        shared_N[rows] = np.asarray(both.sum(axis=1)).ravel()
    share_N: np.ndarray = shared_N / np.maximum(words_Q[pairs.query], 1)
    return share_N


def _by_label(
    pairs: Pairs, base: np.ndarray, tuned: np.ndarray, seed: int, stop: threading.Event | None
) -> list[dict[str, Any]]:
    found = []
    for label, name in heard(enumerate(pairs.label_names), stop):
        rows = np.flatnonzero(pairs.label == label)
        if not len(rows):
            continue
        count_Q = np.bincount(pairs.query[rows]).astype(float)
        difference_Q = np.bincount(pairs.query[rows], weights=tuned[rows] - base[rows])
        change = change_over_queries(difference_Q, count_Q, seed) if (count_Q > 0).sum() > 1 else None
        found.append(
            {
                "name": name,
                "relevant": bool(pairs.relevant[rows].mean() >= 0.5),  # a step of many grades may have both
                "pairs": len(rows),
                "base": float(base[rows].mean()),
                "tuned": float(tuned[rows].mean()),
                "change": asdict(change) if change else None,
            }
        )
    return found
