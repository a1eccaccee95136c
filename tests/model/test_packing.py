"""Texts of different lengths: taking some of them, dividing them into forward passes."""

import numpy as np
import pytest
import torch

from lorry.model.packing import TokenSequences, lay_out, split


def some_lengths(seed):
    random = np.random.default_rng(seed)
    return random.integers(1, 90, random.integers(1, 60))


def test_taken_texts_keep_their_tokens():
    texts = TokenSequences(np.array([1, 2, 3, 4, 5, 6]), np.array([2, 1, 3]))
    taken = texts.take(np.array([2, 0, 2]))
    assert taken.ids.tolist() == [4, 5, 6, 1, 2, 4, 5, 6]
    assert taken.lengths.tolist() == [3, 2, 3]
    assert len(taken) == 3


@pytest.mark.parametrize("line_width", [0, 64])
@pytest.mark.parametrize("max_texts", [None, 1, 7])
@pytest.mark.parametrize("max_tokens", [None, 1, 20, 70, 300])
@pytest.mark.parametrize("seed", range(5))
def test_parts_hold_every_text_once_and_no_more_than_allowed(seed, max_tokens, max_texts, line_width):
    lengths = some_lengths(seed)
    parts = split(lengths, max_tokens, max_texts=max_texts, line_width=line_width)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    assert all(len(part) == 1 or lengths[part].sum() <= (max_tokens or lengths.sum()) for part in parts)
    assert all(len(part) <= (max_texts or len(lengths)) for part in parts)


def test_what_is_allowed_in_one_part_is_one_in_order():
    lengths = some_lengths(0)
    for max_tokens in (None, int(lengths.sum())):
        assert [part.tolist() for part in split(lengths, max_tokens)] == [list(range(len(lengths)))]


def test_texts_that_share_no_line_are_put_with_their_like():
    lengths = np.array([5, 40, 3, 3, 9, 12, 3])
    assert [lengths[part].tolist() for part in split(lengths, 15)] == [[40], [12], [9, 5], [3, 3, 3]]
    assert [lengths[part].tolist() for part in split(lengths, 15, line_width=8)][:3] == [[40], [12], [9]]


@pytest.mark.parametrize("mean", [10, 25, 40])
def test_parts_of_short_texts_fill_their_lines_as_the_whole_does(mean):
    lengths = np.random.default_rng(0).poisson(mean, 2000).clip(1, 64)
    parts = split(lengths, 4096, line_width=64)
    assert len(parts) > 4
    in_parts = sum(len(lay_out(lengths[part], torch.device("cpu")).tokens) for part in parts)
    assert in_parts < 1.01 * len(lay_out(lengths, torch.device("cpu")).tokens)
