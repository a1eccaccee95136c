"""Packed attention against one text at a time, and how texts are laid out."""

import numpy as np
import pytest
import torch

from lorry.attention import PackedAttention, attend, lay_out, packed

CPU = torch.device("cpu")
MIXED = [1, 1, 2, 5, 5, 6, 7, 7, 7, 30, 31, 60, 64, 64]


def inputs(lengths, heads=2, width=4, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    shape = (3, sum(lengths), heads, width)
    return [x.clone().requires_grad_() for x in torch.randn(shape, generator=random, dtype=dtype)]


def one_by_one(query, key, value, lengths, scale, causal, window):
    """Attention by the book, text after text: [T, heads, width]."""
    pieces = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        apart = torch.arange(len(q))[:, None] - torch.arange(len(q))[None, :]
        seen = torch.ones_like(apart, dtype=torch.bool)
        if causal:
            seen &= apart >= 0
        if window is not None:
            seen &= apart.abs() < window
        probs = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        pieces.append(torch.einsum("hqk,khd->qhd", probs, v))
    return torch.cat(pieces)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4, 64, 100])
@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], MIXED], ids=["one token", "equal", "mixed"])
def test_outputs_and_gradients_are_those_of_one_text_at_a_time(lengths, window, causal):
    layout = lay_out(np.array(lengths), CPU)
    x = inputs(lengths)
    found = PackedAttention.apply(*x, layout, 0.37, causal, window)
    expected = one_by_one(*x, lengths, 0.37, causal, window)
    torch.testing.assert_close(found, expected)
    pull = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(torch.autograd.grad(found, x, pull), torch.autograd.grad(expected, x, pull))


def test_lengths_make_both_kinds_of_bucket():
    """The test above means something: some texts are viewed as they lie, others are padded together."""
    buckets = lay_out(np.array(MIXED), CPU).buckets
    assert any(bucket.padding is None for bucket in [*buckets, *lay_out(np.array([3, 3, 3]), CPU).buckets])
    assert any(bucket.padding is not None for bucket in buckets)
    assert len(buckets) > 1


@pytest.mark.parametrize("seed", range(5))
def test_buckets_cover_every_token_once(seed):
    lengths = np.sort(np.random.default_rng(seed).integers(1, 200, 300))
    layout = lay_out(lengths, CPU)
    assert layout.lengths.tolist() == lengths.tolist()
    assert layout.starts.tolist() == (np.cumsum(lengths) - lengths).tolist()
    assert layout.positions.tolist() == [place for length in lengths for place in range(length)]
    assert [bucket.start for bucket in layout.buckets] == [0, *(bucket.end for bucket in layout.buckets[:-1])]
    assert layout.buckets[-1].end == lengths.sum()
    assert sum(bucket.texts for bucket in layout.buckets) == len(lengths)
    first = 0
    for bucket in layout.buckets:
        own = lengths[first : first + bucket.texts]
        first += bucket.texts
        assert bucket.length == own.max()
        assert bucket.end - bucket.start == own.sum()
        if bucket.rows is None:
            assert (own == bucket.length).all()
            continue
        rows, places = bucket.rows.numpy(), bucket.places.numpy()
        assert (rows[places] == np.arange(own.sum())).all()
        assert (~bucket.padding.numpy().ravel()).nonzero()[0].tolist() == places.tolist()
        assert len(rows) == bucket.texts * bucket.length


def test_few_buckets_hold_many_texts():
    """Sixty lengths, but not sixty products: texts of nearly equal length go together, at little waste."""
    lengths = np.sort(np.random.default_rng(0).integers(4, 64, 200))
    buckets = lay_out(lengths, CPU).buckets
    assert len(buckets) < len(np.unique(lengths))
    assert sum(bucket.texts * bucket.length for bucket in buckets) < 1.3 * lengths.sum()


def test_each_key_head_serves_its_group_of_query_heads():
    """What transformers hands over: [1, heads, T, width], fewer key heads than query heads."""
    lengths = [2, 5, 9]
    query, key, value = inputs(lengths, heads=4)
    layer = torch.nn.Module()
    layer.is_causal = True
    with packed(lay_out(np.array(lengths), CPU)):
        out, weights = attend(layer, *(x.transpose(0, 1)[None] for x in (query, key[:, :2], value[:, :2])), None)
    each = [x[:, [0, 0, 1, 1]] for x in (key, value)]
    expected = one_by_one(query, *each, lengths, 4**-0.5, True, None)
    torch.testing.assert_close(out[0], expected)
    assert weights is None


def test_a_layers_own_word_on_causality_can_be_overruled():
    lengths = [2, 5, 9]
    x = inputs(lengths)
    layer = torch.nn.Module()
    layer.is_causal = True
    with packed(lay_out(np.array(lengths), CPU)):
        out, _ = attend(layer, *(part.transpose(0, 1)[None] for part in x), None, scaling=0.5, is_causal=False)
    torch.testing.assert_close(out[0], one_by_one(*x, lengths, 0.5, False, None))


def test_layouts_nest_and_are_dropped_after_an_error():
    outer, inner = (lay_out(np.array(lengths), CPU) for lengths in ([3], [1, 2]))
    x = [part.transpose(0, 1)[None] for part in inputs([3])]
    layer = torch.nn.Module()
    with packed(outer):
        before, _ = attend(layer, *x, None)
        with pytest.raises(ZeroDivisionError), packed(inner):
            raise ZeroDivisionError
        after, _ = attend(layer, *x, None)
    torch.testing.assert_close(before, after)


def test_half_precision_stays_finite_where_scores_are_large():
    lengths = MIXED
    x = [part.detach().mul(30).bfloat16().requires_grad_() for part in inputs(lengths)]
    out = PackedAttention.apply(*x, lay_out(np.array(lengths), CPU), 1.0, True, 4)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(out.float().sum(), x))
