"""What a run stands on: pairs read, texts tokenised once, the base model loaded, adapters attached."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs, read_splits
from lorry.data.sampler import BatchSampler
from lorry.hardware import choose_precision, describe, make_accelerator
from lorry.model.encoder import Encoder
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.model.tokens import TokenizedTexts, tokenize
from lorry.training.checkpoint import precision_of_checkpoint

log = logging.getLogger("lorry")


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that training needs and does not change, the encoder's adapters apart."""

    config: TrainConfig
    accelerator: Accelerator
    base: PretrainedModel
    encoder: Encoder
    splits: dict[str, Pairs]
    texts: dict[str, TokenizedTexts]
    """The texts of each split."""
    sampler: BatchSampler
    """Of the training pairs."""


def prepare(config: TrainConfig) -> TrainingSetup:
    """Read the pairs, load the base model, attach the adapters and tokenise every text once.

    A run that continues computes in the precision of its checkpoint, whatever this device would choose.

    Raises:
        UserError: Pairs, model or options are not as they should be.
    """
    set_seed(config.seed)
    begun = precision_of_checkpoint(Path(config.checkpoint_dir)) if config.checkpoint_dir else ""
    accelerator, precision = make_accelerator(begun if begun and config.precision == "auto" else config.precision)
    if begun and choose_precision("auto", accelerator.device) != begun == precision:
        log.warning("continuing in %s, as the run began: on this device it may be slow", precision)
    base = find_pretrained(config.pretrained_model, config.max_length)
    attention = "packed" if base.architecture.packs else f"padded ({base.model_type} models cannot be packed)"
    log.info("%s", describe(accelerator.device, precision, attention))
    splits = read_splits(config)
    encoder = Encoder(base, precision, accelerator.device)
    encoder.add_lora(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_targets,
        seed=config.seed,
    )
    texts = {name: tokenize(pairs, base) for name, pairs in splits.items()}
    sampler = BatchSampler(splits["train"].query, config.batch_size, config.epochs, config.seed)
    weights = sum(weight.numel() for weight in encoder.adapters().values())
    log.info("training %s weights of %s, %d pairs per optimizer step", f"{weights:,}", base.name, config.batch_size)
    return TrainingSetup(config, accelerator, base, encoder, splits, texts, sampler)
