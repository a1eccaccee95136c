"""A whole run: read, tokenise, train, merge, evaluate before and after, report. One direction, no going back.

The base model is evaluated last, from its own files: the first step does not wait for it, nor does a run that goes on
after a stop.
"""

from __future__ import annotations

import gc
import logging
import platform
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from lorry.config import TrainConfig, as_dict
from lorry.data.pairs import Pairs, read_splits
from lorry.data.sampler import BatchSampler
from lorry.evaluation import metrics, scoring
from lorry.evaluation.scoring import SplitScores
from lorry.hardware import describe
from lorry.model import merge
from lorry.model.encoder import Encoder, choose_precision, packs
from lorry.model.merge import MergeProof
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.model.tokens import TokenizedTexts, tokenize
from lorry.report import page
from lorry.signals import StopRequestedError
from lorry.training.checkpoint import CheckpointStore
from lorry.training.loop import Progress, fit, peak_memory
from lorry.training.progress import TrainingLog

log = logging.getLogger("lorry")

PROBES = 16  # texts that the merge is proved on: each is embedded four times, and a stop must not take long


@dataclass(frozen=True)
class Setting:
    """What a run stands on."""

    config: TrainConfig
    accelerator: Accelerator
    splits: dict[str, Pairs]
    texts: dict[str, TokenizedTexts]
    base: PretrainedModel
    encoder: Encoder
    fingerprints: dict[str, str]
    """Of the pairs of each split, and of the base model; taken at the start, for a stop must not take long."""
    stop: threading.Event | None


def run(config: TrainConfig, stop: threading.Event | None = None, command: str = "") -> None:
    """Train on `config.train` and leave a proved model in `config.model_dir`, a report in `config.output_data_dir`.

    Args:
        config: The hyperparameters.
        stop: When set, the step under way finishes, a checkpoint is written and the run ends early.
        command: The command line, for the report.

    Raises:
        UserError: Something that the user can fix.
    """
    merge.check_apart(config)
    merge.check_writable(Path(config.model_dir))
    merge.check_output(Path(config.output_data_dir))
    setting = prepare(config, stop)
    if stop is not None and stop.is_set():
        log.info("stopped at step 0 of this run, before training began; earlier checkpoints stay as they are")
        return
    progress, journal = _train(setting)
    try:
        if not progress.stopped:
            _finish(setting, progress, journal, command)
            return
    except StopRequestedError:  # while the finished model was being evaluated
        progress.stopped = True
    _leave_unfinished(setting, progress, journal)


def prepare(config: TrainConfig, stop: threading.Event | None) -> Setting:
    """Read the pairs, load the base model, attach the adapters and tokenise every text once."""
    set_seed(config.seed)
    # CUDA or CPU (Apple's GPU is not tested); precision is the encoder's own affair.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    device, precision = accelerator.device, choose_precision(config.precision, accelerator.device)
    base = find_pretrained(config.pretrained_model, config.max_length)
    way = "packed" if packs(base) else f"padded ({base.kind} models cannot be packed)"
    log.info("%s", describe(device, precision, way))
    splits = read_splits(config)
    encoder = Encoder(base, precision, device)
    encoder.add_lora(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_targets,
        seed=config.seed,
    )
    texts = {name: tokenize(pairs, base) for name, pairs in splits.items()}
    weights = sum(weight.numel() for weight in encoder.adapters().values())
    log.info("training %s weights of %s, %d pairs a step", f"{weights:,}", base.name, config.batch_size)
    fingerprints = {name: pairs.fingerprint() for name, pairs in splits.items()} | {"base": encoder.fingerprint()}
    gc.freeze()  # what is there by now stays: no collection need look at it
    gc.enable()
    return Setting(config, accelerator, splits, texts, base, encoder, fingerprints, stop)


def _score(setting: Setting, encoder: Encoder, split: str) -> SplitScores:
    texts, pairs = setting.texts[split], setting.splits[split]
    return scoring.score(encoder, texts, pairs, setting.config, setting.stop, with_loss=True)


def _score_model(setting: Setting, base: PretrainedModel) -> dict[str, SplitScores]:
    """Return what a model on disk makes of every split but that of training."""
    encoder = Encoder(base, setting.encoder.precision, setting.encoder.device)
    return {name: _score(setting, encoder, name) for name in setting.splits if name != "train"}


def _train(setting: Setting) -> tuple[Progress, TrainingLog]:
    config, pairs, fingerprints = setting.config, setting.splits["train"], setting.fingerprints
    plan = BatchSampler(pairs.query, config.batch_size, config.epochs, config.seed)
    journal = TrainingLog(plan.steps)
    store = None
    if config.checkpoint_dir:
        store = CheckpointStore(Path(config.checkpoint_dir), config, fingerprints["train"], fingerprints["base"])
    progress = fit(
        setting.encoder,
        setting.texts["train"],
        pairs,
        config,
        accelerator=setting.accelerator,
        journal=journal,
        plan=plan,
        validate=lambda: _score(setting, setting.encoder, "validation"),
        store=store,
        stop=setting.stop,
    )
    return progress, journal


def _finish(setting: Setting, progress: Progress, journal: TrainingLog, command: str) -> None:
    """Merge, prove, evaluate the base model and the merged one, and put model and results in place."""
    config, output = setting.config, Path(setting.config.output_data_dir)
    before = _score_model(setting, setting.base)
    journal.begin_with(loss=before["validation"].loss or 0.0, metrics=before["validation"].metrics)
    with merge.staging(Path(config.model_dir)) as folder:
        proof = merge.write_model(folder, setting.encoder, _probe(setting))
        log.info(
            "merged: cosine to base + adapter %.6f, to the base %.4f", proof.merged_to_adapter, proof.merged_to_base
        )
        after = _score_model(setting, find_pretrained(str(folder), config.max_length))
        facts = _facts(setting, progress, journal, before, after, command)
        merge.write_json(folder / "lorry.json", _provenance(setting, progress, proof))
        page.write_model_card(folder, facts)
        merge.write_json(output / "metrics.json", facts.metrics)
        journal.write(output / "training.jsonl")
        path = page.write_report(output, facts)
    _say_result(facts)
    log.info("model: %s", config.model_dir)
    log.info("report: %s", path)


def _leave_unfinished(setting: Setting, progress: Progress, journal: TrainingLog) -> None:
    """After a stop: say where, and leave the model as trained so far if that is wanted."""
    config = setting.config
    journal.write(Path(config.output_data_dir) / "training.jsonl")
    if config.on_stop == "export":
        with merge.staging(Path(config.model_dir)) as folder:
            proof = merge.write_model(folder, setting.encoder, _probe(setting))
            merge.write_json(folder / "lorry.json", _provenance(setting, progress, proof))
            page.write_unfinished_card(folder, setting.base.name, progress.step)
        log.info("the model as trained so far: %s", config.model_dir)
    how = (
        "resume with the same checkpoint folder"
        if config.checkpoint_dir
        else "give --checkpoint_dir to resume next time"
    )
    log.info("stopped at step %d, %s", progress.step, how)


def _probe(setting: Setting) -> Any:
    texts = setting.texts["validation"]
    rows = np.linspace(0, len(texts) - 1, min(PROBES, len(texts))).astype(np.int64)
    return texts.take(rows)


def _provenance(setting: Setting, progress: Progress, proof: MergeProof) -> dict[str, Any]:
    return merge.provenance(
        setting.config,
        {name: setting.fingerprints[name] for name in setting.splits},
        base_model={"name": setting.base.name, "fingerprint": setting.fingerprints["base"]},
        precision=setting.encoder.precision,
        proof=asdict(proof),
        steps=progress.step,
        finished=not progress.stopped,
        stopped_at=progress.step if progress.stopped else None,
    )


def _facts(
    setting: Setting,
    progress: Progress,
    journal: TrainingLog,
    before: dict[str, SplitScores],
    after: dict[str, SplitScores],
    command: str,
) -> page.ReportFacts:
    splits, seed = setting.splits, setting.config.seed
    scored = {name: (splits[name], before[name].scores, after[name].scores) for name in before}
    judged = "test" if "test" in scored else "validation"
    return page.ReportFacts(
        metrics={
            "splits": {name: _block(splits[name], before[name], after[name], seed) for name in before},
            "training": _training_facts(setting, progress),
        },
        config=as_dict(setting.config),
        command=command,
        environment=environment(setting.encoder),
        log=journal.lines,
        intervals={
            name: metrics.compare(pairs.query, pairs.gain, pairs.relevant, base, tuned, seed=seed)
            for name, (pairs, base, tuned) in scored.items()
        },
        undefined={name: metrics.undefined(p.query, p.gain, p.relevant) for name, (p, _, _) in scored.items()},
        scores={
            name: page.ScoresByLabel(pairs.label_names, pairs.label, base, tuned)
            for name, (pairs, base, tuned) in scored.items()
        },
        health={name: pairs.health for name, pairs in splits.items()},
        changes=page.query_changes(*scored[judged]),
        pooling=setting.base.pooling,
    )


def _block(pairs: Pairs, before: SplitScores, after: SplitScores, seed: int) -> dict[str, Any]:
    counts = {"pairs": len(pairs), "queries": len(pairs.queries)}
    return {**counts, **scoring.baselines(pairs, seed), "base": before.metrics, "tuned": after.metrics}


def _training_facts(setting: Setting, progress: Progress) -> dict[str, Any]:
    seconds = max(progress.seconds, 1e-9)
    return {
        "pairs": progress.pairs,
        "tokens": progress.tokens,
        "seconds": round(seconds, 3),
        "pairs_per_second": round(progress.pairs / seconds, 2),
        "tokens_per_second": round(progress.tokens / seconds, 1),
        "peak_memory_bytes": peak_memory(setting.encoder.device),
        "steps": progress.step,
    }


def environment(encoder: Encoder) -> dict[str, str]:
    """Return where and with what the run was made, in words."""
    device = encoder.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {package: merge.package_version(package) for package in merge.PACKAGES}
    return {"device": name, "precision": encoder.precision, "python": platform.python_version(), **versions}


def _say_result(facts: page.ReportFacts) -> None:
    for split, block in facts.metrics["splits"].items():
        for scorer in ("base", "tuned"):
            log.info(" ".join(f"{split}:{scorer}:{name}={value:.4f};" for name, value in block[scorer].items()))
    for split in facts.metrics["splits"]:
        log.info("\n%s\n", page.summary_table(facts.metrics, split))
    log.info(page.judge(facts).headline)
