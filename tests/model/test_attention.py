"""Packed attention against one text at a time, and how texts are laid out."""

import numpy as np
import pytest
import torch

from lorry.model.attention import PackedAttention, attend, attend_with_sdpa
from lorry.model.packing import lay_out

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


def spread(x, layout):
    """Put the rows of x, texts end to end as given, where the layout wants them; what is empty gets numbers too."""
    out = torch.randn((len(layout.tokens), *x.shape[1:]), dtype=x.dtype)
    out[torch.from_numpy(layout.tokens >= 0)] = x[layout.tokens[layout.tokens >= 0]]
    return out


def gather(x, layout):
    """The way back: rows of the texts, end to end as given."""
    places = np.flatnonzero(layout.tokens >= 0)
    return x[torch.from_numpy(places[np.argsort(layout.tokens[places])])]


@pytest.mark.parametrize("attention", [PackedAttention.apply, attend_with_sdpa], ids=["cpu", "sdpa"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4, 64, 100])
@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], MIXED], ids=["one token", "equal", "mixed"])
def test_outputs_and_gradients_are_those_of_one_text_at_a_time(lengths, window, causal, attention):
    layout = lay_out(np.array(lengths), CPU)
    x = inputs(lengths)
    found = gather(attention(*(spread(part, layout) for part in x), None, layout, 0.37, causal, window), layout)
    expected = one_by_one(*x, lengths, 0.37, causal, window)
    torch.testing.assert_close(found, expected)
    pull = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(torch.autograd.grad(found, x, pull), torch.autograd.grad(expected, x, pull))


@pytest.mark.parametrize("attention", [PackedAttention.apply, attend_with_sdpa], ids=["cpu", "sdpa"])
def test_the_bias_by_relative_position_and_its_gradient(attention):
    """Lines of several widths, shared and not, with a table as wide as the widest needs."""
    lengths = [5, 60, 3, 70, 200, 9, 66]
    layout = lay_out(np.array(lengths), CPU)
    widest = layout.groups[-1].width
    assert len(layout.groups) > 2
    x = inputs(lengths, dtype=torch.float32)
    heads = x[0].shape[1]
    table = torch.randn(heads, 2 * widest - 1, generator=torch.Generator().manual_seed(4)).requires_grad_()
    found = gather(attention(*(spread(part, layout) for part in x), table, layout, 0.37, False, None), layout)
    pieces = []
    for query, key, value in zip(*(part.split(lengths) for part in x), strict=True):
        place = torch.arange(len(query))
        bias = table[:, place[None, :] - place[:, None] + widest - 1]
        scores = torch.einsum("ihd,jhd->hij", query, key) * 0.37 + bias
        pieces.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), value))
    expected = torch.cat(pieces)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    pull = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(9))
    mine, theirs = (torch.autograd.grad(out, [*x, table], pull) for out in (found, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_work_is_cut_into_parts_without_a_trace(monkeypatch):
    """A line at a time gives what all lines at once give."""
    layout = lay_out(np.array(MIXED), CPU)
    x = [spread(part, layout) for part in inputs(MIXED)]
    whole = PackedAttention.apply(*x, None, layout, 0.37, True, 4)
    monkeypatch.setattr("lorry.model.attention.SCORES_PER_BLOCK", 1)
    torch.testing.assert_close(PackedAttention.apply(*x, None, layout, 0.37, True, 4), whole)


@pytest.mark.parametrize(("line_width", "width_step"), [(64, 8), (0, 16), (32, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_every_token_has_one_place_and_every_text_one_line(seed, line_width, width_step):
    lengths = np.random.default_rng(seed).integers(1, 200, 300)
    layout = lay_out(lengths, CPU, line_width=line_width, width_step=width_step)
    total = len(layout.tokens)
    assert sorted(layout.tokens[layout.tokens >= 0].tolist()) == list(range(lengths.sum()))
    assert [group.start for group in layout.groups] == [0, *(group.end for group in layout.groups[:-1])]
    assert layout.groups[-1].end == total
    assert layout.lengths.tolist() == lengths.tolist()
    begin = np.cumsum(lengths) - lengths
    for start, length, first in zip(layout.starts.tolist(), lengths.tolist(), begin.tolist(), strict=True):
        assert layout.tokens[start : start + length].tolist() == list(range(first, first + length))
        assert layout.positions[start : start + length].tolist() == list(range(length))
        group = next(group for group in layout.groups if group.start <= start < group.end)
        assert (start - group.start) // group.width == (start + length - 1 - group.start) // group.width
        assert group.shared == (group.width <= line_width)
    for group in layout.groups:
        assert group.width % width_step == 0 or group.width == line_width
        texts = [set(row.tolist()) - {-1} for row in group.texts]
        assert all(len(row) == 1 for row in texts) or group.shared
        assert len(set().union(*texts)) == sum(map(len, texts)), "a text is in one line only"


def test_segments_add_up_to_texts_and_gaps():
    lengths = np.array(MIXED)
    layout = lay_out(lengths, CPU)
    ones = torch.from_numpy((layout.tokens >= 0).astype(float))
    sums = torch.segment_reduce(ones, "sum", lengths=layout.segments)
    assert layout.segments.sum() == len(layout.tokens)
    assert sums[layout.order].tolist() == lengths.tolist()
    assert sums.sum() == lengths.sum()


def test_little_is_left_empty():
    """Like product titles, and like texts cut at 256 tokens: the empty places are few and the widths too."""
    random = np.random.default_rng(0)
    for lengths, empty, widths in (
        (np.clip(random.normal(20, 8, 150), 4, 64), 0.03, 1),
        (np.clip(random.normal(200, 80, 150), 10, 256), 0.03, 26),
    ):
        layout = lay_out(lengths.astype(np.int64), CPU)
        assert (layout.tokens < 0).mean() < empty
        assert len(layout.groups) <= widths
    assert len(lay_out(np.array([5]), CPU).tokens) == 8, "one short text needs no whole line"


def test_lines_to_spare_leave_few_shapes():
    """As in batches of 240 titles, of which some few are longer than a line; texts of many lengths get none."""
    random = np.random.default_rng(0)
    shapes, places = set(), [0, 0]
    for _ in range(100):
        lengths = np.clip(random.normal(24, 8, 210), 4, 64).astype(np.int64)
        layouts = [lay_out(lengths, CPU, spare_lines=spare) for spare in (False, True)]
        shapes.add(layouts[1].shape)
        places = [total + len(layout.tokens) for total, layout in zip(places, layouts, strict=True)]
    assert len(shapes) <= 5
    assert places[1] < 1.03 * places[0]
    lengths = np.clip(random.normal(200, 80, 150), 10, 256).astype(np.int64)
    assert lay_out(lengths, CPU, spare_lines=True).shape == lay_out(lengths, CPU).shape


@pytest.mark.parametrize("seed", range(3))
def test_lines_to_spare_are_empty_and_the_others_are_the_same(seed):
    lengths = np.append(np.random.default_rng(seed).integers(1, 65, 300), [70, 71, 99])
    without, layout = (lay_out(lengths, CPU, spare_lines=spare) for spare in (False, True))
    for group, more in zip(without.groups, layout.groups, strict=True):
        assert more.texts[: group.lines].equal(group.texts)
        assert more.positions[: group.lines].equal(group.positions)
        assert (more.texts[group.lines :] == -1).all()
    assert len(layout.tokens) > len(without.tokens)
    ones = torch.from_numpy((layout.tokens >= 0).astype(float))
    sums = torch.segment_reduce(ones, "sum", lengths=layout.segments)
    assert sums[layout.order].tolist() == lengths.tolist()
    assert layout.segments.sum() == len(layout.tokens)


def test_a_layout_with_other_places_has_them_in_its_groups():
    layout, other = (lay_out(np.array(lengths), CPU) for lengths in ([40, 30, 20], [38, 26, 26]))
    assert layout.shape == other.shape
    made = layout.with_places(other.texts, other.positions)
    for here, there in zip(made.groups, other.groups, strict=True):
        assert here.texts.equal(there.texts)
        assert here.positions.equal(there.positions)
    assert made.positions is other.positions


def test_each_key_head_serves_its_group_of_query_heads():
    """What transformers hands over: [1, heads, T, width], fewer key heads than query heads."""
    lengths = [2, 5, 9]
    query, key, value = inputs(lengths, heads=4)
    layer = torch.nn.Module()
    layer.is_causal = True
    layout = lay_out(np.array(lengths), CPU)
    rows = [spread(x, layout).transpose(0, 1)[None] for x in (query, key[:, :2], value[:, :2])]
    out, weights = attend(layer, *rows, None, packed_layout=layout)
    each = [x[:, [0, 0, 1, 1]] for x in (key, value)]
    expected = one_by_one(query, *each, lengths, 4**-0.5, True, None)
    torch.testing.assert_close(gather(out[0], layout), expected)
    assert weights is None


def test_a_layers_own_word_on_causality_can_be_overruled():
    lengths = [2, 5, 9]
    x = inputs(lengths)
    layer = torch.nn.Module()
    layer.is_causal = True
    layout = lay_out(np.array(lengths), CPU)
    rows = [spread(part, layout).transpose(0, 1)[None] for part in x]
    out, _ = attend(layer, *rows, None, packed_layout=layout, scaling=0.5, is_causal=False)
    torch.testing.assert_close(gather(out[0], layout), one_by_one(*x, lengths, 0.5, False, None))


def test_half_precision_stays_finite_where_scores_are_large():
    lengths = MIXED
    x = [part.detach().mul(30).bfloat16().requires_grad_() for part in inputs(lengths)]
    layout = lay_out(np.array(lengths), CPU)
    out = gather(PackedAttention.apply(*(spread(part, layout) for part in x), None, layout, 1.0, True, 4), layout)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(out.float().sum(), x))
