"""A clock that jumps, as where a machine sets it from the network: it changes nothing but what is logged of time."""

import itertools
import time

import pytest
from forked import Run

pytestmark = pytest.mark.slow


def jumping():
    """Let the clock of the wall jump a day forward and back."""
    real, turns = time.time, itertools.cycle((86_400, -86_400, 0))
    time.time = lambda: real() + next(turns)


def test_a_clock_that_jumps_changes_nothing(tmp_path, tiny_model, shop_pairs):
    recipe = {
        "train": shop_pairs(tmp_path / "shop"), "pretrained_model": tiny_model("bert"), "batch_size": 24, "lr": 0.01,
        "precision": "fp32", "log_every": 1, "checkpoint_every": 2,
    }  # fmt: skip
    steady, jumped = Run(tmp_path / "steady", **recipe), Run(tmp_path / "jumped", **recipe)
    assert steady.finish() == 0, steady.said
    assert jumped.finish(jumping) == 0, jumped.said
    assert jumped.weights == steady.weights
