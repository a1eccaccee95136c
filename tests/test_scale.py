"""The scale benchmark, at its smallest size: it runs, and counts what it was asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scale.py"


@pytest.mark.slow
def test_the_smallest_size_is_measured_in_a_process_of_its_own(tmp_path):
    output = tmp_path / "scale.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--pairs", "50000", "--output", output], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [row] = json.loads(output.read_text())
    assert (row["pairs"], row["queries"]) == (50_000, 2_500)  # no pair twice, no query on both sides
    assert 10_000 < row["texts"] < 20_000  # texts that both sides have count on both
    assert 8 < row["tokens"] / (row["texts"] + row["queries"]) < 25
    assert row["peak_gb"] < 1
    assert f"| 50,000 | {row['texts']:,} |" in done.stdout
