"""A whole run: prepare, train, finish. One direction, no going back.

With several ranks, all go through the same story: what they share out they do together, and rank 0 alone writes.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

from lorry.config import TrainConfig
from lorry.distributed.ranks import ALONE, Ranks
from lorry.evaluation.gate import PROBE_METRICS, check_measurable, read_requirements
from lorry.evaluation.held_out import score_split
from lorry.evaluation.scoring import measurable
from lorry.evaluation.validation_sample import ValidationSample, sample_validation
from lorry.finishing import finish, leave_unfinished, trainable_weights
from lorry.model_folder import check_model_dir, recover
from lorry.options import as_dict
from lorry.outputs import check_apart, check_results, check_space, claimed
from lorry.run_info import RunInfo
from lorry.signals import Stop, StopRequestedError
from lorry.training.checkpoint import KEPT, CheckpointStore
from lorry.training.loop import Progress, fit
from lorry.training.progress import TrainingLog
from lorry.training.selection import CRITERION
from lorry.training.setup import TrainingSetup, prepare, with_documents
from lorry.training.update import Trainer

log = logging.getLogger("lorry")

# Options that may differ from one host to another.
OF_A_HOST = {
    "train", "validation", "test", "probe", "pretrained_model", "model_dir", "output_data_dir", "checkpoint_dir",
    "eval_batch_size", "processes", "host_wait",
}  # fmt: skip
OTHER_FILES = 20_000_000  # bytes of tokenizer, report and the like, at most


def run(
    config: TrainConfig, stop: threading.Event | None = None, about: RunInfo | None = None, ranks: Ranks = ALONE
) -> None:
    """Train on `config.train` and leave a proved model in `config.model_dir`, a report in `config.output_data_dir`.

    Args:
        config: The hyperparameters.
        stop: When set, the current step is finished, a checkpoint written, and the run ends early.
        about: What the report says of the run beside its results.
        ranks: Those that share the run; all of them call this.

    Raises:
        UserError: Something that the user can fix.
    """
    with ExitStack() as claims:
        if ranks.first:
            _claim_folders(config, claims)
        _run(config, stop, about or RunInfo(), ranks)
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


def _run(config: TrainConfig, stop: threading.Event | None, about: RunInfo, ranks: Ranks) -> None:
    """Do the work of `run`, in folders that are this run's alone."""
    prepared = None
    try:
        with about.timing("reading"), stop.immediately() if isinstance(stop, Stop) else nullcontext():
            prepared = _prepare(config, ranks)
    except StopRequestedError:
        pass
    if ranks.stopped_before_training(prepared is None) or prepared is None:
        log.info("stopped at step 0 of this run, before training began; earlier checkpoints stay as they are")
        return
    setup, fingerprints = prepared
    training_log = TrainingLog(setup.sampler.steps)
    sample = sample_validation(setup)
    progress = _train(setup, training_log, fingerprints, sample, stop)
    trained = trainable_weights(setup)
    try:
        if not progress.stopped:
            finish(setup, progress, trained, training_log, fingerprints, sample, stop, about)
            return
    except StopRequestedError:  # while the finished model was being evaluated
        setup.encoder.interpolate(trained, 1.0)
        progress.stopped = True
    if ranks.first:
        leave_unfinished(setup, progress, training_log, fingerprints)


def _prepare(config: TrainConfig, ranks: Ranks) -> tuple[TrainingSetup, dict[str, str]]:
    """Return what the run stands on, and the fingerprints of pairs and base model."""
    requirements = read_requirements(config.require)  # a mistake there is told before any work
    options = {name: value for name, value in as_dict(config).items() if name not in OF_A_HOST}
    ranks.check_same(options, "this host has other options than the first one", "Give all hosts the same options.")
    setup = prepare(config, ranks)
    defined = {name: measurable(pairs) for name, pairs in setup.splits.items()}
    check_measurable(requirements, defined | ({"probe": PROBE_METRICS} if setup.probe else {}))
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
    setup: TrainingSetup,
    training_log: TrainingLog,
    fingerprints: dict[str, str],
    sample: ValidationSample | None,
    stop: threading.Event | None,
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
        found = score_split(setup, encoder, "validation", stop)
        return found.loss, found.metrics | (sample.of_all(found.scores) if sample else {})

    def measure_sample() -> dict[str, float]:
        return sample.measure(setup, encoder, stop) if sample else {}

    documents_TD = setup.documents.get("train")
    trainer = Trainer(
        encoder, setup.texts["train"], config, setup.accelerator, documents_TD=documents_TD, ranks=setup.ranks
    )
    return fit(
        trainer,
        setup.splits["train"],
        setup.sampler,
        training_log,
        validate=validate,
        sample=measure_sample if sample else None,
        store=store,
        stop=stop,
    )


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
