"""How work is divided, and what one process of a host hands to the others."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from lorry.config import TrainConfig
from lorry.data.pairs import read_splits
from lorry.distributed import sharing
from lorry.distributed.place import place_of
from lorry.distributed.ranks import ALONE, Ranks, places
from lorry.errors import UserError

PLACE = {
    "RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "7777",
}  # fmt: skip


@pytest.mark.parametrize("texts", [0, 1, 2, 3, 50])
def test_shares_have_every_text_once_and_about_as_many_tokens(texts):
    lengths = np.random.default_rng(texts).integers(1, 64, texts)
    shares = Ranks(place_of(PLACE)).shares(lengths)
    assert sorted(np.concatenate(shares).tolist()) == list(range(texts))
    tokens = [int(lengths[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= lengths.max(initial=0)
    assert all((np.diff(share) > 0).all() for share in shares)


def test_the_place_of_every_row_is_where_its_rank_sends_it():
    shares = [np.array([1, 4]), np.array([0, 2, 3]), np.array([], int)]
    most, place = places(shares)
    sent = np.full((3, most), -1)
    for rank, rows in enumerate(shares):
        sent[rank, : len(rows)] = rows
    assert sent.ravel()[place].tolist() == [0, 1, 2, 3, 4]


def test_one_alone_gets_back_what_it_gives():
    weight = torch.nn.Parameter(torch.ones(2))
    ALONE.sum_gradients([weight])
    assert weight.grad is None
    assert ALONE.from_first(lambda: 1, "x") == ALONE.once_a_host(lambda: 1, "x") == 1
    assert [ALONE.any(True), ALONE.any_after_work(False, "x"), ALONE.smallest(3)] == [True, False, 3]
    rows = torch.ones(2, 3)
    assert ALONE.collect(rows, [np.arange(2)], everywhere=False) is rows
    ALONE.finish()


def test_pairs_come_out_of_a_file_as_they_went_in(tmp_path, shop_pairs):
    splits = read_splits(TrainConfig(train=str(shop_pairs(tmp_path / "shop"))))
    sharing.save(splits, tmp_path / "shared")
    found = sharing.load(tmp_path / "shared")
    (tmp_path / "shared").unlink()
    assert {name: pairs.fingerprint() for name, pairs in found.items()} == {
        name: pairs.fingerprint() for name, pairs in splits.items()
    }
    assert found["train"].health == splits["train"].health
    assert not found["train"].query.flags.writeable, "it is the file's"


def test_arrays_that_are_mapped_already_are_named_not_copied(tmp_path):
    numbers = np.arange(100_000, dtype=np.int32)
    (tmp_path / "tokens.bin").write_bytes(numbers.tobytes())
    mapped = np.memmap(tmp_path / "tokens.bin", np.int32, "r")
    sharing.save({"tokens": mapped, "empty": np.empty(0), "text": pa.array(["a"], pa.large_string())}, tmp_path / "f")
    assert (tmp_path / "f").stat().st_size < 10_000
    found = sharing.load(tmp_path / "f")
    assert np.array_equal(found["tokens"], numbers)
    assert isinstance(found["tokens"], np.memmap)
    assert found["empty"].size == 0
    assert found["text"].to_pylist() == ["a"]


def test_half_a_place_is_refused():
    with pytest.raises(UserError, match="RANK and WORLD_SIZE are set, but not LOCAL_RANK"):
        place_of({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"})
