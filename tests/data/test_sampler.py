"""Which pairs make which batch."""

from itertools import pairwise

import numpy as np
import pytest

from lorry.data.sampler import BatchSampler


def many_queries(pairs=1000, queries=130, seed=0):
    """Queries of many and of few pairs, in no order."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, rng.integers(1, queries, pairs))


def epoch(plan, number=0):
    first = number * plan.steps_per_epoch
    return [plan.batch(step) for step in range(first, first + plan.steps_per_epoch)]


@pytest.mark.parametrize("batch_size", [1, 7, 100, 333, 999, 1000, 5000])
def test_every_pair_once_an_epoch(batch_size):
    plan = BatchSampler(many_queries(), batch_size, epochs=3, seed=0)
    assert plan.steps == 3 * plan.steps_per_epoch == 3 * -(-1000 // batch_size)
    for number in range(3):
        assert sorted(np.concatenate(epoch(plan, number)).tolist()) == list(range(1000))


@pytest.mark.parametrize("batch_size", [1, 7, 100, 333, 999, 1000, 5000])
def test_batches_are_of_one_size_but_for_one_pair(batch_size):
    sizes = [len(batch) for batch in epoch(BatchSampler(many_queries(), batch_size, 1, 0))]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_follows_from_seed_epoch_and_step_alone():
    query = many_queries()
    wanted = BatchSampler(query, 64, epochs=3, seed=5)
    in_order = [wanted.batch(step) for step in range(wanted.steps)]
    for step in np.random.default_rng(1).permutation(wanted.steps):
        assert (BatchSampler(query, 64, 3, 5).batch(int(step)) == in_order[step]).all()
        assert (wanted.batch(int(step)) == in_order[step]).all()


def test_more_epochs_do_not_change_the_first():
    query = many_queries()
    for short, long in zip(epoch(BatchSampler(query, 64, 1, 5)), epoch(BatchSampler(query, 64, 9, 5)), strict=True):
        assert (short == long).all()


def test_epochs_and_seeds_differ():
    query = many_queries()
    plan = BatchSampler(query, 64, 2, 0)
    first, second, other = (
        np.concatenate(batches) for batches in (epoch(plan), epoch(plan, 1), epoch(BatchSampler(query, 64, 1, 1)))
    )
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9
    assert {frozenset(batch.tolist()) for batch in epoch(plan)}.isdisjoint(
        frozenset(batch.tolist()) for batch in epoch(plan, 1)
    )


def test_the_global_random_state_is_neither_read_nor_moved():
    query = many_queries()
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first = epoch(BatchSampler(query, 64, 1, 0))
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(1)
    assert all((a == b).all() for a, b in zip(first, epoch(BatchSampler(query, 64, 1, 0)), strict=True))


def test_pairs_of_a_query_stay_together():
    query = many_queries()
    order = query[np.concatenate(epoch(BatchSampler(query, 64, 1, 0)))]
    assert (np.diff(order) != 0).sum() + 1 == len(np.unique(query))
    held_by = [set(query[batch]) for batch in epoch(BatchSampler(query, 64, 1, 0))]
    for here, after in pairwise(held_by):
        assert len(here & after) <= 1  # only the query at the border is cut


def test_a_query_larger_than_a_batch_is_cut_at_random():
    query = np.zeros(100, np.int32)
    plan = BatchSampler(query, 10, 2, 0)
    assert [set(batch) for batch in epoch(plan)] != [set(batch) for batch in epoch(plan, 1)]
    assert sorted(np.concatenate(epoch(plan)).tolist()) == list(range(100))


def test_one_pair():
    assert BatchSampler(np.array([0]), 240, 1, 0).batch(0).tolist() == [0]
