"""What follows training: choose the share of the update, merge, prove, evaluate before and after, report.

The base model is evaluated here, from its own files, and not before training: the first step does not wait for it, nor
does a run that continues after a stop.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lorry.evaluation.catalogue import Catalogue
from lorry.evaluation.gate import RequirementError, missed
from lorry.evaluation.held_out import ModelScores, catalogue_of, fitted_standardizer, score_encoder, score_split
from lorry.evaluation.scoring import SplitScores
from lorry.evaluation.validation_sample import ValidationSample
from lorry.model.encoder import Encoder
from lorry.model.merge import MergeProof, export
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import find_pretrained
from lorry.model.saving import save_adapter
from lorry.model_folder import keep_aside, staging
from lorry.outputs import OutputError, write_json, writing
from lorry.report.account import with_account
from lorry.report.card import write_model_card, write_unfinished_card
from lorry.report.facts import ReportFacts
from lorry.report.page import write_report
from lorry.report.provenance import provenance
from lorry.report.results import gather_facts
from lorry.report.stored import store_facts
from lorry.report.tables import search_table, summary_table
from lorry.report.verdict import verdict_of
from lorry.run_info import RunInfo
from lorry.training.loop import Progress
from lorry.training.progress import TrainingLog
from lorry.training.selection import choose_share
from lorry.training.setup import TrainingSetup

log = logging.getLogger("lorry")

PROBES = 16  # texts that the merge is proved on: each is embedded four times, and a stop must not take long
REFUSED_MODEL = "refused_model"  # in output_data_dir: a model that does not meet what `require` says


def finish(
    setup: TrainingSetup,
    progress: Progress,
    trained: dict[str, Tensor],
    training_log: TrainingLog,
    fingerprints: dict[str, str],
    sample: ValidationSample | None,
    stop: threading.Event | None,
    about: RunInfo,
) -> None:
    """Choose the share of the update, merge, prove, evaluate, and put model and results in place.

    Raises:
        OutputError: Something could not be written; everything else was.
        RequirementError: The model is not as good as `require` says: it is kept with the results instead.
    """
    config, output = setup.config, Path(setup.config.output_data_dir)
    with about.timing("evaluation"):
        catalogue = catalogue_of(setup)
        base = Encoder(setup.base, setup.encoder.precision, setup.encoder.device)
        before = score_encoder(setup, base, catalogue, stop)
        del base  # not two models more than needed at a time
        validation = before.splits["validation"]
        sampled = sample.of_all(validation.scores) if sample else {}
        training_log.begin_with(loss=validation.loss, metrics=validation.metrics | sampled)
        share = _interpolate(setup, trained, validation, stop)
        if config.standardize != "none":
            setup.encoder.standardizer = fitted_standardizer(setup, stop)
    if not setup.ranks.first:
        _help_finish(setup, catalogue, stop)
        return

    def facts_of(after: ModelScores) -> ReportFacts:
        with about.timing("evaluation"):
            facts = gather_facts(setup, progress, training_log, before, after, about.command, share, catalogue, stop)
        return with_account(facts, about, progress, setup.ranks.hosts, fingerprints)

    failures: list[OutputError] = []
    refused: RequirementError | None = None
    after: ModelScores | None = None
    try:
        with staging(Path(config.model_dir)) as folder:
            with about.timing("merging"):
                proof = export(folder, setup.encoder, _probe(setup), side=config.train_side, changed=share > 0)
            of = f"to base + adapter {proof.merged_to_adapter:.6f}, " if setup.encoder.adapted else ""
            log.info("merged: cosine %sto the base %.4f", of, proof.merged_to_base)
            with about.timing("evaluation"):
                after = _score_merged(setup, folder, catalogue, stop)
            facts = facts_of(after)
            write_json(folder / "lorry.json", _provenance(setup, progress, proof, fingerprints, share))
            write_model_card(folder, facts)
            if phrases := missed(config.require, facts.metrics):
                refused = RequirementError(phrases, keep_aside(folder, output / REFUSED_MODEL, "\n".join(phrases)))
                raise refused
    except RequirementError:
        pass  # the results are written all the same
    except OutputError as error:
        failures.append(_rescue_adapter(setup, error))
        facts = facts_of(after or _score_merged(setup, None, catalogue, stop))
    failures += _write_results(output, facts, training_log)
    _log_result(facts)
    _raise(failures)
    if refused:
        raise refused
    log.info("model: %s", config.model_dir)
    log.info("report: %s", output / "report.html")
    log.info("%s", verdict_of(facts).line)


def _write_results(output: Path, facts: ReportFacts, training_log: TrainingLog) -> list[OutputError]:
    """Write all results; return the errors of those that could not be written."""
    writes: tuple[Callable[[], None], ...] = (
        lambda: write_json(output / "metrics.json", facts.metrics),
        lambda: training_log.write(output / "training.jsonl"),
        lambda: store_facts(output, facts),
        lambda: write_report(output / "report.html", facts),
    )
    failures = []
    for write in writes:
        try:
            write()
        except OutputError as error:
            failures.append(error)
    return failures


def _help_finish(setup: TrainingSetup, catalogue: Catalogue | None, stop: threading.Event | None) -> None:
    """Evaluate the merged model with rank 0, on another rank; the first one of every other host gets a copy of it."""
    folder = None
    with ExitStack() as places:
        if setup.ranks.first_on_host:
            folder = Path(places.enter_context(tempfile.TemporaryDirectory(prefix="lorry-merged-")))
        _score_merged(setup, folder, catalogue, stop)


def _score_merged(
    setup: TrainingSetup, folder: Path | None, catalogue: Catalogue | None, stop: threading.Event | None
) -> ModelScores:
    """Return what the model in rank 0's folder gives the pairs; where it has none, what the encoder does as it is."""
    ranks, encoder = setup.ranks, setup.encoder
    if ranks.from_first(lambda: folder is not None, "merging the model"):
        ranks.copy_to_hosts(folder)
        folder = ranks.once_a_host(lambda: folder, "merging the model")
        model = find_pretrained(str(folder), setup.config.max_length)
        encoder = Encoder(model, encoder.precision, encoder.device)
    return score_encoder(setup, encoder, catalogue, stop, economics=True)


def _interpolate(
    setup: TrainingSetup, trained: dict[str, Tensor], base: SplitScores, stop: threading.Event | None
) -> float:
    """Set the encoder's weights to the share of the update that ranks best on validation, or is given; return it."""
    encoder = setup.encoder

    def measure(share: float) -> dict[str, float]:
        encoder.interpolate(trained, share)
        return score_split(setup, encoder, "validation", stop).metrics

    share = setup.config.interpolation
    if share is None:
        share = choose_share(base.metrics, measure)
        log.info("the model gets %.0f%% of the trained update: chosen on validation", 100 * share)
        if share == 0:
            log.warning("tuning did not help: the model has the weights of the base model")
    encoder.interpolate(trained, share)
    return share


def trainable_weights(setup: TrainingSetup) -> dict[str, Tensor]:
    """Return a copy of the weights that are trained."""
    return {name: weight.detach().clone() for name, weight in setup.encoder.trainable().items()}


def _rescue_adapter(setup: TrainingSetup, error: OutputError) -> OutputError:
    """Keep the adapter, if there is one, although the model could not be written; return the error to raise."""
    if not setup.encoder.adapted:
        return error
    folder = Path(setup.config.output_data_dir) / "adapter"
    try:
        with writing(folder):
            save_adapter(folder, setup.encoder)
    except OutputError:
        return error
    return OutputError(f"{error.cause} (the trained adapter is in {folder})", error.hint)


def leave_unfinished(
    setup: TrainingSetup, progress: Progress, training_log: TrainingLog, fingerprints: dict[str, str]
) -> None:
    """After a stop: log where, and leave the model as trained so far if that is wanted.

    Raises:
        OutputError: Something could not be written; everything else was.
    """
    config = setup.config
    failures = [] if progress.unsaved is None else [progress.unsaved]
    if config.on_stop == "export" and config.require:
        log.info("no model is left: whether it meets what require says is known at the end of a run")
    elif config.on_stop == "export":
        try:
            _export_unfinished(setup, progress, fingerprints)
        except OutputError as error:
            failures.append(_rescue_adapter(setup, error))
    try:
        training_log.write(Path(config.output_data_dir) / "training.jsonl")
    except OutputError as error:
        failures.append(error)
    if progress.unsaved is None:
        resume = "resume with the same checkpoint folder"
        how = resume if config.checkpoint_dir else "give --checkpoint_dir to resume next time"
        log.info("stopped at step %d, %s", progress.step, how)
    _raise(failures)


def _export_unfinished(setup: TrainingSetup, progress: Progress, fingerprints: dict[str, str]) -> None:
    """Leave the model as trained so far, with the whole update unless another share is given."""
    share = 1.0 if setup.config.interpolation is None else setup.config.interpolation
    setup.encoder.interpolate(trainable_weights(setup), share)
    setup.encoder.restore_standardizer()  # the one of the finished model may have been fitted when the stop came
    with staging(Path(setup.config.model_dir)) as folder:
        proof = export(folder, setup.encoder, _probe(setup), side=setup.config.train_side, changed=share > 0)
        write_json(folder / "lorry.json", _provenance(setup, progress, proof, fingerprints, share))
        write_unfinished_card(folder, setup.base.name, progress.step)
    log.info("the model as trained so far: %s", setup.config.model_dir)


def _raise(failures: list[OutputError]) -> None:
    """Raise what could not be written, if anything, as one error."""
    if failures:
        raise OutputError("; ".join(error.cause for error in failures), failures[0].hint)


def _probe(setup: TrainingSetup) -> TokenSequences:
    texts = setup.texts["validation"]
    return texts.take(np.linspace(0, len(texts) - 1, min(PROBES, len(texts))).astype(np.int64))


def _provenance(
    setup: TrainingSetup, progress: Progress, proof: MergeProof, fingerprints: dict[str, str], share: float
) -> dict[str, Any]:
    return provenance(
        setup.config,
        {name: fingerprints[name] for name in setup.splits},
        base_model={"name": setup.base.name, "fingerprint": fingerprints["base"]},
        precision=setup.encoder.precision,
        proof=asdict(proof),
        interpolation=share,
        steps=progress.step,
        weights_of_step=progress.weights_of_step,
        finished=not progress.stopped,
        stopped_at=progress.step if progress.stopped else None,
    )


def _log_result(facts: ReportFacts) -> None:
    for split, block in facts.metrics["splits"].items():
        for scorer in ("base", "tuned"):
            log.info(" ".join(f"{split}:{scorer}:{name}={value:.4f};" for name, value in block[scorer].items()))
    if probe := facts.metrics.get("probe"):
        log.info(" ".join(f"probe:{scorer}:spearman={probe[scorer]['spearman']:.4f};" for scorer in ("base", "tuned")))
    for split in facts.metrics["splits"]:
        tables = summary_table(facts.metrics, split), search_table(facts.metrics, split)
        log.info("\n%s\n", "\n\n".join(filter(None, tables)))
