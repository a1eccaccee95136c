"""How often a best product stands first."""

import numpy as np
import pytest

from lorry.evaluation.first_place import first_place


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3, 2, 1, 3, 2, 1, 1, 2], 1.0),  # the third query cannot be ranked
        ([1, 2, 3, 3, 2, 1, 1, 2], 0.5),
        ([1, 2, 2, 3, 3, 1, 1, 2], 0.25),  # a tie with one that is as good, none; with one that is not, half
        ([0, 0, 0, 0, 0, 0, 0, 0], (1 / 3 + 1 / 3) / 2),
    ],
)
def test_a_query_counts_if_its_first_product_is_one_of_its_best(scores, expected):
    query = np.array([5, 5, 5, 9, 9, 9, 7, 7])
    gain = np.array([1.0, 0.1, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    assert first_place(query, gain, np.array(scores, float)) == pytest.approx(expected)


def test_queries_that_cannot_be_ranked_say_nothing():
    assert first_place(np.array([0, 0]), np.array([1.0, 1.0]), np.array([0.0, 1.0])) == 0.0
