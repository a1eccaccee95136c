"""The training loop, top to bottom.

A step: the batch's unique queries and texts are encoded in one forward pass, the loss compares them, AdamW updates the
adapters. A batch too large for one pass is encoded in parts and still makes the same update (see `update.py`); how many
tokens fit is measured before the first step, and halved where memory runs out all the same.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.data.sampler import BatchSampler
from lorry.errors import UserError
from lorry.model.shared_embedding import embed_shared
from lorry.outputs import OutputError
from lorry.signals import StopRequestedError
from lorry.training.ahead import Ahead
from lorry.training.batches import Batch, make_batch
from lorry.training.checkpoint import COUNTERS, Checkpoint, CheckpointStore, optimizer_moments, restore_moments
from lorry.training.memory import tokens_that_fit
from lorry.training.mining import mine
from lorry.training.progress import TrainingLog
from lorry.training.selection import Best
from lorry.training.update import Parts, Trainer

log = logging.getLogger("lorry")

NEGATIVES = "mined negatives"  # in a checkpoint, beside the weights of the best epoch

Validate = Callable[[], tuple[float, dict[str, float]]]
"""Returns the loss and the metrics of the validation pairs."""
Sample = Callable[[], dict[str, float]]
"""Returns metrics of a sample of the validation queries."""


@dataclass
class Progress:
    """What training has done so far, over all runs of it."""

    step: int = 0
    pairs: int = 0
    tokens: int = 0
    seconds: float = 0.0
    micro_batch_tokens: int | None = None
    """Maximum tokens of a forward pass: kept, so that a run that continues divides its batches in the same way."""
    evaluating: float = 0.0
    """Seconds that this process's evaluations took, which are no part of `seconds`."""
    stopped: bool = False
    unsaved: OutputError | None = None
    """Why the last checkpoint could not be written, if it could not."""
    losses: list[Tensor] = field(default_factory=list)
    """Since the last logged line."""
    best: Best = field(default_factory=Best)
    negatives: np.ndarray | None = None
    """[queries, k] texts mined for this epoch."""
    weights_of_step: int = 0
    """After training: optimizer steps at the end of the epoch whose weights the encoder has."""

    def add(self, batch: Batch, tokens: int, loss: Tensor) -> None:
        """Count an optimizer step."""
        self.step += 1
        self.pairs += batch.pairs
        self.tokens += tokens
        self.losses.append(loss)


def fit(
    trainer: Trainer,
    pairs: Pairs,
    sampler: BatchSampler,
    training_log: TrainingLog,
    *,
    validate: Validate,
    sample: Sample | None = None,
    store: CheckpointStore | None = None,
    stop: threading.Event | None = None,
) -> Progress:
    """Train the encoder's adapters.

    Args:
        trainer: Makes the optimizer steps; its adapters are changed in place.
        pairs: What to learn from.
        sampler: Says which pairs make which batch.
        training_log: Where progress is logged.
        validate: Called at the end of every epoch.
        sample: Called `evals_per_epoch` times an epoch, but not at its end.
        store: Checkpoints; the newest is continued.
        stop: When this is set, the step is finished, a checkpoint written, and training ends.

    Returns:
        What was done, with `stopped` set where it ended early.

    Raises:
        UserError: The loss is no longer finite, a checkpoint belongs to another run, or memory or disk is too small.
    """
    config, texts, device, ranks = trainer.config, trainer.texts, trainer.accelerator.device, trainer.ranks
    progress = _resume(store, trainer, training_log)
    trainer.max_tokens = config.micro_batch_tokens or progress.micro_batch_tokens or _tokens_that_fit(trainer)

    def make(step: int) -> tuple[Batch, Parts]:
        batch = make_batch(texts, pairs, sampler.batch(step), device, progress.negatives)
        return batch, trainer.parts(batch)

    began = time.perf_counter() - progress.seconds
    with training_log.running(progress.step), Ahead(make) as batches:
        while not progress.stopped:
            try:
                if progress.step % sampler.steps_per_epoch == 0:
                    began += _evaluate(trainer, sampler, progress, training_log, validate)
                    if _is_done(progress, sampler, config):
                        break
                    if config.hard_negatives:
                        progress.negatives = _mine(trainer, pairs, stop)
                elif sample is not None:
                    began += _sample(config, sampler, progress, training_log, sample)
            except StopRequestedError:  # a continued run does this first
                progress.stopped = True
                _save(store, trainer, progress, training_log)
                break
            in_epoch = (progress.step + 1) % sampler.steps_per_epoch > 0  # another epoch may have other negatives
            batch, parts = batches.take(progress.step, more=in_epoch)
            lr = learning_rate(progress.step, sampler.steps, config)
            loss = trainer.step(batch, progress.step, lr, parts)

            progress.add(batch, parts.tokens, loss)
            progress.micro_batch_tokens = trainer.max_tokens
            progress.seconds = time.perf_counter() - began
            training_log.step(batch.pairs)
            at_end = progress.step >= sampler.steps
            # Training may end with every epoch.
            if progress.step % sampler.steps_per_epoch == 0 or progress.step % config.log_every == 0:
                mean = _mean(progress.losses, progress.step)
                training_log.train(progress.step, sampler.epoch(progress.step), loss=mean, lr=lr)
                progress.losses.clear()
            progress.stopped = ranks.any(stop is not None and stop.is_set())
            if at_end or progress.stopped or progress.step % config.checkpoint_every == 0:
                _save(store, trainer, progress, training_log)
    progress.weights_of_step = progress.step
    if progress.best.step not in (0, progress.step) and not progress.stopped:
        progress.weights_of_step = progress.best.step
        log.info("taking the weights of epoch %d, which ranked best on validation", sampler.epoch(progress.best.step))
        progress.best.restore(trainer.weights)
    return progress


def _tokens_that_fit(trainer: Trainer) -> int:
    """Return how many tokens every rank has memory for in a forward pass; on a CPU the ranks of a host share it."""
    ranks = trainer.ranks
    fit = tokens_that_fit(trainer.encoder, trainer.texts)
    return ranks.smallest(fit if trainer.encoder.device.type == "cuda" else max(1, fit // ranks.local_size))


def _evaluate(
    trainer: Trainer, sampler: BatchSampler, progress: Progress, training_log: TrainingLog, validate: Validate
) -> float:
    """Evaluate the epoch that has ended, if one has and was not evaluated before; return the seconds that it took."""
    if progress.step == 0 or training_log.evaluated(progress.step):
        return 0.0
    began = time.perf_counter()
    loss, metrics = validate()
    training_log.evaluate(progress.step, sampler.epoch(progress.step), loss=loss, metrics=metrics)
    if trainer.config.best_epoch and trainer.config.epochs > 1:
        progress.best.offer(progress.step, metrics, trainer.weights)
    return _evaluated(began, progress, training_log)


def _sample(
    config: TrainConfig, sampler: BatchSampler, progress: Progress, training_log: TrainingLog, sample: Sample
) -> float:
    """Measure the sample where a point of the curve is due and was not measured before; return the seconds it took."""
    step, steps, points = progress.step % sampler.steps_per_epoch, sampler.steps_per_epoch, config.evals_per_epoch
    if step * points // steps == (step - 1) * points // steps or training_log.sampled(progress.step):
        return 0.0
    began = time.perf_counter()
    training_log.sample(progress.step, sampler.epoch(progress.step), sample())
    return _evaluated(began, progress, training_log)


def _evaluated(began: float, progress: Progress, training_log: TrainingLog) -> float:
    """Count an evaluation that began then, and return the seconds that it took."""
    seconds = time.perf_counter() - began
    progress.evaluating += seconds
    training_log.pause(seconds)
    return seconds


def _is_done(progress: Progress, sampler: BatchSampler, config: TrainConfig) -> bool:
    """Return whether all epochs are done, or none ranked better for `patience` epochs."""
    if progress.step >= sampler.steps:
        return True
    waited = (progress.step - progress.best.step) // sampler.steps_per_epoch
    if not config.patience or not progress.best.step or waited < config.patience:
        return False
    log.info(
        "training ends early: no epoch ranked better on validation since epoch %d", sampler.epoch(progress.best.step)
    )
    return True


def _mine(trainer: Trainer, pairs: Pairs, stop: threading.Event | None) -> np.ndarray:
    """Return the hard negatives of the next epoch, by the encoder as it is now.

    Raises:
        StopRequestedError: `stop` was set.
    """
    encoder, texts, size, ranks = trainer.encoder, trainer.texts, trainer.config.eval_batch_size, trainer.ranks
    text_TD = trainer.documents_TD
    if text_TD is None:
        text_TD = embed_shared(encoder, texts, size, stop, ranks, side="document")
    query_QD = embed_shared(encoder, texts, size, stop, ranks, side="query")
    device = encoder.device
    return mine(query_QD.to(device), text_TD.to(device), pairs, trainer.config.hard_negatives, stop, ranks)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step: a linear rise over the warm-up, then a linear fall towards 0."""
    rise = int(steps * config.warmup)
    share = (step + 1) / (rise + 1) if step < rise else (steps - step) / max(steps - rise, 1)
    return config.lr * share


def _mean(losses: list[Tensor], step: int) -> float:
    mean = torch.stack(losses).mean().item()
    if not math.isfinite(mean):
        raise UserError(f"training loss is {mean} at step {step}", "Lower lr, or take another precision.")
    return mean


def _resume(store: CheckpointStore | None, trainer: Trainer, training_log: TrainingLog) -> Progress:
    checkpoint = trainer.ranks.from_first(store.load, "reading the checkpoint") if store is not None else None
    if checkpoint is None:
        return Progress()
    for name, weight in trainer.weights.items():
        weight.data.copy_(checkpoint.adapters[name])
    restore_moments(trainer.optimizer, list(trainer.weights), checkpoint.moments)
    if trainer.accelerator.scaler is not None and checkpoint.progress["scaler"]:
        trainer.accelerator.scaler.load_state_dict(checkpoint.progress["scaler"])
    training_log.lines = checkpoint.log_lines
    kept, device = dict(checkpoint.kept), trainer.accelerator.device
    negatives = kept.pop(NEGATIVES, None)
    step, score = checkpoint.progress["best"]
    log.info("continuing after step %d", checkpoint.step)
    return Progress(
        **checkpoint.progress["counters"],
        losses=[torch.tensor(loss, device=device) for loss in checkpoint.progress["losses"]],
        best=Best(step, score, kept),
        negatives=None if negatives is None else negatives.numpy(),
    )


def _save(store: CheckpointStore | None, trainer: Trainer, progress: Progress, training_log: TrainingLog) -> None:
    if store is None or not trainer.ranks.first:
        return
    try:
        store.save(_checkpoint(trainer, progress, training_log))
        progress.unsaved = None
    except OutputError as error:  # training itself goes on
        progress.unsaved = error
        log.warning("no checkpoint at step %d: %s", progress.step, error)


def _checkpoint(trainer: Trainer, progress: Progress, training_log: TrainingLog) -> Checkpoint:
    scaler = trainer.accelerator.scaler
    kept = dict(progress.best.weights)
    if progress.negatives is not None:
        kept[NEGATIVES] = torch.from_numpy(progress.negatives)
    return Checkpoint(
        progress.step,
        {name: weight.detach().cpu().contiguous() for name, weight in trainer.weights.items()},
        optimizer_moments(trainer.optimizer, list(trainer.weights)),
        kept,
        {
            "counters": {name: getattr(progress, name) for name in sorted(COUNTERS)},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "losses": [loss.item() for loss in progress.losses],
            "best": [progress.best.step, progress.best.score],
        },
        training_log.lines,
    )
