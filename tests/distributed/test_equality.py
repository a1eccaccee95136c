"""One process, two and three make the same run: losses, gradients, weights; and each continues what another began."""

import numpy as np
import pytest
from forked import wait
from forked_ranks import Ranks, gradients, keep_gradients

from command import stopped_after

RECIPES = {
    "default": {},
    # A step of few texts: some rank has none, and its gradients are zeros.
    "a rank without work": {"batch_size": 2, "loss": "cosine"},
    "in parts": {"micro_batch_tokens": 60},
    "negatives": {"hard_negatives": 3, "epochs": 2},
    "queries alone": {"train_side": "query", "loss": "infonce"},
    "all weights": {"lora_rank": 0, "lr": 1e-4},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model, shop_pairs):
    return {
        "train": shop_pairs(tmp_path_factory.mktemp("shop"), queries=16), "pretrained_model": tiny_model("bert"),
        "epochs": 1, "batch_size": 24, "lr": 0.01, "log_every": 1, "checkpoint_every": 2, "precision": "fp32",
        "interpolation": 1, "validation_fraction": 0.3, "max_grad_norm": 1e6,
    }  # fmt: skip


def alone(folder, **options):
    """Run in one process; the whole run, as `Ranks` shows it."""
    ranks = Ranks(folder, 1, **options)
    process = ranks.runs[0].start(lambda: keep_gradients(folder / "gradients")(0))
    return ranks, process


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if number < 2 else [pytest.mark.slow]) for number, name in enumerate(RECIPES)]
)
def test_several_ranks_make_the_steps_of_one(name, tmp_path, recipe):
    """Nothing is off by the number of ranks, in another order, or left out: every gradient is that of one process."""
    options = recipe | RECIPES[name]
    one, process = alone(tmp_path / "1", **options)
    assert wait(process) == 0, one.said
    # AdamW makes a gradient that is nothing but rounding, as that of a key's bias is, as large as any other.
    alike, near = (1, 1e-3) if name == "all weights" else (4, 1e-4)
    for size in (3,) if name == "a rank without work" else (2, 3):
        many = Ranks(tmp_path / str(size), size, **options)
        assert many.finish(keep_gradients(tmp_path / str(size) / "gradients")) == [0] * size, many.said
        pairs = zip(gradients(tmp_path / "1" / "gradients"), gradients(tmp_path / str(size) / "gradients"), strict=True)
        assert max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in list(pairs)[:alike]) < 1e-5
        np.testing.assert_allclose(many.losses, one.losses, rtol=1e-4, atol=1e-6)  # a cosine has rounding of 1e-7
        assert np.abs(many.weights - one.weights).max() < near
        assert not any("loss" in run.said for run in many.runs[1:]), "rank 0 speaks for all"


@pytest.mark.parametrize(
    "sizes", [(2, 2), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in [(2, 1), (1, 3)])]
)
def test_a_run_is_continued_by_as_many_ranks_or_others(sizes, tmp_path, recipe):
    """Byte for byte by as many, within rounding by others."""
    options = recipe | {"epochs": 2}
    whole = Ranks(tmp_path / "whole", sizes[0], **options)
    assert whole.finish() == [0] * sizes[0], whole.said
    for number, size in enumerate(sizes):
        ranks = Ranks(tmp_path / "parts", size, **options)
        patch = stopped_after(3)
        codes = ranks.finish((lambda rank, patch=patch: patch.start()) if number == 0 else (lambda rank: None))
        assert codes == [0] * size, ranks.said
    assert "continuing after step 3" in ranks.said
    if sizes[0] == sizes[1]:
        assert ranks.weights.tobytes() == whole.weights.tobytes()
    assert np.abs(ranks.weights - whole.weights).max() < 1e-4


@pytest.mark.slow
def test_the_same_ranks_twice_are_the_same_bytes(tmp_path, recipe):
    first, second = (Ranks(tmp_path / name, 2, **recipe) for name in "ab")
    assert first.finish() == second.finish() == [0, 0], first.said + second.said
    assert first.weights.tobytes() == second.weights.tobytes()


def test_an_overflow_on_one_rank_skips_the_step_on_all(tmp_path, recipe):
    """In fp16 a gradient may be infinite on one rank alone; the sum carries that to all, and the scale stays one."""
    from lorry.distributed import ranks as module

    def prepare(rank):
        plain = module.Ranks.sum_gradients
        calls = iter(range(1000))

        def poisoned(self, weights):
            weights = list(weights)
            if next(calls) == 12 and rank == 1:
                weights[0].grad[0] = float("inf")
            plain(self, weights)
            with (tmp_path / f"sums-{rank}").open("a") as file:
                file.write(f"{[bool(weight.grad.isfinite().all()) for weight in weights]}\n")

        module.Ranks.sum_gradients = poisoned

    many = Ranks(tmp_path / "many", 2, **recipe | {"precision": "fp16", "epochs": 5})
    assert many.finish(prepare) == [0, 0], many.said
    sums = [(tmp_path / f"sums-{rank}").read_text() for rank in (0, 1)]
    assert sums[0] == sums[1]
    assert ["False" in line for line in sums[0].splitlines()[11:14]] == [False, True, False]


@pytest.mark.slow
def test_out_of_memory_on_one_rank_makes_its_parts_alone_smaller(tmp_path, recipe):
    import torch

    from lorry.training.update import Trainer

    def prepare(rank):
        if rank != 1:
            return
        embed, calls = Trainer._embed, iter(range(1000))

        def short_of_memory(self, *arguments):
            if next(calls) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return embed(self, *arguments)

        Trainer._embed = short_of_memory

    one, many = Ranks(tmp_path / "1", 1, **recipe), Ranks(tmp_path / "2", 2, **recipe)
    assert one.runs[0].finish() == 0
    assert many.finish(prepare) == [0, 0], many.said
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-4)
    assert np.abs(many.weights - one.weights).max() < 1e-4
