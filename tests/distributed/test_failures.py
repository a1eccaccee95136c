"""No rank waits for ever: a rank that fails, is killed or stands still ends all, with its cause; a stop stops all."""

import os
import signal
import time
from unittest import mock

import pytest
from forked import wait
from forked_ranks import Ranks

from lorry.data.sampler import BatchSampler
from lorry.distributed import watch
from lorry.errors import UserError
from lorry.training import setup

HOSTS = ("algo-1", "algo-2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model, shop_pairs):
    return {
        "train": shop_pairs(tmp_path_factory.mktemp("shop"), queries=16), "pretrained_model": tiny_model("bert"),
        "epochs": 2000, "batch_size": 24, "log_every": 1, "checkpoint_every": 10**6, "precision": "fp32",
    }  # fmt: skip


def quick(rank):
    """Let a silence of few seconds be one of a rank that is gone."""
    watch.BEAT, watch.SILENCE = 0.2, 2.0


def at_step(step, action):
    """Let rank 1 do something when it makes the batch of a step, which leaves a file to wait for."""

    def prepare(rank):
        quick(rank)
        if rank != 1:
            return
        batch = BatchSampler.batch

        def acting(self, number):
            if number == step:
                action()
            return batch(self, number)

        mock.patch.object(BatchSampler, "batch", acting).start()

    return prepare


def raising(error):
    def action():
        raise error

    return action


def end_of(ranks, prepare):
    """Return the exit codes, and the seconds from the start of the first rank to the end of the last."""
    began = time.monotonic()
    return ranks.finish(prepare), time.monotonic() - began


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (UserError("the label is odd", "Mend it."), "rank 1 on algo-2: the label is odd"),
        pytest.param(MemoryError(), "rank 1 on algo-2: out of memory", marks=pytest.mark.slow),
        pytest.param(
            IndexError("of 2"), "rank 1 on algo-2: IndexError: of 2 (at training/loop.py:", marks=pytest.mark.slow
        ),
    ],
    ids=["mistake", "memory", "crash"],
)
def test_a_rank_that_fails_ends_all_with_its_cause(tmp_path, recipe, error, cause):
    ranks = Ranks(tmp_path, 2, HOSTS, **recipe)
    codes, seconds = end_of(ranks, at_step(5, raising(error)))
    assert codes == [1, 1]
    assert all(said.startswith(cause) for said in ranks.causes()), ranks.causes()
    assert seconds < 20


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_rank_that_is_gone_ends_the_others(tmp_path, recipe, number):
    """Its own agent knows more of a process that was killed; these have none."""
    ranks = Ranks(tmp_path, 3, ("algo-1", "algo-1", "algo-2"), **recipe)
    processes = ranks.start(at_step(5, lambda: os.kill(os.getpid(), number)))
    codes = [wait(processes[rank], 30) for rank in (0, 2)]
    if number == signal.SIGSTOP:
        os.kill(processes[1], signal.SIGKILL)
    assert wait(processes[1]) == -signal.SIGKILL
    assert codes == [1, 1]
    causes = ranks.causes()
    assert causes[0] == causes[2]
    assert "rank 1 on algo-1 has not answered for " in causes[0]


@pytest.mark.slow
def test_where_the_first_host_is_gone_the_others_name_it(tmp_path, recipe):
    """It runs the store: nobody can tell anybody anything any more."""

    def prepare(rank):
        quick(rank)
        if rank == 0:
            at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))(1)

    ranks = Ranks(tmp_path, 3, ("algo-1", "algo-2", "algo-3"), **recipe)
    assert ranks.finish(prepare) == [-signal.SIGKILL, 1, 1]
    assert all("host algo-1 has not answered for " in said for said in ranks.causes()[1:])


def test_a_stop_of_one_rank_stops_all_at_the_same_step(tmp_path, recipe):
    ranks = Ranks(tmp_path, 2, HOSTS, **recipe)
    assert ranks.finish(at_step(5, lambda: signal.raise_signal(signal.SIGTERM))) == [0, 0], ranks.said
    assert "stopped at step " in ranks.said
    assert len(list(ranks.runs[0].kept.iterdir())) == 1
    assert ranks.causes() == [None, None]


@pytest.mark.slow
def test_a_stop_while_one_rank_reads_and_another_waits_is_none_of_a_failure(tmp_path, recipe):
    """The one that waits hears of it first, and leaves no other waiting."""

    def prepare(rank):
        quick(rank)
        if rank == 0:
            read = setup.read_splits

            def slow(config):
                found = read(config)
                time.sleep(3)
                return found

            mock.patch.object(setup, "read_splits", slow).start()

    for to in ([1], [0], [0, 1]):
        ranks = Ranks(tmp_path / str(to), 2, **recipe)
        processes = ranks.start(prepare)
        time.sleep(2)
        for rank in to:
            os.kill(processes[rank], signal.SIGTERM)
        assert [wait(process, 30) for process in processes] == [0, 0], ranks.causes()
        assert "before training began" in ranks.said


def test_hosts_with_other_pairs_are_refused(tmp_path, recipe, shop_pairs):
    """As where SageMaker gives every host a part of a channel."""
    ranks = Ranks(tmp_path / "run", 2, HOSTS, **recipe)
    ranks.runs[1].options["train"] = shop_pairs(tmp_path / "other", queries=16, seed=1)
    assert ranks.finish(quick) == [1, 1]
    assert all("rank 1 on algo-2: this host has other pairs" in said for said in ranks.causes())


def test_hosts_with_other_options_are_refused(tmp_path, recipe):
    ranks = Ranks(tmp_path / "run", 2, HOSTS, **recipe)
    ranks.runs[1].options["batch_size"] = 12
    assert ranks.finish(quick) == [1, 1]
    assert all("rank 1 on algo-2: this host has other options" in said for said in ranks.causes())


@pytest.mark.slow
def test_a_failure_of_the_last_moment_fails_all(tmp_path, recipe):
    """Rank 0 refuses the model when the others have done their part."""
    options = recipe | {"epochs": 1, "require": "ndcg@10>=0.9999"}
    ranks = Ranks(tmp_path, 2, HOSTS, **options)
    assert ranks.finish(quick) == [1, 1]
    assert all("does not meet --require" in said for said in ranks.causes()), ranks.causes()
