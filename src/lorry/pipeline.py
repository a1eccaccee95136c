"""A whole run: prepare, train, merge, evaluate before and after, report. One direction, no going back.

The base model is evaluated last, from its own files: the first step does not wait for it, nor does a run that continues
after a stop.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lorry.config import TrainConfig
from lorry.evaluation.scoring import SplitScores, score
from lorry.model.encoder import Encoder
from lorry.model.merge import MergeProof, merge
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.outputs import check_apart, check_output, check_writable, staging, write_json
from lorry.report.card import write_model_card, write_unfinished_card
from lorry.report.facts import ReportFacts
from lorry.report.page import write_report
from lorry.report.provenance import provenance
from lorry.report.results import gather_facts
from lorry.report.tables import summary_table
from lorry.report.verdict import verdict_of
from lorry.signals import StopRequestedError
from lorry.training.checkpoint import CheckpointStore
from lorry.training.loop import Progress, fit
from lorry.training.progress import TrainingLog
from lorry.training.setup import TrainingSetup, prepare
from lorry.training.update import Trainer

log = logging.getLogger("lorry")

PROBES = 16  # texts that the merge is proved on: each is embedded four times, and a stop must not take long


def run(config: TrainConfig, stop: threading.Event | None = None, command: str = "") -> None:
    """Train on `config.train` and leave a proved model in `config.model_dir`, a report in `config.output_data_dir`.

    Args:
        config: The hyperparameters.
        stop: When set, the current step is finished, a checkpoint written, and the run ends early.
        command: The command line, for the report.

    Raises:
        UserError: Something that the user can fix.
    """
    check_apart(config)
    check_writable(Path(config.model_dir))
    check_output(Path(config.output_data_dir))
    setup = prepare(config)
    # Taken at the start, since a stop must not take long.
    fingerprints = {name: pairs.fingerprint() for name, pairs in setup.splits.items()}
    fingerprints["base"] = setup.base.fingerprint()
    if stop is not None and stop.is_set():
        log.info("stopped at step 0 of this run, before training began; earlier checkpoints stay as they are")
        return
    training_log = TrainingLog(setup.sampler.steps)
    progress = _train(setup, training_log, fingerprints, stop)
    try:
        if not progress.stopped:
            _finish(setup, progress, training_log, fingerprints, stop, command)
            return
    except StopRequestedError:  # while the finished model was being evaluated
        progress.stopped = True
    _leave_unfinished(setup, progress, training_log, fingerprints)


def _train(
    setup: TrainingSetup, training_log: TrainingLog, fingerprints: dict[str, str], stop: threading.Event | None
) -> Progress:
    config, encoder = setup.config, setup.encoder
    store = None
    if config.checkpoint_dir:
        store = CheckpointStore(Path(config.checkpoint_dir), config, fingerprints["train"], fingerprints["base"])

    def validate() -> tuple[float, dict[str, float]]:
        found = _score(setup, encoder, "validation", stop)
        return found.loss, found.metrics

    trainer = Trainer(encoder, setup.texts["train"], config, setup.accelerator)
    return fit(trainer, setup.splits["train"], setup.sampler, training_log, validate=validate, store=store, stop=stop)


def _score(setup: TrainingSetup, encoder: Encoder, split: str, stop: threading.Event | None) -> SplitScores:
    return score(encoder, setup.texts[split], setup.splits[split], setup.config, stop)


def _score_model(setup: TrainingSetup, model: PretrainedModel, stop: threading.Event | None) -> dict[str, SplitScores]:
    """Return what a model on disk gives the pairs of every split but that of training."""
    encoder = Encoder(model, setup.encoder.precision, setup.encoder.device)
    return {name: _score(setup, encoder, name, stop) for name in setup.splits if name != "train"}


def _finish(
    setup: TrainingSetup,
    progress: Progress,
    training_log: TrainingLog,
    fingerprints: dict[str, str],
    stop: threading.Event | None,
    command: str,
) -> None:
    """Merge, prove, evaluate the base model and the merged one, and put model and results in place."""
    config, output = setup.config, Path(setup.config.output_data_dir)
    before = _score_model(setup, setup.base, stop)
    training_log.begin_with(loss=before["validation"].loss, metrics=before["validation"].metrics)
    with staging(Path(config.model_dir)) as folder:
        proof = merge(folder, setup.encoder, _probe(setup))
        log.info(
            "merged: cosine to base + adapter %.6f, to the base %.4f", proof.merged_to_adapter, proof.merged_to_base
        )
        after = _score_model(setup, find_pretrained(str(folder), config.max_length), stop)
        facts = gather_facts(setup, progress, training_log, before, after, command)
        write_json(folder / "lorry.json", _provenance(setup, progress, proof, fingerprints))
        write_model_card(folder, facts)
        write_json(output / "metrics.json", facts.metrics)
        training_log.write(output / "training.jsonl")
        report = write_report(output, facts)
    _log_result(facts)
    log.info("model: %s", config.model_dir)
    log.info("report: %s", report)


def _leave_unfinished(
    setup: TrainingSetup, progress: Progress, training_log: TrainingLog, fingerprints: dict[str, str]
) -> None:
    """After a stop: say where, and leave the model as trained so far if that is wanted."""
    config = setup.config
    training_log.write(Path(config.output_data_dir) / "training.jsonl")
    if config.on_stop == "export":
        with staging(Path(config.model_dir)) as folder:
            proof = merge(folder, setup.encoder, _probe(setup))
            write_json(folder / "lorry.json", _provenance(setup, progress, proof, fingerprints))
            write_unfinished_card(folder, setup.base.name, progress.step)
        log.info("the model as trained so far: %s", config.model_dir)
    how = (
        "resume with the same checkpoint folder"
        if config.checkpoint_dir
        else "give --checkpoint_dir to resume next time"
    )
    log.info("stopped at step %d, %s", progress.step, how)


def _probe(setup: TrainingSetup) -> TokenSequences:
    texts = setup.texts["validation"]
    return texts.take(np.linspace(0, len(texts) - 1, min(PROBES, len(texts))).astype(np.int64))


def _provenance(
    setup: TrainingSetup, progress: Progress, proof: MergeProof, fingerprints: dict[str, str]
) -> dict[str, Any]:
    return provenance(
        setup.config,
        {name: fingerprints[name] for name in setup.splits},
        base_model={"name": setup.base.name, "fingerprint": fingerprints["base"]},
        precision=setup.encoder.precision,
        proof=asdict(proof),
        steps=progress.step,
        finished=not progress.stopped,
        stopped_at=progress.step if progress.stopped else None,
    )


def _log_result(facts: ReportFacts) -> None:
    for split, block in facts.metrics["splits"].items():
        for scorer in ("base", "tuned"):
            log.info(" ".join(f"{split}:{scorer}:{name}={value:.4f};" for name, value in block[scorer].items()))
    for split in facts.metrics["splits"]:
        log.info("\n%s\n", summary_table(facts.metrics, split))
    log.info(verdict_of(facts).headline)
