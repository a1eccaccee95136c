"""Search among all products and smaller vectors, on Home Depot: the docs' tables, from the run of `make homedepot`.

    python benchmarks/evidence.py [--metrics runs/homedepot/output/metrics.json] [--output FILE]
    python benchmarks/evidence.py --show benchmarks/results/evidence.json      the tables of an earlier run

Takes from a run's metrics.json what the tables need, with date and machine. Run it where the run was made.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import records
from lorry.hardware import choose_precision
from lorry.report.facts import SEARCHER_TITLES

KEPT = ("search", "economics", "standardize", "slices", "threshold", "outcomes", "base", "tuned")


def main() -> None:
    """Record what a run has measured, or read an earlier record, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", default="runs/homedepot/output/metrics.json", help="metrics.json of the run")
    parser.add_argument("--output", default="benchmarks/results/evidence.json", help="results file")
    parser.add_argument("--show", help="print the tables of an earlier results file, and do nothing else")
    arguments = parser.parse_args()
    if arguments.show:
        print(tables(records.load(arguments.show)))
        return
    metrics = records.load(arguments.metrics)
    record = records.new_record(choose_precision("auto", torch.device("cpu")))
    record |= {name: metrics["splits"]["test"][name] for name in KEPT}
    record |= {"probe": metrics["probe"]} if "probe" in metrics else {}
    records.save(record, Path(arguments.output))
    print(tables(record))


def tables(record: Mapping[str, Any]) -> str:
    """Return the tables as Markdown, with date and machine above."""
    parts = [records.describe(record), _search(record["search"]), _economics(record["economics"])]
    return "\n\n".join([*parts, _standardized(record), _slices(record["slices"])])


def _search(search: Mapping[str, Any]) -> str:
    names = list(search["bm25"])
    rows = [[title, *(f"{search[key][name]:.4f}" for name in names)] for key, title in SEARCHER_TITLES.items()]
    return records.markdown(["search", *names], rows)


def _economics(forms: list[Mapping[str, Any]]) -> str:
    rows = [
        [
            row["form"],
            str(row["dims"]),
            f"{row['bytes_per_million'] / 1e6:,.0f}",
            f"{row['ndcg@10_rankable']:.4f}",
            f"{row['recall@10']:.4f}",
        ]
        for row in forms
    ]
    return records.markdown(["vectors", "numbers", "MB per million products", "nDCG@10, judged", "recall@10"], rows)


def _standardized(record: Mapping[str, Any]) -> str:
    names = {"ndcg@10_rankable": "nDCG@10", "pair_accuracy": "pair accuracy", "roc_auc": "ROC-AUC"}
    kinds = {"as it is": record, **record["standardize"]}
    rows = [
        [f"{model}, {kind}", *(f"{values[model][name]:.4f}" for name in names)]
        for model in ("base", "tuned")
        for kind, values in kinds.items()
    ]
    return records.markdown(["cosine", *names.values()], rows)


def _slices(slices: Mapping[str, list[Mapping[str, Any]]]) -> str:
    rows = []
    for kind in ("query_length", "judged_products", "lexical_overlap"):
        for row in slices[kind]:
            if row["change"]:
                change = f"{row['change']['change']:+.4f} ({row['change']['low']:+.4f} to {row['change']['high']:+.4f})"
                figures = [f"{row[model]:.4f}" for model in ("base", "tuned")]
                rows.append([f"{row['name']}", f"{row['queries_rankable']:,}", *figures, change])
    return records.markdown(["queries with", "queries", "base", "tuned", "change"], rows)


if __name__ == "__main__":
    main()
