"""The scale benchmark: it runs at its smallest size, counts what it was asked for, and keeps each size it has done."""

import subprocess
import sys
from pathlib import Path

import pytest

import records
import scale

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"
SIZE = {"pairs": 50_000, "texts": 10_000, "read_seconds": 1, "tokenize_seconds": 1, "again_seconds": 1,
        "order_seconds": 1, "batch_ms": 1, "cpu_seconds": 1, "peak_gb": 1, "evaluate_seconds": 1, "bm25_seconds": 1,
        "evaluated_peak_gb": 1}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the benchmark; `measure` stands in for the measuring process."""

    def run(measure, *words):
        monkeypatch.setattr(scale, "_measure_in_process", measure)
        monkeypatch.setattr(sys, "argv", ["scale.py", "--output", str(tmp_path / "scale.json"), *words])
        scale.main()

    return run


def test_every_size_is_saved_when_it_is_done(run, tmp_path, capsys):
    def measure(pairs):
        if pairs > 50_000:
            raise KeyboardInterrupt
        return SIZE

    with pytest.raises(KeyboardInterrupt):
        run(measure)
    assert records.load(tmp_path / "scale.json")["sizes"] == [SIZE]
    printed = capsys.readouterr().out
    assert "| 50,000 | 10,000 | 1.0 |" in printed
    run(measure, "--show", str(tmp_path / "scale.json"))
    assert capsys.readouterr().out == printed


def test_a_size_that_fails_is_shown_with_its_reason(run, capsys):
    run(lambda pairs: {"pairs": pairs, "failed": "out of memory"}, "--pairs", "7000")
    assert "| 7,000 | out of memory |  |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_smallest_size_is_measured_in_a_process_of_its_own(tmp_path):
    output = tmp_path / "scale.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--pairs", "50000", "--output", output], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [row] = records.load(output)["sizes"]
    assert (row["pairs"], row["queries"]) == (50_000, 2_500)  # no pair twice, no query on both sides
    assert 10_000 < row["texts"] < 20_000  # texts that both sides have count on both
    assert 8 < row["tokens"] / (row["texts"] + row["queries"]) < 25
    assert row["peak_gb"] < row["evaluated_peak_gb"] < 1.5
    assert f"| 50,000 | {row['texts']:,} |" in done.stdout
