"""`lorry plan`: what a run would take and cost, before anybody pays for it.

The pairs are read and tokenised as for a run, the tokens of every step counted, and a few steps and evaluation batches
timed. Nothing is kept but the cache of tokens, which the run will find.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lorry.config import TrainConfig
from lorry.evaluation.held_out import catalogue_of, standardizing_rows
from lorry.evaluation.validation_sample import sample_validation
from lorry.instances import INSTANCES, Instance
from lorry.logs import duration
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.tokens import TokenizedTexts
from lorry.planning import cost
from lorry.planning.cost import Tokens
from lorry.report.provenance import environment
from lorry.training.batches import make_batch
from lorry.training.memory import peak_memory, tokens_that_fit
from lorry.training.selection import SHARES
from lorry.training.setup import TrainingSetup, prepare
from lorry.training.update import Trainer

TIMED_STEPS = 4
TIMED_TEXTS = 1024  # in evaluation
# On the CPU: whole runs, which also merge and hold a second model, took up to 1.2 times what was seen here.
HEADROOM = 1.5


def plan(config: TrainConfig, instances: int = 1) -> str:
    """Return steps, tokens, memory, time here and cost on rented GPUs of the run that `config` describes, in lines.

    Args:
        config: The run.
        instances: How many are rented; they share every step.

    Raises:
        UserError: As the run itself would raise: pairs, model or options are not as they should be.
    """
    setup = prepare(config)
    sampler, encoder = setup.sampler, setup.encoder
    per_step = count_steps(setup)
    training, evaluation = sum(per_step, Tokens(0, 0)), count_evaluation(setup)
    seconds = training.count * _time_steps(setup, per_step), evaluation.count * _time_evaluation(setup)
    model, facts = cost.cost_of(encoder.model), environment(encoder.device, encoder.precision)
    each, whole = model.encoding(Tokens(1, 0)), model.training(training) + model.encoding(evaluation)
    largest = max(step.count for step in per_step)
    rows = {
        "steps": f"{sampler.steps:,} ({config.epochs} x {sampler.steps_per_epoch:,}, {config.batch_size} pairs each)",
        "tokens": f"{training.count:,} in training (at most {largest:,} per step), {evaluation.count:,} in evaluation",
        "work": f"{each / 1e6:.1f} MFLOP to encode a token, {whole / 1e12:,.1f} TFLOP in all",
        "memory": _memory(encoder),
        "time here": f"{duration(sum(seconds))}: training {duration(seconds[0])}, evaluation {duration(seconds[1])} "
        f"({facts['device']}, {facts['precision']})",
    }
    times = {instance: cost.seconds(instance, model, per_step, evaluation, instances) for instance in INSTANCES}
    assumed = cost.assumptions(model, instances)
    for instance in INSTANCES:
        if instances == instance.gpus == 1 and instance.gpu == facts["device"].split()[-1]:
            times[instance] = sum(seconds)
            assumed.append(f"but the time on the {instance.gpu} is what was seen here")
    return "\n".join(
        ["", *(f"{name:<12}{text}" for name, text in rows.items()), "", prices(times, whole, assumed, instances)]
    )


def count_steps(setup: TrainingSetup) -> list[Tokens]:
    """Return what each step of all epochs encodes: the tokens of its unique queries and texts.

    Mined negatives are counted as texts of mean length: which ones they are is known in training only.
    """
    pairs, texts, sampler = setup.splits["train"], setup.texts["train"], setup.sampler
    device, counted, alone = torch.device("cpu"), [], setup.config.train_side == "query"
    for step in range(sampler.steps):
        batch = make_batch(texts, pairs, sampler.batch(step), device)
        lengths = texts.lengths_of(batch.rows[: batch.queries] if alone else batch.rows)
        found = Tokens(int(lengths.sum()), int((lengths**2).sum()))
        if setup.config.hard_negatives and not alone:
            mean, more = int(texts.lengths[texts.queries :].mean()), setup.config.hard_negatives * batch.queries
            found += Tokens(mean * more, mean**2 * more)
        counted.append(found)
    return counted


def count_evaluation(setup: TrainingSetup) -> Tokens:
    """Return what a run encodes in addition to its steps.

    That is validation and test with the base model and with the merged one; validation after every epoch, and with
    every share of the update to choose from; a sample of validation within every epoch; the training texts where
    negatives are mined; and the training products that the base model and the merged one search through.
    """
    config = setup.config
    shares = len(SHARES) if config.interpolation is None else 0
    passes = {
        "train": config.epochs if config.hard_negatives else 0,
        "validation": 2 + config.epochs + shares,
        "test": 2,
        "probe": 2,
    }
    counted = Tokens(0, 0)
    for name, split in setup.texts.items():
        sides = split.lengths[: split.queries], split.lengths[split.queries :]
        queries, documents = (Tokens(int(side.sum()), int((side**2).sum())) for side in sides)
        once = 1 if config.train_side == "query" else passes[name]  # products then keep their embeddings
        counted += queries * passes[name] + documents * once
    if config.train_side == "both" and (catalogue := catalogue_of(setup)):
        texts, rows = setup.texts["train"], catalogue.rows["train"]
        lengths = texts.lengths_of(rows[rows >= 0] + texts.queries)
        counted += Tokens(int(lengths.sum()), int((lengths**2).sum())) * 2
    if sample := sample_validation(setup):
        lengths = sample.texts.lengths[: sample.texts.queries if config.train_side == "query" else None]
        points = min(config.evals_per_epoch, setup.sampler.steps_per_epoch) - 1  # the last is that of all pairs
        counted += Tokens(int(lengths.sum()), int((lengths**2).sum())) * (points * config.epochs)
    if config.standardize != "none":
        lengths = setup.texts["train"].lengths_of(standardizing_rows(setup))
        counted += Tokens(int(lengths.sum()), int((lengths**2).sum()))
    return counted


def prices(times: Mapping[Instance, float], flop: float, assumed: Sequence[str], instances: int = 1) -> str:
    """Return the table of instances for a job of `flop` operations that takes so many seconds, and what it assumes."""
    rows = [("instance", "GPU", "time", "share of peak", "cost")]
    for instance, seconds in times.items():
        gpus = instances * instance.gpus
        share = flop / (seconds * instance.peak * gpus)
        peak = f"{share:.0%} of {instance.peak / 1e12:.0f} TFLOP/s {instance.precision}"
        whole = duration(seconds + 60 * cost.STARTUP_MINUTES)
        price = f"${cost.dollars(instance, seconds, instances):.2f}"
        rows.append((_many(instances) + instance.name, _many(gpus) + instance.gpu, whole, peak, price))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "assumed:", *(f"- {line}" for line in assumed)])


def _many(count: int) -> str:
    return f"{count} x " if count > 1 else ""


def _time_steps(setup: TrainingSetup, per_step: Sequence[Tokens]) -> float:
    """Return seconds per token of training; the largest step comes first, to warm up and for the peak of memory."""
    by_size = np.argsort([step.count for step in per_step], kind="stable")
    typical: list[int] = by_size[np.linspace(0, len(by_size) - 1, TIMED_STEPS).astype(int)].tolist()
    # So few steps would only pay for graphs, not use them.
    config, pairs, texts = replace(setup.config, cuda_graphs=False), setup.splits["train"], setup.texts["train"]
    max_tokens = config.micro_batch_tokens or tokens_that_fit(setup.encoder, texts)
    # A step takes the same time whatever the products' embeddings are, so they are not computed here.
    products = torch.ones(len(texts) - texts.queries, setup.encoder.width) if config.train_side == "query" else None
    trainer = Trainer(setup.encoder, texts, config, setup.accelerator, max_tokens, products)
    seconds: list[float] = []
    for step in (typical[-1], *typical):
        began = time.perf_counter()
        batch = make_batch(texts, pairs, setup.sampler.batch(step), setup.accelerator.device)
        trainer.step(batch, step, config.lr).item()  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    return sum(seconds[1:]) / sum(per_step[step].count for step in typical)


def _time_evaluation(setup: TrainingSetup) -> float:
    """Return seconds per token of evaluation, from texts of every length in the validation pairs."""
    texts = setup.texts["validation"]
    by_length = np.argsort(texts.lengths, kind="stable")
    some = texts.take(by_length[np.linspace(0, len(texts) - 1, min(TIMED_TEXTS, len(texts))).astype(int)])
    sample = TokenizedTexts(some.ids, np.append(0, np.cumsum(some.lengths)), 0)
    began = time.perf_counter()
    embed_all(setup.encoder, sample, setup.config.eval_batch_size)
    return (time.perf_counter() - began) / int(some.lengths.sum())


def _memory(encoder: Encoder) -> str:
    peak = peak_memory(encoder.device) / 1e9
    if encoder.device.type == "cuda":
        whole = torch.cuda.get_device_properties(encoder.device).total_memory / 1e9
        merge = sum(weight.numel() * (weight.element_size() + 4) for weight in encoder.model.parameters()) / 1e9
        return f"{peak:.1f} GB of the GPU's {whole:.1f} in the largest step, {merge:.1f} GB to merge"
    return f"{peak:.1f} GB in the largest step; leave a run {HEADROOM * peak:.1f}"
