"""The before/after tables."""

from report_facts import block, make_facts

from lorry.evaluation.intervals import Change
from lorry.names import METRICS
from lorry.report.tables import before_and_after, summary_table


def test_the_summary_table_lines_up():
    metrics = {"splits": {"test": block(spearman=-0.25, **{"ndcg@10": 0.75, "ndcg@10_official_scorer": 0.5})}}
    for scorer in ("random", "bm25", "base"):
        metrics["splits"]["test"][scorer]["ndcg@10_official_scorer"] = 0.25
    lines = summary_table(metrics, "test").splitlines()
    assert lines[0] == "test: 1,200 pairs, 90 queries, of which 80 can be ranked"
    assert lines[1].split() == ["random", "BM25", "base", "tuned", "change"]
    assert lines[2].split() == ["ndcg@10", "0.5000", "0.5000", "0.7000", "0.7500", "+0.0500"]
    assert [line.split()[0] for line in lines[2:]] == [*METRICS, "ndcg@10_official_scorer"]
    assert lines[7].endswith("0.7000  -0.2500  -0.9500")
    assert len({len(line) for line in lines[1:]}) == 1


def test_rows_tell_the_best_scorers_and_what_is_not_defined():
    tables = before_and_after(make_facts(undefined={"test": ["mrr@10"]}))
    assert list(tables) == ["test", "validation"]  # the split of the verdict comes first
    rows = {row.metric: row for row in tables["test"]}
    assert rows["ndcg@10"].best == {"tuned"}
    assert rows["ndcg@10_rankable"].difference == Change(0.05, 0.04, 0.06, 0.001)
    assert rows["roc_auc"].best == {"base", "tuned"}
    assert rows["roc_auc"].difference is None
    assert (rows["mrr@10"].defined, rows["mrr@10"].best) == (False, set())
