"""The queries that changed most."""

import numpy as np
import pyarrow as pa
import pytest

from lorry.data.pairs import Health, Pairs
from lorry.report.changes import QueryChange, query_changes

HALF = pytest.approx(1 / np.log2(3))  # nDCG of two products in the wrong order


@pytest.fixture
def pairs():
    """Return three queries of two products, the second one good."""
    return Pairs(
        queries=pa.array(["saw", "nail", "glue"], pa.large_string()),
        texts=pa.array([f"text {i}" for i in range(6)], pa.large_string()),
        query=np.repeat(np.arange(3, dtype=np.int32), 2),
        text=np.arange(6, dtype=np.int32),
        gain=np.tile(np.float32([0, 1]), 3),
        relevant=np.tile([False, True], 3),
        label=np.tile(np.int8([1, 0]), 3),
        label_names=("E", "I"),
        health=Health(6, 6, {}, {}, [], "0/1 pairs"),
    )


def test_changed_queries_come_with_their_top_products(pairs):
    base, tuned = np.array([0.9, 0.1, 0.1, 0.9, 0.1, 0.9]), np.array([0.1, 0.9, 0.9, 0.1, 0.1, 0.9])
    assert query_changes(pairs, base, tuned) == [
        QueryChange("saw", HALF, 1.0, "text 0", "text 1", "I", "E"),
        QueryChange("nail", 1.0, HALF, "text 3", "text 2", "E", "I"),
    ]
    assert query_changes(pairs, base, base) == []


def test_the_largest_changes_come_first_and_are_kept():
    """A query of three products has room to fall further than one of two."""
    pairs = Pairs(
        queries=pa.array(["two", "three"], pa.large_string()),
        texts=pa.array([f"text {i}" for i in range(5)], pa.large_string()),
        query=np.int32([0, 0, 1, 1, 1]),
        text=np.arange(5, dtype=np.int32),
        gain=np.float32([0, 1, 0, 0, 1]),
        relevant=np.array([False, True, False, False, True]),
        label=np.int8([1, 0, 1, 1, 0]),
        label_names=("E", "I"),
        health=Health(5, 5, {}, {}, [], "0/1 pairs"),
    )
    right = np.array([0.1, 0.9, 0.1, 0.2, 0.9])
    for base, tuned in ((right, -right), (-right, right)):
        assert [change.query for change in query_changes(pairs, base, tuned)] == ["three", "two"]
        assert [change.query for change in query_changes(pairs, base, tuned, limit=1)] == ["three"]


def test_the_limit_holds_for_each_direction(pairs):
    wrong, right = np.tile([0.9, 0.1], 3), np.tile([0.1, 0.9], 3)
    assert [change.query for change in query_changes(pairs, wrong, right, limit=2)] == ["saw", "nail"]
    assert len(query_changes(pairs, right, wrong, limit=2)) == 2
    assert len(query_changes(pairs, right, wrong)) == 3
