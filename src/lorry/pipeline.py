"""A whole run: prepare, train, merge, evaluate before and after, report. One direction, no going back.

The base model is evaluated last, from its own files: the first step does not wait for it, nor does a run that continues
after a stop.

With several ranks, all go through the same story: what they share out they do together, and rank 0 alone writes.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lorry.config import TrainConfig, as_dict
from lorry.distributed.ranks import ALONE, Ranks
from lorry.evaluation.gate import RequirementError, check_measurable, read_requirements, unmet
from lorry.evaluation.scoring import SplitScores, measurable, score
from lorry.model.encoder import Encoder
from lorry.model.merge import MergeProof, export
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.model.saving import save_adapter
from lorry.model_folder import check_model_dir, keep_aside, recover, staging
from lorry.outputs import (
    OutputError,
    check_apart,
    check_results,
    check_space,
    claimed,
    write_json,
    writing,
)
from lorry.report.card import write_model_card, write_unfinished_card
from lorry.report.facts import ReportFacts
from lorry.report.page import write_report
from lorry.report.provenance import provenance
from lorry.report.results import gather_facts
from lorry.report.tables import summary_table
from lorry.report.verdict import verdict_of
from lorry.signals import Stop, StopRequestedError
from lorry.training.checkpoint import KEPT, CheckpointStore
from lorry.training.loop import Progress, fit
from lorry.training.progress import TrainingLog
from lorry.training.selection import CRITERION, choose_share
from lorry.training.setup import TrainingSetup, prepare, with_documents
from lorry.training.update import Trainer

log = logging.getLogger("lorry")

PROBES = 16  # texts that the merge is proved on: each is embedded four times, and a stop must not take long
REFUSED_MODEL = "refused_model"  # in output_data_dir: a model that does not meet what `require` says
# Options that may differ from one host to another.
OF_A_HOST = {
    "train", "validation", "test", "pretrained_model", "model_dir", "output_data_dir", "checkpoint_dir",
    "eval_batch_size", "processes", "host_wait",
}  # fmt: skip
OTHER_FILES = 20_000_000  # bytes of tokenizer, report and the like, at most


def run(config: TrainConfig, stop: threading.Event | None = None, command: str = "", ranks: Ranks = ALONE) -> None:
    """Train on `config.train` and leave a proved model in `config.model_dir`, a report in `config.output_data_dir`.

    Args:
        config: The hyperparameters.
        stop: When set, the current step is finished, a checkpoint written, and the run ends early.
        command: The command line, for the report.
        ranks: Those that share the run; all of them call this.

    Raises:
        UserError: Something that the user can fix.
    """
    with ExitStack() as claims:
        if ranks.first:
            _claim_folders(config, claims)
        _run(config, stop, command, ranks)
        ranks.finish()


def _claim_folders(config: TrainConfig, claims: ExitStack) -> None:
    """Check the folders that the run writes, and keep them for it alone."""
    model_dir = Path(config.model_dir)
    check_apart(config)
    check_model_dir(model_dir)
    for option in ("model_dir", "output_data_dir", "checkpoint_dir"):
        if folder := getattr(config, option):
            claims.enter_context(claimed(Path(folder), f"--{option}"))
    check_results(Path(config.output_data_dir))
    if recover(model_dir):
        log.info("%s: put in place the finished model of a run that was killed", model_dir)


def _run(config: TrainConfig, stop: threading.Event | None, command: str, ranks: Ranks) -> None:
    """Do the work of `run`, in folders that are this run's alone."""
    prepared = None
    try:
        with stop.immediately() if isinstance(stop, Stop) else nullcontext():
            prepared = _prepare(config, ranks)
    except StopRequestedError:
        pass
    if ranks.stopped_before_training(prepared is None) or prepared is None:
        log.info("stopped at step 0 of this run, before training began; earlier checkpoints stay as they are")
        return
    setup, fingerprints = prepared
    training_log = TrainingLog(setup.sampler.steps)
    progress = _train(setup, training_log, fingerprints, stop)
    trained = _weights(setup)
    try:
        if not progress.stopped:
            _finish(setup, progress, trained, training_log, fingerprints, stop, command)
            return
    except StopRequestedError:  # while the finished model was being evaluated
        setup.encoder.interpolate(trained, 1.0)
        progress.stopped = True
    if ranks.first:
        _leave_unfinished(setup, progress, training_log, fingerprints)


def _prepare(config: TrainConfig, ranks: Ranks) -> tuple[TrainingSetup, dict[str, str]]:
    """Return what the run stands on, and the fingerprints of pairs and base model."""
    requirements = read_requirements(config.require)  # a mistake there is told before any work
    options = {name: value for name, value in as_dict(config).items() if name not in OF_A_HOST}
    ranks.check_same(options, "this host has other options than the first one", "Give all hosts the same options.")
    setup = prepare(config, ranks)
    defined = {name: measurable(pairs) for name, pairs in setup.splits.items()}
    check_measurable(requirements, defined)
    if ranks.first:
        check_space(_space_needed(setup))
    if not set(CRITERION) & set(defined["validation"]):
        setup = _without_choice(setup)
    setup = with_documents(setup)

    def fingerprints() -> dict[str, str]:
        return {name: pairs.fingerprint() for name, pairs in setup.splits.items()} | {"base": setup.base.fingerprint()}

    # Taken at the start, since a stop must not take long later.
    found = ranks.once_a_host(fingerprints, "taking fingerprints of pairs and model")
    ranks.check_same(
        found,
        "this host has other pairs, or another base model, than the first one",
        "Give all hosts the same: on SageMaker channels that are FullyReplicated, not ShardedByS3Key.",
    )
    return setup, found


def _without_choice(setup: TrainingSetup) -> TrainingSetup:
    """Return the setup of a run that has nothing to choose epoch and share of the update by."""
    log.warning(
        "the labels of the validation pairs rank no model above another: neither the epoch nor the share of the update "
        "is chosen on them"
    )
    share = 1.0 if setup.config.interpolation is None else setup.config.interpolation
    return replace(setup, config=replace(setup.config, best_epoch=False, patience=0, interpolation=share))


def _train(
    setup: TrainingSetup, training_log: TrainingLog, fingerprints: dict[str, str], stop: threading.Event | None
) -> Progress:
    config, encoder = setup.config, setup.encoder
    store = None
    if setup.ranks.from_first(lambda: bool(config.checkpoint_dir), "opening the checkpoints"):  # which rank 0 keeps
        store = CheckpointStore(
            Path(config.checkpoint_dir),
            config,
            precision=encoder.precision,
            data=fingerprints["train"],
            model=fingerprints["base"],
            validation=fingerprints["validation"] if config.best_epoch and config.epochs > 1 else "",
        )

    def validate() -> tuple[float, dict[str, float]]:
        found = _score(setup, encoder, "validation", stop)
        return found.loss, found.metrics

    documents_TD = setup.documents.get("train")
    trainer = Trainer(
        encoder, setup.texts["train"], config, setup.accelerator, documents_TD=documents_TD, ranks=setup.ranks
    )
    return fit(trainer, setup.splits["train"], setup.sampler, training_log, validate=validate, store=store, stop=stop)


def _score(setup: TrainingSetup, encoder: Encoder, split: str, stop: threading.Event | None) -> SplitScores:
    documents_TD = setup.documents.get(split)
    return score(encoder, setup.texts[split], setup.splits[split], setup.config, stop, documents_TD, setup.ranks)


def _score_model(setup: TrainingSetup, model: PretrainedModel, stop: threading.Event | None) -> dict[str, SplitScores]:
    """Return what a model on disk gives the pairs of every split but that of training."""
    encoder = Encoder(model, setup.encoder.precision, setup.encoder.device)
    return {name: _score(setup, encoder, name, stop) for name in setup.splits if name != "train"}


def _space_needed(setup: TrainingSetup) -> dict[Path, int]:
    """Return about how many bytes the run will write to each folder."""
    config, model = setup.config, setup.encoder.model
    weights = 4 * sum(weight.numel() for weight in model.parameters())  # fp32
    adapters = 4 * sum(weight.numel() for weight in setup.encoder.trainable().values())
    model_files = (1 if config.train_side == "both" else 2) * weights + adapters + OTHER_FILES
    refused = model_files if config.require else 0
    needs = {Path(config.model_dir): model_files, Path(config.output_data_dir): refused + OTHER_FILES}
    if config.checkpoint_dir:  # adapters, two moments, the best epoch; a new one is written before an old one goes
        needs[Path(config.checkpoint_dir)] = 4 * adapters * (KEPT + 1) + OTHER_FILES
    return needs


def _finish(
    setup: TrainingSetup,
    progress: Progress,
    trained: dict[str, Tensor],
    training_log: TrainingLog,
    fingerprints: dict[str, str],
    stop: threading.Event | None,
    command: str,
) -> None:
    """Choose the share of the update, merge, prove, evaluate, and put model and results in place.

    Raises:
        OutputError: Something could not be written; everything else was.
        RequirementError: The model is not as good as `require` says: it is kept with the results instead.
    """
    config, output = setup.config, Path(setup.config.output_data_dir)
    before = _score_model(setup, setup.base, stop)
    training_log.begin_with(loss=before["validation"].loss, metrics=before["validation"].metrics)
    share = _interpolate(setup, trained, before["validation"], stop)
    if not setup.ranks.first:
        _help_finish(setup, stop)
        return
    failures: list[OutputError] = []
    refused: RequirementError | None = None
    after: dict[str, SplitScores] = {}
    try:
        with staging(Path(config.model_dir)) as folder:
            proof = export(folder, setup.encoder, _probe(setup), side=config.train_side, changed=share > 0)
            of = f"to base + adapter {proof.merged_to_adapter:.6f}, " if setup.encoder.adapted else ""
            log.info("merged: cosine %sto the base %.4f", of, proof.merged_to_base)
            after = _score_merged(setup, folder, stop)
            facts = gather_facts(setup, progress, training_log, before, after, command, interpolation=share)
            write_json(folder / "lorry.json", _provenance(setup, progress, proof, fingerprints, share))
            write_model_card(folder, facts)
            if missed := unmet(read_requirements(config.require), facts.metrics["splits"]):
                refused = RequirementError(missed, keep_aside(folder, output / REFUSED_MODEL, "\n".join(missed)))
                raise refused
    except RequirementError:
        pass  # the results are written all the same
    except OutputError as error:
        failures.append(_rescue_adapter(setup, error))
        after = after or _score_merged(setup, None, stop)
        facts = gather_facts(setup, progress, training_log, before, after, command, interpolation=share)
    for write in (
        lambda: write_json(output / "metrics.json", facts.metrics),
        lambda: training_log.write(output / "training.jsonl"),
        lambda: write_report(output, facts),
    ):
        try:
            write()
        except OutputError as error:
            failures.append(error)
    _log_result(facts)
    _raise(failures)
    if refused:
        raise refused
    log.info("model: %s", config.model_dir)
    log.info("report: %s", output / "report.html")
    log.info("%s", verdict_of(facts).line)


def _help_finish(setup: TrainingSetup, stop: threading.Event | None) -> None:
    """Evaluate the merged model with rank 0, on another rank; the first one of every other host gets a copy of it."""
    folder = None
    with ExitStack() as places:
        if setup.ranks.first_on_host:
            folder = Path(places.enter_context(tempfile.TemporaryDirectory(prefix="lorry-merged-")))
        _score_merged(setup, folder, stop)


def _score_merged(setup: TrainingSetup, folder: Path | None, stop: threading.Event | None) -> dict[str, SplitScores]:
    """Return what the model in rank 0's folder gives the pairs; where it has none, what the encoder does as it is."""
    ranks = setup.ranks
    if not ranks.from_first(lambda: folder is not None, "merging the model"):
        return {name: _score(setup, setup.encoder, name, stop) for name in setup.splits if name != "train"}
    ranks.copy_to_hosts(folder)
    folder = ranks.once_a_host(lambda: folder, "merging the model")
    return _score_model(setup, find_pretrained(str(folder), setup.config.max_length), stop)


def _interpolate(
    setup: TrainingSetup, trained: dict[str, Tensor], base: SplitScores, stop: threading.Event | None
) -> float:
    """Set the encoder's weights to the share of the update that ranks best on validation, or is given; return it."""
    encoder = setup.encoder

    def measure(share: float) -> dict[str, float]:
        encoder.interpolate(trained, share)
        return _score(setup, encoder, "validation", stop).metrics

    share = setup.config.interpolation
    if share is None:
        share = choose_share(base.metrics, measure)
        log.info("the model gets %.0f%% of the trained update: chosen on validation", 100 * share)
        if share == 0:
            log.warning("tuning did not help: the model has the weights of the base model")
    encoder.interpolate(trained, share)
    return share


def _weights(setup: TrainingSetup) -> dict[str, Tensor]:
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


def _leave_unfinished(
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
    setup.encoder.interpolate(_weights(setup), share)
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
    for split in facts.metrics["splits"]:
        log.info("\n%s\n", summary_table(facts.metrics, split))
