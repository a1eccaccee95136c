"""`lorry plan`: what a run would take and cost, before anybody pays for it.

The pairs are read and tokenised as for a run, the tokens of every step counted, a few steps and evaluation batches
run against the clock. Nothing is kept but the cache of tokens, which the run will find.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from lorry.config import TrainConfig
from lorry.data.pairs import Pairs
from lorry.data.sampler import BatchSampler
from lorry.evaluation.scoring import embed_all
from lorry.logs import duration
from lorry.model.tokens import TokenizedTexts
from lorry.pipeline import Setting, environment, prepare
from lorry.planning import cost
from lorry.planning.cost import Tokens
from lorry.training.loop import peak_memory
from lorry.training.memory import tokens_that_fit
from lorry.training.update import make_batch, update_within_memory

TIMED_STEPS = 4
TIMED_BATCHES = 4  # of texts, in evaluation
# On the CPU: whole runs, which also merge and hold a second model, took up to 1.2 times what was seen here.
HEADROOM = 1.5


def forecast(config: TrainConfig) -> str:
    """Return steps, tokens, memory, time here and cost on rented GPUs of the run that `config` describes, in lines.

    Raises:
        UserError: As the run itself would: pairs, model or options are not as they should be.
    """
    setting = prepare(config, None)
    pairs, texts = setting.splits["train"], setting.texts["train"]
    plan = BatchSampler(pairs.query, config.batch_size, config.epochs, config.seed)
    per_step = count_steps(plan, pairs, texts)
    training, evaluation = sum(per_step, Tokens(0, 0)), count_evaluation(setting.texts, config.epochs)
    seconds = training.count * _time_steps(setting, plan, per_step), evaluation.count * _time_evaluation(setting)
    products, facts = cost.products_of(setting.encoder.model), environment(setting.encoder)
    each, whole = products.encoding(Tokens(1, 0)), products.training(training) + products.encoding(evaluation)
    largest = max(step.count for step in per_step)
    rows = {
        "steps": f"{plan.steps:,} ({config.epochs} x {plan.steps_per_epoch:,}, {config.batch_size} pairs each)",
        "tokens": f"{training.count:,} in training (at most {largest:,} a step), {evaluation.count:,} in evaluation",
        "work": f"{each / 1e6:.1f} MFLOP to encode a token, {whole / 1e12:,.1f} TFLOP in all",
        "memory": _memory(setting.encoder.device),
        "time here": f"{duration(sum(seconds))}: training {duration(seconds[0])}, evaluation {duration(seconds[1])} "
        f"({facts['device']}, {facts['precision']})",
    }
    return "\n".join(["", *(f"{name:<12}{said}" for name, said in rows.items()), "", prices(whole)])


def count_steps(plan: BatchSampler, pairs: Pairs, texts: TokenizedTexts) -> list[Tokens]:
    """Return what each step of all epochs encodes: the tokens of its unique queries and texts."""
    device, counted = torch.device("cpu"), []
    for step in range(plan.steps):
        lengths = texts.lengths_of(make_batch(texts, pairs, plan.batch(step), device).rows)
        counted.append(Tokens(int(lengths.sum()), int((lengths**2).sum())))
    return counted


def count_evaluation(texts: dict[str, TokenizedTexts], epochs: int) -> Tokens:
    """Return what a run encodes beside its steps.

    That is validation and test with the base model and with the merged one, and validation after every epoch.
    """
    passes = {"train": 0, "validation": 2 + epochs, "test": 2}
    counted = Tokens(0, 0)
    for name, split in texts.items():
        counted += Tokens(int(split.lengths.sum()), int((split.lengths**2).sum())) * passes[name]
    return counted


def prices(flop: float) -> str:
    """Return the table of instances for a job of `flop` operations, and what it assumes."""
    rows = [("instance", "GPU", "dense peak", "time", "cost")]
    for instance in cost.INSTANCES:
        peak = f"{instance.peak / 1e12:.0f} TFLOP/s {instance.precision}"
        time_there = duration(3600 * cost.hours(instance, flop))
        rows.append((instance.name, instance.gpu, peak, time_there, f"${cost.dollars(instance, flop):.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "assumed:", *(f"- {line}" for line in cost.ASSUMPTIONS)])


def _time_steps(setting: Setting, plan: BatchSampler, per_step: Sequence[Tokens]) -> float:
    """Return seconds a token of training; the largest step comes first, to warm up and for the peak of memory."""
    by_size = np.argsort([step.count for step in per_step], kind="stable")
    typical: list[int] = by_size[np.linspace(0, len(by_size) - 1, TIMED_STEPS).astype(int)].tolist()
    config, device, weights = setting.config, setting.encoder.device, setting.encoder.adapters()
    pairs, texts = setting.splits["train"], setting.texts["train"]
    optimizer = torch.optim.AdamW(list(weights.values()), lr=config.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=setting.encoder.precision == "fp16")
    most = config.micro_batch_tokens or tokens_that_fit(setting.encoder, texts)
    seconds: list[float] = []
    for step in (typical[-1], *typical):
        chosen = plan.batch(step)
        began = time.perf_counter()
        batch = make_batch(texts, pairs, chosen, device)
        loss, most = update_within_memory(
            setting.encoder, texts, batch, config, step, setting.accelerator, scaler, most
        )
        scaler.unscale_(optimizer)
        setting.accelerator.clip_grad_norm_(weights.values(), config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss.item()  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    return sum(seconds[1:]) / sum(per_step[step].count for step in typical)


def _time_evaluation(setting: Setting) -> float:
    """Return seconds a token of evaluation, from texts of every length in the validation pairs."""
    texts, most = setting.texts["validation"], TIMED_BATCHES * setting.config.eval_batch_size
    by_length = np.argsort(texts.lengths, kind="stable")
    some = texts.take(by_length[np.linspace(0, len(texts) - 1, min(most, len(texts))).astype(int)])
    sample = TokenizedTexts(some.ids, np.append(0, np.cumsum(some.lengths)), 0)
    began = time.perf_counter()
    embed_all(setting.encoder, sample, setting.config.eval_batch_size)
    return (time.perf_counter() - began) / int(some.lengths.sum())


def _memory(device: torch.device) -> str:
    peak = peak_memory(device) / 1e9
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory / 1e9
        return f"{peak:.1f} GB of the GPU's {whole:.1f}, in the largest step"
    return f"{peak:.1f} GB in the largest step; leave a run {HEADROOM * peak:.1f}"
