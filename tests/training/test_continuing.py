"""Training stopped at any moment and continued ends as if it had not been, with mined negatives and a best epoch."""

import hashlib
import logging
import threading

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from lorry.config import TrainConfig
from lorry.data.pairs import read_channel
from lorry.data.sampler import BatchSampler
from lorry.hardware import make_accelerator
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize
from lorry.training.checkpoint import CheckpointStore
from lorry.training.loop import fit
from lorry.training.progress import TrainingLog
from lorry.training.selection import CRITERION
from lorry.training.update import Trainer

# Three steps an epoch; the second epoch ranks best, and after the fourth patience ends.
CONFIG = TrainConfig(
    loss="0.3*infonce+2*ranknet+cosent",  # with more of CoSENT this small model finds no negatives
    batch_size=80,
    epochs=6,
    lr=0.01,
    hard_negatives=6,
    patience=2,
    precision="fp32",
    log_every=2,
    checkpoint_every=2,
)
SCORES = [0.5, 0.7, 0.6, 0.7]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lorry"), "handlers", [logging.NullHandler()])


def digest(weights):
    return hashlib.sha256(b"".join(weights[name].detach().numpy().tobytes() for name in sorted(weights))).hexdigest()


class Runs:
    """Runs of one recipe. The score of an epoch goes with its weights: those of a run that went through are known."""

    def __init__(self, folder, model, write_pairs):
        self.pairs = read_channel(write_pairs(folder / "train"), CONFIG)["all"]
        self.base = find_pretrained(str(model))
        self.texts = tokenize(self.pairs, self.base)
        self.scores = {}
        self.whole = self.run()

    def run(self, folder=None, *, stop_at=0, stop_in_epoch=0):
        """Train, stopped after a step or while an epoch is validated; return (weights, progress, log lines)."""
        AcceleratorState._reset_state(True)  # as in a process of its own
        encoder = Encoder(self.base, "fp32", torch.device("cpu"))
        encoder.add_lora(rank=4, alpha=8.0, dropout=0.0, targets="", seed=0)
        trainer = Trainer(encoder, self.texts, CONFIG, make_accelerator("fp32")[0])
        sampler = BatchSampler(self.pairs.query, CONFIG.batch_size, CONFIG.epochs, CONFIG.seed)
        training_log, stop, step = TrainingLog(sampler.steps), threading.Event(), trainer.step

        def make_step(batch, number, lr, parts):
            if number + 1 == stop_at:
                stop.set()
            return step(batch, number, lr, parts)

        def validate():
            weights = digest(trainer.weights)
            if folder is None:
                self.scores[weights] = SCORES[len(self.scores)]
            if list(self.scores).index(weights) + 1 == stop_in_epoch:
                stop.set()  # heard while the negatives of the next epoch are mined
            return 0.5, dict.fromkeys(CRITERION, self.scores[weights])

        trainer.step = make_step
        store = folder and CheckpointStore(folder, CONFIG, precision="fp32", data="pairs", model="base")
        progress = fit(trainer, self.pairs, sampler, training_log, validate=validate, store=store, stop=stop)
        return digest(trainer.weights), progress, training_log.lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model, shop_pairs):
    return Runs(tmp_path_factory.mktemp("continuing"), tiny_model("bert"), shop_pairs)


def without_speed(lines):
    clock = ("pairs_per_second", "expected_seconds")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def assert_as_if_never_stopped(runs, ended):
    weights, progress, lines = ended
    expected, reference, expected_lines = runs.whole
    assert weights == expected
    assert without_speed(lines) == without_speed(expected_lines)
    assert (progress.step, progress.pairs, progress.tokens) == (reference.step, reference.pairs, reference.tokens)
    assert (progress.best.step, progress.best.score) == (reference.best.step, reference.best.score)
    assert np.array_equal(progress.negatives, reference.negatives)


def test_the_run_is_one_where_all_of_it_matters(runs):
    weights, progress, lines = runs.whole
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6, 9, 12], "patience has ended it"
    assert (progress.step, progress.best.step) == (12, 6)
    assert weights == list(runs.scores)[1]
    assert len(set(runs.scores)) == 4
    assert (progress.negatives >= 0).any()


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 7, 9, 11, 12])
def test_stopped_after_any_step(runs, tmp_path, step):
    _, progress, _ = runs.run(tmp_path, stop_at=step)
    assert (progress.step, progress.stopped) == (step, True)
    assert_as_if_never_stopped(runs, runs.run(tmp_path))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_stopped_while_negatives_are_mined(runs, tmp_path, epoch):
    _, progress, lines = runs.run(tmp_path, stop_in_epoch=epoch)
    assert (progress.step, progress.stopped) == (3 * epoch, True)
    assert lines[-1]["eval_loss"] == 0.5, "what was validated is kept"
    assert_as_if_never_stopped(runs, runs.run(tmp_path))


def test_stopped_again_and_again(runs, tmp_path):
    for step in (2, 3, 8, 9, 10):
        assert runs.run(tmp_path, stop_at=step)[1].stopped
    assert_as_if_never_stopped(runs, runs.run(tmp_path))


def test_killed_without_a_word(runs, tmp_path):
    """What was done since the last checkpoint is done again: here, a validation and a step."""
    whole, kept = runs.run(tmp_path / "whole"), tmp_path / "kept"
    assert_as_if_never_stopped(runs, whole)
    kept.mkdir()
    newest = sorted((tmp_path / "whole").iterdir())[-2]  # of the two that are kept, the one before the last
    newest.rename(kept / newest.name)
    assert_as_if_never_stopped(runs, runs.run(kept))
