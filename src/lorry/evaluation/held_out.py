"""What a model gives the held-out pairs of a run."""

from __future__ import annotations

import threading

from lorry.evaluation.scoring import SplitScores, score
from lorry.model.encoder import Encoder
from lorry.model.pretrained import PretrainedModel
from lorry.training.setup import TrainingSetup


def score_split(setup: TrainingSetup, encoder: Encoder, split: str, stop: threading.Event | None) -> SplitScores:
    """Return what an encoder gives the pairs of one split."""
    documents_TD = setup.documents.get(split)
    return score(encoder, setup.texts[split], setup.splits[split], setup.config, stop, documents_TD, setup.ranks)


def score_model(setup: TrainingSetup, model: PretrainedModel, stop: threading.Event | None) -> dict[str, SplitScores]:
    """Return what a model on disk gives the pairs of every split but that of training."""
    encoder = Encoder(model, setup.encoder.precision, setup.encoder.device)
    return {name: score_split(setup, encoder, name, stop) for name in setup.splits if name != "train"}
