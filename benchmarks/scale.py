"""What reading, tokenising and planning cost as the pairs grow: `make scale` makes the table in the docs.

    python benchmarks/scale.py [--pairs N ...] [--output benchmarks/results/scale.json]
    python benchmarks/scale.py --show benchmarks/results/scale.json      the table of an earlier run

N judged pairs are made up (a fifth as many unique texts, a twentieth as many queries) and written to a temporary
folder. A fresh process then does with them what a run does before its first step, by the run's own functions, and
evaluates a model on the validation pairs, a tenth of all, beside BM25. The model has one layer: its speed does not
matter here, the memory does. The process reports how long each part took, the CPU time of all cores (which says more
on a busy machine), and its peak memory without evaluation and with it.
The results file is rewritten after every size; a size that fails is recorded with its reason.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

import records
from lorry.config import TrainConfig
from lorry.data.pairs import read_splits
from lorry.data.sampler import BatchSampler
from lorry.evaluation import scoring
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import load_tokenizer, tokenize
from lorry.training.batches import make_batch
from processes import WorkerProcess

SIZES = (50_000, 500_000, 5_000_000)
PAIRS_A_QUERY = 20
PAIRS_A_TEXT = 5
STRIDE = 7_919  # a prime, so that the pairs of a query have texts of their own
ROWS = 200_000  # written at once
STEPS = 200  # of which batches are timed
TIMEOUT = 3600.0  # seconds that one size may take
COLUMNS = {
    "pairs": ("pairs", ",d"),
    "texts": ("texts", ",d"),
    "reading, s": ("read_seconds", ".1f"),
    "tokenising, s": ("tokenize_seconds", ".1f"),
    "tokens from the cache, s": ("again_seconds", ".2f"),
    "ordering an epoch, s": ("order_seconds", ".2f"),
    "one batch, ms": ("batch_ms", ".2f"),
    "CPU time, s": ("cpu_seconds", ".1f"),
    "peak memory, GB": ("peak_gb", ".2f"),
    "evaluating, s": ("evaluate_seconds", ".1f"),
    "BM25, s": ("bm25_seconds", ".1f"),
    "peak memory with both, GB": ("evaluated_peak_gb", ".2f"),
}
T = TypeVar("T")


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", action="append", type=int, help=f"how many; repeat for more (default: {SIZES})")
    parser.add_argument("--output", default="benchmarks/results/scale.json", help="results file")
    parser.add_argument("--show", help="print the table of an earlier run's results file, and do nothing else")
    parser.add_argument("--measure", help="measure the pairs of this folder in this process, and do nothing else")
    arguments = parser.parse_args()
    if arguments.show:
        print(table(records.load(arguments.show)))
        return
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure))))
        return
    record: dict[str, Any] = {**records.new_record("fp32"), "sizes": []}
    try:
        for pairs in arguments.pairs or SIZES:
            record["sizes"].append(_measure_in_process(pairs))
            records.save(record, Path(arguments.output))
    finally:  # also after Ctrl-C: what there is
        print(table(record))


def _measure_in_process(pairs: int) -> dict[str, Any]:
    """Return what a fresh process measures with so many pairs, or why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder) / "train", pairs)
        process = WorkerProcess([sys.executable, __file__, "--measure", folder], TIMEOUT)
        try:
            return process.answer() or {"pairs": pairs, "failed": process.failed}
        finally:
            process.end()


def write_pairs(folder: Path, pairs: int) -> None:
    """Write `pairs` judged pairs as one parquet file; the same ones whenever it is called."""
    folder.mkdir()
    random = np.random.default_rng(0)
    words = _words()
    queries = _phrases(words, -(-pairs // PAIRS_A_QUERY), 2, 5, random)
    texts = _phrases(words, pairs // PAIRS_A_TEXT, 6, 19, random)
    labels = pa.array(["E", "S", "C", "I"])
    schema = pa.schema([("query", pa.large_string()), ("product_title", pa.large_string()), ("label", pa.string())])
    with pq.ParquetWriter(folder / "pairs.parquet", schema) as file:
        for start in range(0, pairs, ROWS):
            row = np.arange(start, min(start + ROWS, pairs))
            query = queries.take(pa.array(row // PAIRS_A_QUERY))
            text = texts.take(pa.array(row * STRIDE % len(texts)))
            label = labels.take(pa.array(random.choice(4, len(row), p=[0.4, 0.3, 0.1, 0.2])))
            file.write_table(pa.table([query, text, label], schema=schema))


def _words() -> pa.Array:
    """Return whole words of the bundled model's vocabulary, so that texts have as many tokens as real ones."""
    vocabulary = load_tokenizer(find_pretrained("bundled")).get_vocab()
    return pa.array(sorted(word for word in vocabulary if word.isalpha() and word.isascii()), pa.large_string())


def _phrases(words: pa.Array, count: int, least: int, most: int, random: np.random.Generator) -> pa.Array:
    """Return `count` distinct phrases of least..most words, common words often, each closed by a number of its own."""
    made = []
    for start in range(0, count, ROWS):
        number = np.arange(start, min(start + ROWS, count))
        lengths = random.integers(least, most + 1, len(number))
        chosen = random.zipf(1.3, lengths.sum()) % len(words)
        offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int64())
        phrase = pc.binary_join(
            pa.LargeListArray.from_arrays(offsets, words.take(pa.array(chosen))), pa.scalar(" ", pa.large_string())
        )
        own = pa.array(number).cast(pa.large_string())
        made.append(pc.binary_join_element_wise(phrase, own, pa.scalar(" ", pa.large_string())))
    return pa.concat_arrays(made)


def measure(folder: Path) -> dict[str, Any]:
    """Read, tokenise and plan the pairs of `folder`/train, evaluate a model on some, and say what it took."""
    logging.disable()
    base = find_pretrained("bundled")
    load_tokenizer(base)  # imports transformers: seconds that any number of pairs costs once
    began = time.process_time()
    config = TrainConfig(train=str(folder / "train"))
    splits, read = _timed(lambda: read_splits(config))
    pairs = splits["train"]
    tokens, cold = _timed(lambda: {name: tokenize(each, base, folder / "cache") for name, each in splits.items()})
    _, warm = _timed(lambda: [tokenize(each, base, folder / "cache") for each in splits.values()])
    sampler = BatchSampler(pairs.query, config.batch_size, config.epochs, config.seed)
    _, order = _timed(lambda: sampler.batch(0))
    steps = np.linspace(0, sampler.steps - 1, min(STEPS, sampler.steps)).astype(int)
    device = torch.device("cpu")
    _, batches = _timed(
        lambda: [
            tokens["train"].take(make_batch(tokens["train"], pairs, sampler.batch(step), device).rows) for step in steps
        ]
    )
    cpu, peak, held_out = time.process_time() - began, peak_bytes(), splits["validation"]
    encoder = Encoder(base, "fp32", device)
    encoder.model.encoder.layer = encoder.model.encoder.layer[:1]
    _, evaluated = _timed(lambda: scoring.score(encoder, tokens["validation"], held_out, config))
    _, bm25 = _timed(lambda: scoring.baselines(held_out, config.seed))
    return {
        "pairs": sum(map(len, splits.values())),
        "texts": sum(len(each.texts) for each in splits.values()),
        "queries": sum(len(each.queries) for each in splits.values()),
        "tokens": sum(int(each.offsets[-1]) for each in tokens.values()),
        "read_seconds": round(read, 3),
        "tokenize_seconds": round(cold, 3),
        "again_seconds": round(warm, 3),
        "order_seconds": round(order, 3),
        "batch_ms": round(1000 * batches / len(steps), 3),
        "cpu_seconds": round(cpu, 3),
        "peak_gb": round(peak / 1e9, 3),
        "evaluate_seconds": round(evaluated, 3),
        "bm25_seconds": round(bm25, 3),
        "evaluated_peak_gb": round(peak_bytes() / 1e9, 3),
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def peak_bytes() -> int:
    """Return the most memory that this process has held, of mapped files what was in memory.

    Not from getrusage: that starts from the peak of the parent process.
    """
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def table(record: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table, with date and machine above."""
    rows = []
    for size in record["sizes"]:
        cells = [format(size[name], form) if name in size else "" for name, form in COLUMNS.values()]
        rows.append([cells[0], size["failed"], *cells[2:]] if "failed" in size else cells)
    return f"{records.describe(record)}\n\n{records.markdown(list(COLUMNS), rows)}"


if __name__ == "__main__":
    main()
