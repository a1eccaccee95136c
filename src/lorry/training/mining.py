"""Hard negatives: texts that nobody judged for a query and that the model finds most similar to it.

Before every epoch each query of the training pairs is compared with all their texts. A text as similar as a relevant
one is probably relevant too and was never judged, so only texts clearly below are taken: below 0.95 of the score of the
least similar relevant text, or below that score itself where it is negative.
Moreira et al. 2024 (NV-Retriever), https://arxiv.org/abs/2407.15831
"""

from __future__ import annotations

import logging
import threading

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lorry.data.pairs import Pairs
from lorry.data.strings import fold
from lorry.distributed.ranks import ALONE, Ranks
from lorry.signals import StopRequestedError

log = logging.getLogger("lorry")

GUARD = 0.95  # of the score of a query's least similar relevant text
CELLS = 1 << 26  # similarities held at once: 256 MB
PAIRS_AT_ONCE = 65_536


def mine(
    query_QD: Tensor,
    text_TD: Tensor,
    pairs: Pairs,
    count: int,
    stop: threading.Event | None = None,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    """Return the hard negatives of every query, [Q, count] indices into the texts, the hardest first; -1 for none.

    Texts judged irrelevant are negatives already, and come first: a query with n of them gets `count` - n more. A text
    that was judged for the query is never taken, nor one that reads the same.

    Args:
        query_QD: Embeddings of all queries of the pairs.
        text_TD: Embeddings of all their texts.
        pairs: The training pairs.
        count: Negatives per query.
        stop: Give up when this is set.
        ranks: Those that share out the queries.

    Raises:
        StopRequestedError: `stop` was set.
    """
    query_QD, text_TD = functional.normalize(query_QD, dim=-1), functional.normalize(text_TD, dim=-1)
    order = np.argsort(pairs.query, kind="stable")
    ends = np.searchsorted(pairs.query[order], np.arange(len(query_QD) + 1))
    product, limit_Q = _same_text(pairs), torch.from_numpy(_limits(query_QD, text_TD, pairs))
    wanted = count - np.bincount(pairs.query, weights=~pairs.relevant, minlength=len(query_QD)).astype(np.int64)
    alike = np.bincount(pairs.query, weights=np.bincount(product)[product[pairs.text]])  # no fewer than cannot be taken
    nearest = min(len(text_TD), count + int(alike.max(initial=0)))
    at_once = max(1, CELLS // max(len(text_TD), 1))
    shares = np.array_split(np.arange(len(query_QD)), ranks.size)
    own, stopped = shares[ranks.rank], False
    own_mined = np.full((len(own), count), -1, np.int32)
    for start in range(0, len(own), at_once):
        if stop is not None and stop.is_set():
            stopped = True
            break
        part = slice(own[start], own[min(start + at_once, len(own)) - 1] + 1)
        scores_QT = query_QD[part] @ text_TD.t()
        too_near = scores_QT >= limit_Q[part, None].to(scores_QT.device)
        values, texts = scores_QT.masked_fill_(too_near, float("-inf")).topk(nearest, dim=1)
        found = np.where(values.isfinite().cpu().numpy(), texts.cpu().numpy(), -1)
        for query in range(part.start, part.stop):
            judged = pairs.text[order[ends[query] : ends[query + 1]]]
            candidates = found[query - part.start][found[query - part.start] >= 0]
            taken = candidates[~np.isin(product[candidates], product[judged])][: max(wanted[query], 0)]
            own_mined[query - own[0], : len(taken)] = taken
    if ranks.any_after_work(stopped, "mining"):
        raise StopRequestedError
    mined: np.ndarray = ranks.collect(torch.from_numpy(own_mined), shares, everywhere=True).numpy()
    log.info("mined %d hard negatives for %d queries", int((mined >= 0).sum()), int((mined >= 0).any(1).sum()))
    return mined


def _limits(query_QD: Tensor, text_TD: Tensor, pairs: Pairs) -> np.ndarray:
    """Return the similarity [Q] that a negative of each query stays below; -inf where no text is relevant."""
    limits = np.full(len(query_QD), np.inf, np.float32)
    relevant = np.flatnonzero(pairs.relevant)
    for part in np.array_split(relevant, 1 + len(relevant) // PAIRS_AT_ONCE):
        rows, texts = (torch.from_numpy(side[part].astype(np.int64)) for side in (pairs.query, pairs.text))
        cosines = (query_QD[rows] * text_TD[texts]).sum(-1).cpu().numpy()
        np.minimum.at(limits, pairs.query[part], cosines)
    return np.where(np.isinf(limits), -np.inf, np.minimum(GUARD * limits, limits)).astype(np.float32)


def _same_text(pairs: Pairs) -> np.ndarray:
    """Return a number for each text [T], equal for texts that differ in case or Unicode form alone."""
    codes: np.ndarray = fold(pairs.texts).dictionary_encode().indices.to_numpy()
    return codes
