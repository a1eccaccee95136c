"""The training loop, top to bottom.

A step: the batch's unique queries and texts are encoded in one forward pass, the loss compares them, AdamW updates the
adapters. A batch too large for one pass is encoded in parts and still makes the same update (see `step.py`); how many
tokens fit is measured before the first step, and halved where memory runs out all the same.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.data.sampler import BatchSampler
from lorry.errors import UserError
from lorry.evaluation.scoring import SplitScores
from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts
from lorry.signals import StopRequestedError
from lorry.training.checkpoint import Checkpoint, CheckpointStore, optimizer_moments, restore_moments
from lorry.training.memory import tokens_that_fit
from lorry.training.progress import TrainingLog
from lorry.training.update import make_batch, update_within_memory

log = logging.getLogger("lorry")


@dataclass
class Progress:
    """What training has done so far, over all runs of it."""

    step: int = 0
    pairs: int = 0
    tokens: int = 0
    seconds: float = 0.0
    micro_batch_tokens: int = 0
    """Most tokens of a forward pass, 0 for any number: kept, so that a run that goes on cuts its batches alike."""
    stopped: bool = False


def fit(
    encoder: Encoder,
    texts: TokenizedTexts,
    pairs: Pairs,
    config: TrainConfig,
    *,
    accelerator: Accelerator,
    journal: TrainingLog,
    plan: BatchSampler,
    validate: Callable[[], SplitScores],
    store: CheckpointStore | None = None,
    stop: threading.Event | None = None,
) -> Progress:
    """Train the encoder's adapters.

    Args:
        encoder: With adapters; they are changed in place.
        texts: Tokens of the pairs' queries and texts.
        pairs: What to learn from.
        config: The hyperparameters.
        accelerator: Device and backward pass.
        journal: Where progress is told.
        plan: The batches.
        validate: Scores the validation pairs; called at the end of every epoch.
        store: Checkpoints; the newest is continued.
        stop: Finish the step, write a checkpoint and return when this is set.

    Returns:
        What was done, with `stopped` where it ended early.
    """
    weights = encoder.adapters()
    optimizer = torch.optim.AdamW(list(weights.values()), lr=config.lr, weight_decay=config.weight_decay, foreach=True)
    # fp16 gradients underflow without a scale; the masters and their gradients are fp32.
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=encoder.precision == "fp16")
    losses: list[Tensor] = []  # since the last logged line
    progress = _resume(store, weights, optimizer, scaler, journal, losses)
    most = config.micro_batch_tokens or progress.micro_batch_tokens or tokens_that_fit(encoder, texts)
    journal.start(progress.step)
    began = time.perf_counter() - progress.seconds

    while not progress.stopped:
        epoch = progress.step / plan.steps_per_epoch
        if progress.step and progress.step % plan.steps_per_epoch == 0 and not journal.evaluated(progress.step):
            paused = time.perf_counter()
            try:
                scored = validate()
            except StopRequestedError:  # a continued run evaluates here first
                progress.stopped = True
                if store is not None:
                    store.save(_checkpoint(progress, weights, optimizer, scaler, journal, losses))
                break
            journal.evaluate(
                progress.step, epoch=epoch, split="validation", loss=scored.loss or 0.0, metrics=scored.metrics
            )
            began += time.perf_counter() - paused
        if progress.step == plan.steps:
            break
        batch = make_batch(texts, pairs, plan.batch(progress.step), accelerator.device)
        optimizer.param_groups[0]["lr"] = rate = learning_rate(progress.step, plan.steps, config)
        loss, most = update_within_memory(encoder, texts, batch, config, progress.step, accelerator, scaler, most)
        losses.append(loss)
        scaler.unscale_(optimizer)
        accelerator.clip_grad_norm_(weights.values(), config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

        progress.step, progress.micro_batch_tokens = progress.step + 1, most
        progress.pairs += batch.pairs
        progress.tokens += int(texts.lengths_of(batch.rows).sum())
        progress.seconds = time.perf_counter() - began
        journal.step(progress.step, batch.pairs)
        if progress.step % config.log_every == 0 or progress.step == plan.steps:
            epoch = progress.step / plan.steps_per_epoch
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise UserError(
                    f"training loss is {mean} at step {progress.step}", "Lower lr, or take another precision."
                )
            journal.train(progress.step, epoch=epoch, loss=mean, rate=rate)
            losses.clear()
        progress.stopped = stop is not None and stop.is_set()
        due = progress.step % config.checkpoint_every == 0 or progress.step == plan.steps
        if store is not None and (due or progress.stopped):
            store.save(_checkpoint(progress, weights, optimizer, scaler, journal, losses))
    journal.close()
    return progress


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the rate of update `step`: a linear rise over the warm-up, then a linear fall towards 0."""
    rise = int(steps * config.warmup)
    share = (step + 1) / (rise + 1) if step < rise else (steps - step) / max(steps - rise, 1)
    return config.lr * share


def peak_memory(device: torch.device) -> int:
    """Return the most memory used so far, in bytes: the device's on CUDA, the process's elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _resume(
    store: CheckpointStore | None,
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    journal: TrainingLog,
    losses: list[Tensor],
) -> Progress:
    checkpoint = store.load() if store is not None else None
    if checkpoint is None:
        return Progress()
    for name, weight in weights.items():
        weight.data.copy_(checkpoint.adapters[name])
    restore_moments(optimizer, list(weights), checkpoint.moments)
    if checkpoint.progress["scaler"]:
        scaler.load_state_dict(checkpoint.progress["scaler"])
    journal.lines = checkpoint.log_lines
    losses.extend(torch.tensor(loss) for loss in checkpoint.progress["losses"])
    log.info("continuing after step %d", checkpoint.step)
    counters: dict[str, Any] = checkpoint.progress["counters"]
    return Progress(**counters)


def _checkpoint(
    progress: Progress,
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    journal: TrainingLog,
    losses: list[Tensor],
) -> Checkpoint:
    names = ("step", "pairs", "tokens", "seconds", "micro_batch_tokens")
    counters = {name: getattr(progress, name) for name in names}
    return Checkpoint(
        progress.step,
        {name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
        optimizer_moments(optimizer, list(weights)),
        {"counters": counters, "scaler": scaler.state_dict(), "losses": [loss.item() for loss in losses]},
        journal.lines,
    )
