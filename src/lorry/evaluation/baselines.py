"""What any embedding model must beat: BM25 (`bm25s`) and random order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
import pyarrow as pa
from scipy.sparse import csc_array, csr_array

# Pairs scored at once: bounds memory to a few dozen MB whatever the number of pairs.
_PAIRS_AT_ONCE = 65_536

logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing it sets DEBUG


def random_scores(pairs: int, seed: int) -> np.ndarray:
    """Return uniform random scores, [pairs]: the floor under every metric."""
    return np.random.default_rng(seed).random(pairs)


def bm25_scores(
    queries: Sequence[str] | pa.Array | pa.ChunkedArray,
    texts: Sequence[str] | pa.Array | pa.ChunkedArray,
    query: np.ndarray,
    text: np.ndarray,
) -> np.ndarray:
    """Return the BM25 score of each judged pair, [N] float32.

    Lucene's BM25 (k1 1.5, b .75) with the library's own tokenizer: lower case, words of two letters or more, English
    stop words left out, no stemming. The collection that word frequencies come from is the texts that occur in the
    pairs. A pair without a shared word scores 0.

    Args:
        queries: Query strings that `query` points into.
        texts: Product texts that `text` points into.
        query: Row in `queries` of each pair, [N].
        text: Row in `texts` of each pair, [N].
    """
    used_queries, query = np.unique(query, return_inverse=True)
    used_texts, text = np.unique(text, return_inverse=True)
    index = Bm25.of(_chosen(texts, used_texts))
    asked_QV = index.counts(_chosen(queries, used_queries))
    scores = np.zeros(len(query), dtype=np.float32)
    # Only judged pairs are scored, so the cost grows with the pairs and not with queries x products.
    for start in range(0, len(scores), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        scores[part] = index.weight_DV[text[part]].multiply(asked_QV[query[part]]).sum(axis=1)
    return scores


@dataclass(frozen=True)
class Bm25:
    """An index of D texts with V words: a pair's score is the sum of weights over the query's words."""

    tokenizer: bm25s.tokenization.Tokenizer
    weight_DV: csr_array

    @classmethod
    def of(cls, texts: Iterable[str]) -> Bm25:
        """Return the index of these texts."""
        tokenizer = bm25s.tokenization.Tokenizer()
        documents = list(tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
        return cls(tokenizer, _index(documents, tokenizer.get_vocab_dict()))

    def counts(self, queries: Iterable[str]) -> csr_array:
        """Return how often each query has each word, [Q, V]; words that no text has are left out."""
        ids = self.tokenizer.streaming_tokenize(queries, update_vocab=False, allow_empty=False)
        return _counts(ids, self.weight_DV.shape[1])

    def scores(self, queries: Iterable[str]) -> np.ndarray:
        """Return the score of every text for every query, [Q, D] float32."""
        scores: np.ndarray = (self.counts(queries) @ self.weight_DV.T).toarray()
        return scores


def _chosen(strings: Sequence[str] | pa.Array | pa.ChunkedArray, rows: np.ndarray) -> Iterator[str]:
    return (str(strings[row]) for row in rows.tolist())  # str() also of Arrow scalars


def _index(documents: list[list[int]], vocabulary: dict[str, int]) -> csr_array:
    """Return BM25's weight of each word in each document, [D, V]."""
    if not vocabulary:  # stop words and single letters only: there is nothing to index
        return csr_array((len(documents), 1), dtype=np.float32)
    index = bm25s.BM25()
    index.index((documents, vocabulary), create_empty_token=False, show_progress=False)
    columns = index.scores["data"], index.scores["indices"], index.scores["indptr"]
    return csc_array(columns, shape=(len(documents), len(vocabulary))).tocsr()


def _counts(lines: Iterable[list[int]], words: int) -> csr_array:
    """Return how often each query has each word, [Q, V]."""
    ids: list[int] = []
    ends = [0]
    for line in lines:
        ids.extend(line)
        ends.append(len(ids))
    counts = csr_array((np.ones(len(ids), dtype=np.float32), ids, ends), shape=(len(ends) - 1, words))
    counts.sum_duplicates()
    return counts
