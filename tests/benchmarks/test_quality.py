"""The quality benchmark keeps every row that it has made, and its probe of transfer holds out whole categories."""

import sys

import numpy as np
import pyarrow as pa
import pytest

import homedepot
import quality
import records

METRICS = {"ndcg@10_rankable": 0.9, "roc_auc": 0.7, "pair_accuracy": 0.5}


class Lab:
    precision = "fp32"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs the benchmark with made-up rows and returns what it prints."""
    output = tmp_path / "results" / "quality.json"

    def small(lab, name):
        if name == "crash":
            raise MemoryError
        return {"test": METRICS, "share": 0.5}

    def run(*arguments):
        monkeypatch.setattr(quality, "Lab", Lab)
        monkeypatch.setitem(quality.TABLES, "small", (small, ["base model", "crash"]))
        monkeypatch.setattr(sys, "argv", ["quality.py", *arguments, "--output", str(output)])
        quality.main()
        return capsys.readouterr().out

    run.output = output
    return run


def test_every_row_is_saved_when_it_is_made(run):
    with pytest.raises(MemoryError):
        run("small")
    assert list(records.load(run.output)["small"]) == ["base model"]


def test_rows_are_added_and_replaced(run):
    run("small", "--row", "one")
    run("small", "--row", "two", "--row", "one")
    assert list(records.load(run.output)["small"]) == ["one", "two"]


def test_the_tables_of_a_file_are_printed_again(run):
    printed = run("small", "--row", "one")
    assert "| one | 0.9000 | 0.7000 | 0.5000 | 50% |" in printed
    assert printed.endswith(run("show"))


def pairs_of(*queries):
    class Pairs:
        pass

    pairs = Pairs()
    pairs.queries, pairs.query = pa.array(queries, pa.large_string()), np.arange(len(queries))
    return pairs


def test_a_category_is_held_out_as_a_whole():
    words = [f"{letter}{other}ax" for letter in "bcdfgh" for other in "aeiou"]
    held = [word for word in words if homedepot._is_held_out(word)]
    assert 0 < len(held) < len(words) / 2
    fan, door = held[0], next(word for word in words if word not in held)
    queries = (f"white {fan}", f"white {fan}s", f"{fan} {door}", f"white {door}", "12 x 4")
    assert homedepot._category(pairs_of(*queries)).tolist() == [1, 1, -1, 0, 0]
