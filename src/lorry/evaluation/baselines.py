"""What any embedding model must beat: BM25 (`bm25s`) and random order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

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
    tokenizer = bm25s.tokenization.Tokenizer()
    documents = list(_token_ids(tokenizer, texts, used_texts, learn=True))
    vocabulary = tokenizer.get_vocab_dict()
    scores = np.zeros(len(query), dtype=np.float32)
    if not vocabulary:  # stop words and single letters only: there is nothing to index
        return scores

    weight_DV = _index(documents, vocabulary)
    asked_QV = _counts(_token_ids(tokenizer, queries, used_queries, learn=False), len(vocabulary))
    # Only judged pairs are scored, so the cost grows with the pairs and not with queries x products.
    for start in range(0, len(scores), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        scores[part] = weight_DV[text[part]].multiply(asked_QV[query[part]]).sum(axis=1)
    return scores


def _token_ids(
    tokenizer: bm25s.tokenization.Tokenizer,
    strings: Sequence[str] | pa.Array | pa.ChunkedArray,
    rows: np.ndarray,
    *,
    learn: bool,
) -> Iterator[list[int]]:
    """Yield the word ids of the strings in `rows`; words that are new are learnt or else left out."""
    chosen = (str(strings[row]) for row in rows.tolist())  # str() also of Arrow scalars
    yield from tokenizer.streaming_tokenize(chosen, update_vocab=learn, allow_empty=False)


def _index(documents: list[list[int]], vocabulary: dict[str, int]) -> csr_array:
    """Return BM25's weight of each word in each document, [D, V]: a pair's score is the sum over the query's words."""
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
