"""What a run stands on: pairs read, texts tokenised once, the base model loaded, adapters attached."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs, read_splits
from lorry.data.probe import read_probe
from lorry.data.sampler import BatchSampler
from lorry.distributed.ranks import ALONE, Ranks
from lorry.errors import UserError
from lorry.hardware import choose_precision, describe, make_accelerator
from lorry.loss_sum import dims_of
from lorry.model.encoder import Encoder
from lorry.model.merge import DOCUMENT_MODEL
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.model.shared_embedding import embed_shared
from lorry.model.tokens import TokenizedTexts, tokenize
from lorry.training.checkpoint import precision_of_checkpoint

log = logging.getLogger("lorry")

FULL_LR = 2e-4  # a higher learning rate is one for adapters


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that training needs and does not change, the encoder's adapters apart."""

    config: TrainConfig
    accelerator: Accelerator
    base: PretrainedModel
    encoder: Encoder
    splits: dict[str, Pairs]
    texts: dict[str, TokenizedTexts]
    """The texts of each split, and of the probe."""
    sampler: BatchSampler
    """Of the training pairs."""
    documents: dict[str, Tensor] = field(default_factory=dict)
    """Embeddings [T, D] of each split's product texts, on the CPU, where queries alone are trained: see
    `with_documents`."""
    ranks: Ranks = ALONE
    probe: Pairs | None = None
    """Sentences that show what a model forgets, if there are any."""


def prepare(config: TrainConfig, ranks: Ranks = ALONE) -> TrainingSetup:
    """Read the pairs, load the base model, attach the adapters and tokenise every text once, or once a host.

    A run that continues computes in the precision of its checkpoint, whatever this device would choose.

    Args:
        config: The hyperparameters.
        ranks: Those that share the run.

    Raises:
        UserError: Pairs, model or options are not as they should be.
    """
    set_seed(config.seed)
    begun, asked = ranks.from_first(lambda: _precisions(config), "looking at checkpoints")
    accelerator, precision = make_accelerator(asked)
    if begun and choose_precision("auto", accelerator.device) != begun == precision:
        log.warning("continuing in %s, as the run began: on this device it may be slow", precision)
    base = ranks.once_a_host(
        lambda: find_pretrained(config.pretrained_model, config.max_length), "finding the base model"
    )
    if (base.folder / DOCUMENT_MODEL).is_dir():
        raise UserError(
            f"{config.pretrained_model} is a model of queries alone: products have another, in its {DOCUMENT_MODEL}/",
            "Give a model of both as --pretrained_model, such as the one that it was trained from.",
        )
    if base.standardizer and config.standardize != "none":
        raise UserError(f"{config.pretrained_model} is standardised already", "Leave out --standardize.")
    attention = "packed" if base.architecture.packs else f"padded ({base.model_type} models cannot be packed)"
    log.info("%s", describe(accelerator.device, precision, attention, ranks.local_size))
    splits = ranks.once_a_host(lambda: read_splits(config), "reading the pairs")
    probe = ranks.once_a_host(lambda: read_probe(config.probe), "reading the probe") if config.probe else None
    check_teacher(config, splits["train"])
    encoder = trainable_encoder(config, base, precision, accelerator.device)
    tables = splits | ({"probe": probe} if probe else {})
    texts = ranks.once_a_host(
        lambda: {name: tokenize(pairs, base) for name, pairs in tables.items()}, "tokenising the texts"
    )
    sampler = BatchSampler(splits["train"].query, config.batch_size, config.epochs, config.seed)
    weights = sum(weight.numel() for weight in encoder.trainable().values())
    log.info("training %s weights of %s, %d pairs per optimizer step", f"{weights:,}", base.name, config.batch_size)
    return TrainingSetup(config, accelerator, base, encoder, splits, texts, sampler, ranks=ranks, probe=probe)


def _precisions(config: TrainConfig) -> tuple[str, str]:
    """Return the precision in which the run began, if it is continued, and the one to compute in.

    With several ranks, rank 0 chooses for all: its hardware and its checkpoints count.
    """
    begun = precision_of_checkpoint(Path(config.checkpoint_dir)) if config.checkpoint_dir else ""
    asked = begun if begun and config.precision == "auto" else config.precision
    return begun, choose_precision(asked, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def with_documents(setup: TrainingSetup) -> TrainingSetup:
    """Return the setup with the products' embeddings, which stay as they are where queries alone are trained."""
    config, encoder = setup.config, setup.encoder
    if config.train_side == "both":
        return setup
    log.info("embedding the products once, with the base model")
    documents = {
        name: embed_shared(encoder, texts, config.eval_batch_size, ranks=setup.ranks, side="document")
        for name, texts in setup.texts.items()
    }
    return replace(setup, documents=documents)


def trainable_encoder(config: TrainConfig, base: PretrainedModel, precision: str, device: torch.device) -> Encoder:
    """Load the base model with what is trained: adapters, or all of its weights.

    Raises:
        UserError: The model cannot be trained so.
    """
    encoder = Encoder(base, precision, device, master_weights=config.lora_rank == 0)
    if config.train_side == "query" and config.loss == TrainConfig.loss:
        log.warning("the default loss suits both sides; for train_side query take --loss infonce --lr 3e-4")
    for dim in dims_of(config.matryoshka_dims):
        if dim >= encoder.width:
            raise UserError(
                f"matryoshka_dims has {dim}, and embeddings of {base.name} have {encoder.width} numbers",
                "Give smaller dimensions.",
            )
    if config.lora_rank == 0:
        if config.lr > FULL_LR:
            log.warning("lr %g is high for full fine-tuning, which takes about a tenth of that for adapters", config.lr)
        encoder.unfreeze()
        return encoder
    encoder.add_lora(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_targets,
        seed=config.seed,
    )
    return encoder


def check_teacher(config: TrainConfig, train: Pairs) -> None:
    """Check that there are scores for a loss that learns from a teacher.

    Raises:
        UserError: The training pairs have no scores of a teacher, or not on the scale of cosines.
    """
    if not config.learns_from_teacher:
        return
    if train.teacher is None or not np.isfinite(train.teacher).any():
        raise UserError(
            f"the loss {config.loss} needs a teacher's scores, and the training pairs have none",
            "Add a column teacher_score, or name the column: --teacher_column NAME",
        )
    lowest, highest = float(np.nanmin(train.teacher)), float(np.nanmax(train.teacher))
    if lowest < -1 or highest > 1:
        raise UserError(
            f"the teacher's scores go from {lowest:g} to {highest:g}, and cosines from -1 to 1",
            "Put them on a scale from 0 to 1, e.g. by the sigmoid of a cross-encoder's logits.",
        )
