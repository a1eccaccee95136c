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
from dataclasses import dataclass

import torch
from torch import Tensor

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.data.sampler import BatchSampler
from lorry.errors import UserError
from lorry.outputs import OutputError
from lorry.signals import StopRequestedError
from lorry.training.batches import make_batch
from lorry.training.checkpoint import COUNTERS, Checkpoint, CheckpointStore, optimizer_moments, restore_moments
from lorry.training.memory import tokens_that_fit
from lorry.training.progress import TrainingLog
from lorry.training.update import Trainer

log = logging.getLogger("lorry")

Validate = Callable[[], tuple[float, dict[str, float]]]
"""Returns the loss and the metrics of the validation pairs."""


@dataclass
class Progress:
    """What training has done so far, over all runs of it."""

    step: int = 0
    pairs: int = 0
    tokens: int = 0
    seconds: float = 0.0
    micro_batch_tokens: int | None = None
    """Maximum tokens of a forward pass: kept, so that a run that continues divides its batches in the same way."""
    stopped: bool = False
    unsaved: OutputError | None = None
    """Why the last checkpoint could not be written, if it could not."""


def fit(
    trainer: Trainer,
    pairs: Pairs,
    sampler: BatchSampler,
    training_log: TrainingLog,
    *,
    validate: Validate,
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
        store: Checkpoints; the newest is continued.
        stop: When this is set, the step is finished, a checkpoint written, and training ends.

    Returns:
        What was done, with `stopped` set where it ended early.

    Raises:
        UserError: The loss is no longer finite, a checkpoint belongs to another run, or memory or disk is too small.
    """
    config, texts, device = trainer.config, trainer.texts, trainer.accelerator.device
    losses: list[Tensor] = []  # since the last logged line
    progress = _resume(store, trainer, training_log, losses)
    trainer.max_tokens = (
        config.micro_batch_tokens or progress.micro_batch_tokens or tokens_that_fit(trainer.encoder, texts)
    )

    def save() -> None:
        if store is None:
            return
        try:
            store.save(_checkpoint(trainer, progress, training_log, losses))
            progress.unsaved = None
        except OutputError as error:  # training itself goes on
            progress.unsaved = error
            log.warning("no checkpoint at step %d: %s", progress.step, error)

    began = time.perf_counter() - progress.seconds
    with training_log.running(progress.step):
        while not progress.stopped:
            at_epoch_end = progress.step > 0 and progress.step % sampler.steps_per_epoch == 0
            if at_epoch_end and not training_log.evaluated(progress.step):
                paused = time.perf_counter()
                try:
                    loss, metrics = validate()
                except StopRequestedError:  # a continued run evaluates here first
                    progress.stopped = True
                    save()
                    break
                epoch = progress.step / sampler.steps_per_epoch
                training_log.evaluate(progress.step, epoch=epoch, split="validation", loss=loss, metrics=metrics)
                began += time.perf_counter() - paused
            if progress.step >= sampler.steps:
                break
            batch = make_batch(texts, pairs, sampler.batch(progress.step), device)
            lr = learning_rate(progress.step, sampler.steps, config)
            losses.append(trainer.step(batch, progress.step, lr))

            progress.step += 1
            progress.micro_batch_tokens = trainer.max_tokens
            progress.pairs += batch.pairs
            progress.tokens += int(texts.lengths_of(batch.rows).sum())
            progress.seconds = time.perf_counter() - began
            training_log.step(batch.pairs)
            at_end = progress.step >= sampler.steps
            if at_end or progress.step % config.log_every == 0:
                epoch = progress.step / sampler.steps_per_epoch
                training_log.train(progress.step, epoch=epoch, loss=_mean(losses, progress.step), lr=lr)
                losses.clear()
            progress.stopped = stop is not None and stop.is_set()
            if at_end or progress.stopped or progress.step % config.checkpoint_every == 0:
                save()
    return progress


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


def _resume(
    store: CheckpointStore | None, trainer: Trainer, training_log: TrainingLog, losses: list[Tensor]
) -> Progress:
    checkpoint = store.load() if store is not None else None
    if checkpoint is None:
        return Progress()
    for name, weight in trainer.weights.items():
        weight.data.copy_(checkpoint.adapters[name])
    restore_moments(trainer.optimizer, list(trainer.weights), checkpoint.moments)
    if trainer.accelerator.scaler is not None and checkpoint.progress["scaler"]:
        trainer.accelerator.scaler.load_state_dict(checkpoint.progress["scaler"])
    training_log.lines = checkpoint.log_lines
    losses.extend(torch.tensor(loss, device=trainer.accelerator.device) for loss in checkpoint.progress["losses"])
    log.info("continuing after step %d", checkpoint.step)
    return Progress(**checkpoint.progress["counters"])


def _checkpoint(trainer: Trainer, progress: Progress, training_log: TrainingLog, losses: list[Tensor]) -> Checkpoint:
    counters = {name: getattr(progress, name) for name in sorted(COUNTERS)}
    scaler = trainer.accelerator.scaler
    return Checkpoint(
        progress.step,
        {name: weight.detach().cpu().contiguous() for name, weight in trainer.weights.items()},
        optimizer_moments(trainer.optimizer, list(trainer.weights)),
        {
            "counters": counters,
            "scaler": scaler.state_dict() if scaler is not None else {},
            "losses": [loss.item() for loss in losses],
        },
        training_log.lines,
    )
