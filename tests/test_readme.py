"""The README's tables are those that the results files make: figures do not drift from what was measured."""

import json
from pathlib import Path

import pytest

import quality
import scale
import throughput

ROOT = Path(__file__).parents[1]
TABLES = {"quality": quality.table, "scale": scale.table, "throughput": throughput.tables}


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_benchmark_is_in_the_readme(name):
    results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    rows = [line for line in TABLES[name](results).splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 3
    readme = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert [row for row in rows[1:] if row not in readme] == []
