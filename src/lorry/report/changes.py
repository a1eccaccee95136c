"""The queries whose ranking changed most between the base and the tuned model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorry.data.pairs import Pairs
from lorry.evaluation.metrics import query_ndcg


@dataclass(frozen=True)
class QueryChange:
    """One query's nDCG@10 and top product under both models; the labels are those of the products."""

    query: str
    before: float
    after: float
    top_before: str
    top_after: str
    label_before: str
    label_after: str


def query_changes(pairs: Pairs, base: np.ndarray, tuned: np.ndarray, *, limit: int = 8) -> list[QueryChange]:
    """Return the queries whose nDCG@10 rose most, then those whose nDCG@10 fell most, the largest change of each first.

    Args:
        pairs: The judged pairs of a split.
        base: Similarity of each pair under the base model, [N].
        tuned: Similarity of each pair under the tuned model, [N].
        limit: Maximum number of queries that rose, and of queries that fell.
    """
    before, after = (query_ndcg(pairs.query, pairs.gain, score) for score in (base, tuned))
    rise = {query: after[query] - before[query] for query in before}
    largest_first = sorted(rise, key=lambda query: (-rise[query], query))
    rose = [query for query in largest_first if rise[query] > 0][:limit]
    fell = [query for query in reversed(largest_first) if rise[query] < 0][:limit]
    changes = []
    for query in rose + fell:
        rows = np.flatnonzero(pairs.query == query)
        tops = [rows[np.argmax(score[rows])] for score in (base, tuned)]
        texts = (pairs.texts[int(pairs.text[top])].as_py() for top in tops)
        labels = (pairs.label_names[int(pairs.label[top])] for top in tops)
        changes.append(QueryChange(pairs.queries[query].as_py(), before[query], after[query], *texts, *labels))
    return changes
