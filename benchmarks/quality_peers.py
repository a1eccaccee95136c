"""sentence-transformers with PEFT on the pairs of `quality.py`, trained as its documentation shows."""

from __future__ import annotations

import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from homedepot import METRICS, Embed, bundled, quality
from lorry.data.pairs import Pairs

LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": ["query", "key", "value", "dense"]}
BATCH_SIZE = 96
# Learning rates that a loss chooses from; two take CoSENT's choice, since a trial takes minutes.
RATES = {
    "CoSENT": (2.5e-4, 5e-4, 1e-3),
    "MNRL": (2.5e-4, 5e-4, 1e-3),
    "AnglE": (5e-4,),
    "OnlineContrastive": (5e-4,),
}
TUNED_ON = 6_000  # pairs, to choose it
LOSSES = {
    "CoSENT": "CoSENTLoss",
    "AnglE": "AnglELoss",
    "MNRL": "MultipleNegativesRankingLoss",
    "OnlineContrastive": "OnlineContrastiveLoss",
}
IN_OUR_TIME = ", in the time of Lorry's epoch"
PEERS = [f"sentence-transformers, {loss}{time}" for time in ("", IN_OUR_TIME) for loss in LOSSES]


_CHOSEN: dict[str, float] = {}  # learning rate of each loss
_SECONDS: dict[str, float] = {}  # of a step, as last measured


class Trained(NamedTuple):
    """A model of sentence-transformers."""

    embed: Embed
    seconds: float


def train(
    name: str, pairs: Pairs, tuning: Pairs, validation: Pairs, precision: str, limit: float
) -> tuple[Trained, float]:
    """Train for an epoch with the learning rate that does best on validation after training on `tuning`.

    Args:
        name: One of `PEERS`.
        pairs: What to train on.
        tuning: What to choose the learning rate on.
        validation: What to choose it by.
        precision: bf16 or fp32.
        limit: Seconds of a row that is trained in Lorry's time.

    Returns:
        The model, and the learning rate.
    """
    loss = name.removesuffix(IN_OUR_TIME).rpartition(", ")[2]
    if loss not in _CHOSEN:
        _CHOSEN[loss] = _choose(loss, tuning, validation, precision)
    rate = _CHOSEN[loss]
    if not name.endswith(IN_OUR_TIME):
        return _train(loss, pairs, precision, rate), rate
    if loss not in _SECONDS:
        _train(loss, tuning, precision, rate)
    return _train(loss, pairs, precision, rate, int(limit / _SECONDS[loss])), rate


def _choose(loss: str, tuning: Pairs, validation: Pairs, precision: str) -> float:
    """Return the learning rate that does best on validation."""
    if len(RATES[loss]) == 1:
        return RATES[loss][0]
    return max(RATES[loss], key=lambda rate: _criterion(validation, _train(loss, tuning, precision, rate).embed))


def cross_encoder(pairs: Pairs, precision: str) -> np.ndarray:
    """Train the base model as a cross-encoder on the pairs, for an epoch; return its score of each pair [N], 0 to 1."""
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model = CrossEncoder(str(bundled().folder), num_labels=1, device="cpu", local_files_only=True)
    shared = _arguments(precision, 5e-5)
    rows = _rows("CoSENT", pairs).rename_column("score", "label")
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**shared),
        train_dataset=rows,
        loss=BinaryCrossEntropyLoss(model),
    )
    trainer.train()
    model.eval()
    together = list(zip(rows["sentence1"], rows["sentence2"], strict=True))
    return np.asarray(model.predict(together, batch_size=64, show_progress_bar=False), dtype=np.float32)


def _criterion(pairs: Pairs, embed: Embed) -> float:
    found = quality(pairs, embed)
    return sum(found[key] for key in METRICS)


def _train(loss: str, pairs: Pairs, precision: str, rate: float, max_steps: int = -1) -> Trained:
    from peft import LoraConfig, TaskType
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers.training_args import BatchSamplers

    model = SentenceTransformer(str(bundled().folder), device="cpu", local_files_only=True)
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, **LORA))
    sampler = BatchSamplers.NO_DUPLICATES if loss == "MNRL" else BatchSamplers.BATCH_SAMPLER
    arguments = SentenceTransformerTrainingArguments(
        **_arguments(precision, rate), max_steps=max_steps, batch_sampler=sampler
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=_rows(loss, pairs), loss=getattr(losses, LOSSES[loss])(model)
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    _SECONDS[loss] = seconds / trainer.state.global_step
    model.eval()

    def embed(texts: list[str]) -> Tensor:
        with torch.inference_mode():
            return model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_tensor=True).float()

    return Trained(embed, seconds)


def _arguments(precision: str, rate: float) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": BATCH_SIZE,
        "num_train_epochs": 1,
        "learning_rate": rate,
        "warmup_steps": 0.1,
        "bf16": precision == "bf16",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 42,
    }


def _rows(loss: str, pairs: Pairs) -> Any:
    """Return the pairs as the loss wants them: with grades, with 0/1, or the relevant ones alone."""
    from datasets import Dataset

    queries, texts = pairs.queries.take(pairs.query), pairs.texts.take(pairs.text)
    if loss == "MNRL":
        return Dataset.from_dict({"anchor": queries.to_pylist(), "positive": texts.to_pylist()}).select(
            pairs.relevant.nonzero()[0]
        )
    label = pairs.relevant.astype(int) if loss == "OnlineContrastive" else pairs.gain / pairs.highest_gain
    name = "label" if loss == "OnlineContrastive" else "score"
    return Dataset.from_dict({"sentence1": queries.to_pylist(), "sentence2": texts.to_pylist(), name: label.tolist()})
