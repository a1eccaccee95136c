"""Runs killed at any moment of their life are continued to the same bytes: nothing is lost, nothing is refused.

LORRY_FAULTS says how many runs are killed (default: 24).
"""

import os
import random
import signal
import time

import pytest
from forked import Run, at_change, kill_self, signal_after, wait

KILLED = int(os.environ.get("LORRY_FAULTS", "24"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model, shop_pairs):
    return {
        "train": shop_pairs(tmp_path_factory.mktemp("shop")), "pretrained_model": tiny_model("bert"), "epochs": 2,
        "batch_size": 24, "lr": 0.01, "log_every": 3, "checkpoint_every": 2, "precision": "fp32",
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, recipe):
    """Return (weights, seconds, changes of the disk) of a run that nothing disturbed."""
    run = Run(tmp_path_factory.mktemp("whole"), **recipe)
    began = time.monotonic()
    assert run.finish() == 0, run.said
    seconds = time.monotonic() - began
    counter = Run(tmp_path_factory.mktemp("counted"), **recipe)
    changes = next(
        number for number in range(50, 5000, 50) if _survives(Run(counter.folder / str(number), **recipe), number)
    )
    return run.weights, seconds, changes


def _survives(run, number):
    return run.finish(at_change(number, kill_self)) == 0


def assert_as_undisturbed(run, weights):
    assert run.weights == weights, run.said
    left = [path for folder in (run.model, run.output, run.kept) for path in folder.glob(".*")]
    assert not left, left
    assert (run.output / "report.html").is_file()


@pytest.mark.parametrize("seed", range(KILLED))
def test_a_run_killed_at_random_is_continued_to_the_same_bytes(seed, tmp_path, recipe, whole):
    """Once or several times: half of them after a random time, half at a random change of the disk."""
    weights, seconds, changes = whole
    rng = random.Random(seed)
    run = Run(tmp_path / "run", **recipe)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.5:
            process = run.start()
            signal_after(process, rng.uniform(0, 1.1 * seconds), signal.SIGKILL)
            code = wait(process)
        else:
            code = run.finish(at_change(rng.randrange(changes), kill_self))
        assert code in (0, -signal.SIGKILL), run.said
    assert run.finish() == 0, run.said
    assert_as_undisturbed(run, weights)


@pytest.mark.parametrize("seed", range(max(4, KILLED // 4)))
def test_a_run_told_to_stop_at_random_ends_well_and_is_continued_to_the_same_bytes(seed, tmp_path, recipe, whole):
    weights, seconds, _ = whole
    rng = random.Random(1000 + seed)
    run = Run(tmp_path / "run", **recipe, on_stop=rng.choice(("export", "checkpoint")))
    process = run.start()
    signal_after(process, rng.uniform(0.05, seconds), signal.SIGTERM)
    code = wait(process)
    assert code == 0 or (code == -signal.SIGTERM and not run.said), (code, run.said)  # before Python listened
    assert run.finish() == 0, run.said
    assert_as_undisturbed(run, weights)


def test_a_killed_run_in_the_folder_of_an_earlier_model_leaves_one_of_the_two(tmp_path, recipe, whole):
    """During the export: the old model or the new one, never neither."""
    weights, _, changes = whole
    first = Run(tmp_path / "run", **recipe | {"seed": 7})
    assert first.finish() == 0
    old = first.weights
    seen = set()
    for number in range(changes - 40, changes + 1, 2):
        again = Run(tmp_path / "run", **recipe)
        again.options["checkpoint_dir"] = tmp_path / f"checkpoints-{number}"
        again.finish(at_change(number, kill_self))
        assert again.finish() == 0, again.said
        assert again.weights == weights
        seen.add(number)
        assert first.finish() == 0
        assert first.weights == old
    assert len(seen) > 10
