"""What a model gives the held-out pairs of a run, and what it finds among all of the run's products."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lorry.data.pairs import Pairs
from lorry.distributed.ranks import Ranks
from lorry.evaluation import scoring
from lorry.evaluation.catalogue import Catalogue, make_catalogue
from lorry.evaluation.evidence import Evidence, Sides, gather_evidence, product_embeddings
from lorry.evaluation.scoring import SplitScores
from lorry.model.encoder import Encoder
from lorry.model.shared_embedding import embed_shared
from lorry.model.standardizing import Standardizer, fit_standardizer
from lorry.model.tokens import TokenizedTexts
from lorry.signals import StopRequestedError
from lorry.training.setup import TrainingSetup

T = TypeVar("T")

STANDARDIZING = 20_000  # training products whose embeddings are enough to standardise by


@dataclass(frozen=True)
class ModelScores:
    """What a model gives every split but that of training."""

    splits: dict[str, SplitScores]
    evidence: Evidence = field(default_factory=Evidence)
    probe: np.ndarray | None = None
    """[N] cosine of the probe's pairs, if there is one."""


def score_split(setup: TrainingSetup, encoder: Encoder, split: str, stop: threading.Event | None) -> SplitScores:
    """Return what an encoder gives the pairs of one split."""
    documents_TD = setup.documents.get(split)
    return scoring.score(
        encoder, setup.texts[split], setup.splits[split], setup.config, stop, documents_TD, setup.ranks
    )


def catalogue_of(setup: TrainingSetup) -> Catalogue | None:
    """Return what full-catalogue search looks through in a run; None where it is not wanted, or nothing to search."""
    config = setup.config
    if not config.search_products:
        return None

    def make() -> Catalogue:
        return make_catalogue(setup.splits, config.search_products, config.seed, but="train")

    made = setup.ranks.once_a_host(make, "gathering the catalogue")
    return made if made.queries else None


def score_encoder(
    setup: TrainingSetup,
    encoder: Encoder,
    catalogue: Catalogue | None,
    stop: threading.Event | None,
    *,
    economics: bool = False,
) -> ModelScores:
    """Return what an encoder gives every split but that of training, and what it finds in the catalogue.

    Args:
        setup: What the run stands on.
        encoder: The model.
        catalogue: From `catalogue_of`.
        stop: Give up when this is set.
        economics: Whether to measure what smaller forms of its vectors cost.

    Raises:
        StopRequestedError: `stop` was set.
        UserError: A similarity is not a finite number.
    """
    config, ranks = setup.config, setup.ranks
    scores: dict[str, SplitScores] = {}
    sides: dict[str, Sides] = {}
    for name in setup.splits:
        if name == "train":
            continue
        texts = setup.texts[name]
        all_ND = scoring.embed_pairs(encoder, texts, config, stop, setup.documents.get(name), ranks)
        scores[name] = scoring.score_embeddings(all_ND, texts, setup.splits[name], config, ranks)
        if catalogue:  # else no split's embeddings are kept
            sides[name] = all_ND[: texts.queries], all_ND[texts.queries :]
    probe = _probe_scores(setup, encoder, stop)
    if not catalogue:
        return ModelScores(scores, probe=probe)
    began = time.perf_counter()
    train_PD = _train_products(setup, encoder, catalogue, stop)

    def evidence() -> Evidence:
        product_CD = product_embeddings(catalogue, {name: both[1] for name, both in sides.items()}, train_PD)
        about = split_of_verdict(setup.splits) if economics else ""
        return gather_evidence(catalogue, setup.splits, sides, product_CD, config, economics_of=about, stop=stop)

    found = _unless_stopped(ranks, evidence, "searching the catalogue")
    return ModelScores(scores, replace(found, seconds=time.perf_counter() - began), probe)


def _probe_scores(setup: TrainingSetup, encoder: Encoder, stop: threading.Event | None) -> np.ndarray | None:
    """Return the cosine of each pair of the probe, [N]; None without one."""
    probe, ranks = setup.probe, setup.ranks
    if probe is None:
        return None
    texts = setup.texts["probe"]
    all_ND = scoring.embed_pairs(encoder, texts, setup.config, stop, setup.documents.get("probe"), ranks)
    return ranks.from_first(
        lambda: scoring.cosines(probe, all_ND[: texts.queries], all_ND[texts.queries :]), "scoring the probe"
    )


def split_of_verdict(splits: dict[str, Pairs]) -> str:
    """Return the split that a run is judged by: test, else validation."""
    return "test" if "test" in splits else "validation"


def fitted_standardizer(setup: TrainingSetup, stop: threading.Event | None) -> Standardizer:
    """Return on every rank what standardises the encoder's embeddings, by those of the training products.

    Raises:
        StopRequestedError: `stop` was set.
    """
    encoder, base = setup.encoder, setup.encoder.base
    some, size = _some(setup.texts["train"], standardizing_rows(setup)), setup.config.eval_batch_size
    encoder.base = replace(base, normalize=False)  # it comes before the normalisation
    try:
        product_PD = embed_shared(encoder, some, size, stop, setup.ranks, everywhere=False)
    finally:
        encoder.base = base
    kind = setup.config.standardize
    made = setup.ranks.from_first(lambda: fit_standardizer(kind, product_PD), "standardising embeddings")
    return made.to(encoder.device)


def standardizing_rows(setup: TrainingSetup) -> np.ndarray:
    """Return the rows, in the training texts, of the products that embeddings are standardised by."""
    texts = setup.texts["train"]
    products = len(texts) - texts.queries
    rng = np.random.default_rng(setup.config.seed)
    return np.sort(rng.choice(products, min(products, STANDARDIZING), replace=False)) + texts.queries


def _some(texts: TokenizedTexts, rows: np.ndarray) -> TokenizedTexts:
    """Return a table of these texts alone."""
    own = texts.take(rows)
    return TokenizedTexts(own.ids, np.append(0, np.cumsum(own.lengths)), 0)


def _train_products(
    setup: TrainingSetup, encoder: Encoder, catalogue: Catalogue, stop: threading.Event | None
) -> Tensor:
    """Return the embeddings of the catalogue's products that come from the training pairs, of length 1, on rank 0."""
    rows = catalogue.rows["train"]
    rows = rows[rows >= 0]
    if not len(rows):
        return torch.empty(0, encoder.width)
    if "train" in setup.documents:
        found_PD = setup.documents["train"][torch.from_numpy(rows)]
    else:
        texts = setup.texts["train"]
        some = _some(texts, rows + texts.queries)
        found_PD = embed_shared(encoder, some, setup.config.eval_batch_size, stop, setup.ranks, everywhere=False)
    return torch.nn.functional.normalize(found_PD, dim=-1)


def _unless_stopped(ranks: Ranks, make: Callable[[], T], what: str) -> T:
    """Return on every rank what `make` returns on rank 0.

    Raises:
        StopRequestedError: `make` has raised it there.
    """

    def guarded() -> T | None:
        try:
            return make()
        except StopRequestedError:  # the others wait for an answer
            return None

    made = ranks.from_first(guarded, what)
    if made is None:
        raise StopRequestedError
    return made
