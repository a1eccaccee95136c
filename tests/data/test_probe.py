"""The channel probe: pairs of sentences with a score."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorry.data.probe import read_probe
from lorry.errors import UserError

ROWS = [(f"A {thing} is red.", f'The "{thing}" is red, or not', 5 - number / 2) for number, thing in enumerate(
    ["lamp", "sofa", "desk", "rug", "chair", "stool", "shelf", "kettle", "mirror", "table"]
)]  # fmt: skip


def sts(folder, rows=ROWS):
    """Write a file in the form of the STS benchmark."""
    lines = ("\t".join(["main", "news", "2012", "1", f"{score:.3f}", one, two]) for one, two, score in rows)
    (folder / "sts-dev.csv").write_text("".join(f"{line}\n" for line in lines))
    return folder


def content(probe):
    return [
        (probe.queries[int(query)].as_py(), probe.texts[int(text)].as_py(), float(gain))
        for query, text, gain in zip(probe.query, probe.text, probe.gain, strict=True)
    ]


def test_the_sts_benchmarks_own_form_and_a_table_with_names_are_read_alike(tmp_path):
    (tmp_path / "sts").mkdir()
    (tmp_path / "table").mkdir()
    one, two, score = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"score": score, "sentence1": one, "sentence2": two}), tmp_path / "table" / "a.parquet")
    published = read_probe(str(sts(tmp_path / "sts")))
    assert content(published) == content(read_probe(str(tmp_path / "table")))
    assert content(published)[0] == ("A lamp is red.", 'The "lamp" is red, or not', 4.5)  # the lowest score is gain 0
    assert np.ptp(published.gain) == 4.5


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("sentence1,sentence2,similarity", "a,b,1", "has no column score"),
        ("sentence1,sentence2,score", "a,b,high", "line 2: 'a', 'b', score 'high'"),
        ("sentence1,sentence2,score", "a,,1", "line 2: 'a', None, score '1'"),
        ("sentence1,sentence2,score", "a,b,1", "has 1 pairs. Give 10 or more."),
    ],
)
def test_what_is_no_probe_is_refused(tmp_path, header, row, said):
    (tmp_path / "probe.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(UserError) as caught:
        read_probe(str(tmp_path))
    assert said in str(caught.value)


def test_a_line_of_the_benchmark_that_lacks_cells_is_named(tmp_path):
    with (sts(tmp_path) / "sts-dev.csv").open("a") as file:
        file.write("main\tnews\n")
    with pytest.raises(UserError, match="line 11 has 2 cells"):
        read_probe(str(tmp_path))
