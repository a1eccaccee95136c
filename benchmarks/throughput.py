"""Speed and memory beside other trainers, in turns on the same work: `make bench` makes the tables in the docs.

    python benchmarks/throughput.py [--task train …] [--rounds 5] [--seconds 5] [--output benchmarks/results/….json]
    python benchmarks/throughput.py --show benchmarks/results/throughput.json      the tables of an earlier run

Each contestant is a process of its own (see `contestants.py`). They work one at a time, A B C A B C …, so that a
machine whose speed changes is the same for all. What counts is the ratio within a round: its median and its range.
Absolute figures of a shared machine say little.

A contestant that is killed, crashes, hangs or cannot start is recorded with its reason, and the others continue. The
results file is rewritten after every round, so that an interrupted run keeps what it has measured.

Work: titles of Home Depot (`short`), and titles, descriptions and bullet points of ESCI cut at 256 tokens (`long`; all
labels of that sample are E, so random labels take their place: speed does not depend on them). LORRY_DATA holds both.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

import records
from lorry.config import PairOptions
from lorry.data.pairs import read_channel
from lorry.hardware import choose_precision
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize
from processes import WorkerProcess
from speed_tables import tables

DATA = Path(os.environ.get("LORRY_DATA", "../shared/data"))
CONTESTANTS = Path(__file__).with_name("contestants.py")
LORRY = [sys.executable, "-m", "lorry.cli"]
COLUMNS = "product_title,product_description,product_bullet_point"
BATCH_SIZES = (32, 120, 512)
POST_BATCH_SIZE = 120  # the blog post's own; at 512 one of its steps takes minutes
FIRST_STEP_BATCH_SIZE = 120
ENCODED_PAIRS = 2000

Figures = dict[str, dict[str, float]]
"""What each contestant did in a round, by name; one that failed is missing."""
Failures = dict[str, str]
"""Why each contestant that failed did so."""


@dataclass(frozen=True)
class Contest:
    """One row of a table.

    Attributes:
        file: The pairs.
        batch_size: As the table shows it.
        sizes: Batch size of each contestant, by name.
        precision: bf16, fp16 or fp32.
    """

    task: str
    file: Path
    batch_size: int
    sizes: dict[str, int]
    precision: str


@dataclass(frozen=True)
class Settings:
    """How contests are run.

    Attributes:
        rounds: Rounds that count; one more goes before, to warm up.
        seconds: Minimum length of a turn.
        timeout: Seconds after which a contestant that does not answer has failed.
        device: cpu or cuda.
    """

    rounds: int
    seconds: float
    timeout: float
    device: str = "cpu"


def main() -> None:
    """Run the tasks and print their tables."""
    arguments = _parser().parse_args()
    if arguments.show:
        print(tables(records.load(arguments.show)))
        return
    logging.getLogger("lorry").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the contestants are ended too
    precision = choose_precision("auto", torch.device("cpu"))
    settings = Settings(arguments.rounds, arguments.seconds, arguments.timeout)
    record, output = {**records.new_record(precision), "rounds": settings.rounds}, Path(arguments.output)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = [prepare(work, Path(folder)) for work in arguments.work or ("short", "long")]
            for task in arguments.task or TASKS:
                record[task] = []
                for contest in TASKS[task](files, arguments.batch_size or BATCH_SIZES, precision):
                    hold(contest, settings, record, output)
    finally:  # also after Ctrl-C: what there is
        print(tables(record))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", choices=list(TASKS), help="only this task; may be repeated")
    parser.add_argument("--work", action="append", choices=("short", "long"), help="only these texts")
    parser.add_argument("--batch_size", action="append", type=int, help="only this batch size in training")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one to warm up")
    parser.add_argument("--seconds", type=float, default=5.0, help="minimum length of a turn")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that a contestant may take to answer")
    parser.add_argument("--output", default="benchmarks/results/throughput.json", help="results file")
    parser.add_argument("--show", help="print the tables of an earlier run's results file, and do nothing else")
    return parser


def hold(contest: Contest, settings: Settings, record: dict[str, Any], output: Path) -> None:
    """Hold a contest and save the record after each of its rounds."""
    row: dict[str, Any] = {"work": contest.file.stem, "batch_size": contest.batch_size, "rounds": [], "failed": {}}
    record[contest.task].append(row)
    play = first_steps if contest.task == "first_step" else turns
    title = f"{contest.task} {contest.file.stem} {contest.batch_size}"
    for number, (done, failed) in enumerate(tqdm(play(contest, settings), title, settings.rounds + 1, file=sys.stderr)):
        row["failed"] = failed
        if number:  # the first is for warming up
            row["rounds"].append(done)
        records.save(record, output)


def prepare(name: str, folder: Path) -> Path:
    """Write the pairs of a work as `query, text, gain` with the number of tokens of each, and return the file."""
    if name == "short":
        pairs = read_channel(DATA / "homedepot" / "train", PairOptions())["all"]
    else:
        file = DATA / "esci_samples" / "grandi9_sample_2c_full_data.csv"
        pairs = read_channel(file, PairOptions(text_columns=COLUMNS))["train"]
    texts = tokenize(pairs, find_pretrained("bundled"))
    gain = pairs.gain if name == "short" else np.random.default_rng(0).integers(0, 2, len(pairs)).astype(np.float32)
    table = pa.table(
        {
            "query": _strings(pairs.queries, pairs.query),
            "text": _strings(pairs.texts, pairs.text),
            "gain": gain,
            "query_tokens": texts.lengths[: texts.queries][pairs.query],
            "text_tokens": texts.lengths[texts.queries :][pairs.text],
        }
    )
    file = folder / f"{name}.parquet"
    pq.write_table(table, file)
    return file


def _strings(column: pa.Array, rows: np.ndarray) -> pa.Array:
    return column.take(pa.array(rows)).cast(pa.string())


def training(files: Sequence[Path], batch_sizes: Sequence[int], precision: str) -> Iterator[Contest]:
    """Yield contests in training, at every batch size."""
    for file in files:
        for size in batch_sizes:
            names = ["lorry", "st", *(["post"] if (file.stem, size) == ("short", POST_BATCH_SIZE) else [])]
            yield Contest("train", file, size, dict.fromkeys(names, size), precision)


def encoding(files: Sequence[Path], _: Sequence[int], precision: str) -> Iterator[Contest]:
    """Yield contests in encoding some texts, each contestant at its own batch size."""
    for file in files:
        part = file.parent / "part" / file.name
        part.parent.mkdir(exist_ok=True)
        pq.write_table(pq.read_table(file).slice(0, ENCODED_PAIRS), part)
        yield Contest("encode", part, 32, {"lorry": 256, "st": 32}, precision)


def tokenizing(files: Sequence[Path], _: Sequence[int], precision: str) -> Iterator[Contest]:
    """Yield contests in tokenising all pairs once."""
    for file in files:
        yield Contest("tokenize", file, 120, {"lorry": 120, "st": 120}, precision)


def first_step(files: Sequence[Path], _: Sequence[int], precision: str) -> Iterator[Contest]:
    """Yield contests from the start of the process to the end of the first step."""
    for file in files:
        sizes = dict.fromkeys(("lorry", "st"), FIRST_STEP_BATCH_SIZE)
        yield Contest("first_step", file, FIRST_STEP_BATCH_SIZE, sizes, precision)


TASKS: Mapping[str, Callable[[Sequence[Path], Sequence[int], str], Iterator[Contest]]] = {
    "train": training,
    "encode": encoding,
    "tokenize": tokenizing,
    "first_step": first_step,
}


def turns(contest: Contest, settings: Settings) -> Iterator[tuple[Figures, Failures]]:
    """Let the contestants work in turns; yield what they did after each round, until none is left."""
    contestants: dict[str, WorkerProcess] = {}
    try:
        for name, size in contest.sizes.items():
            contestants[name] = start(contest.task, name, contest, size, settings)
        if contest.task == "train":
            contestants["peak"] = start("peak", "torch", contest, 1, settings)
        for contestant in contestants.values():  # they got ready at the same time
            contestant.answer()
        for _ in range(settings.rounds + 1):
            done: Figures = {}
            for name, contestant in contestants.items():
                contestant.tell(str(1.0 if name == "peak" else settings.seconds))
                if figures := contestant.answer():
                    done[name] = figures
            failed = {name: contestant.failed for name, contestant in contestants.items() if contestant.failed}
            yield done, failed
            if failed.keys() >= contest.sizes.keys():
                return
    finally:
        for contestant in contestants.values():
            contestant.end()


def start(task: str, name: str, contest: Contest, batch_size: int, settings: Settings) -> WorkerProcess:
    """Start a contestant; its first answer says that it is ready."""
    how = [str(contest.file), str(batch_size), contest.precision, settings.device]
    return WorkerProcess([sys.executable, str(CONTESTANTS), task, name, *how], settings.timeout)


def first_steps(contest: Contest, settings: Settings) -> Iterator[tuple[Figures, Failures]]:
    """Start both anew in every round, all files in the page cache; yield the time that each first step took."""
    failed: Failures = {}
    for _ in range(settings.rounds + 1):
        done: Figures = {}
        for name, time_one in {"st": _first_step_of_st, "lorry": _first_step_of_lorry}.items():
            if name not in failed:
                seconds, reason = time_one(contest, settings)
                done |= {} if reason else {name: {"seconds": seconds}}
                failed |= {name: reason} if reason else {}
        yield done, dict(failed)
        if failed.keys() >= contest.sizes.keys():
            return


def _first_step_of_st(contest: Contest, settings: Settings) -> tuple[float, str]:
    """Return the seconds to the end of the first step, and why it failed."""
    began = time.perf_counter()
    contestant = start("train", "st", contest, contest.batch_size, settings)
    try:
        contestant.answer()
        contestant.tell("0")
        contestant.answer()
        return time.perf_counter() - began, contestant.failed
    finally:
        contestant.end()


def _first_step_of_lorry(contest: Contest, settings: Settings) -> tuple[float, str]:
    """Return the seconds to the end of the first step, and why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"pretrained_model": "bundled", "train": contest.file, "label_column": "gain",
                   "positive_threshold": 0.5, "log_every": 1, "loss": "cosent", "batch_size": contest.batch_size,
                   "precision": contest.precision,
                   "model_dir": f"{folder}/model", "output_data_dir": f"{folder}/output"}  # fmt: skip
        words = [str(item) for name, value in options.items() for item in (f"--{name}", value)]
        began = time.perf_counter()
        process = WorkerProcess([*LORRY, "train", *words], settings.timeout)
        try:
            process.line("step=1/")
            return time.perf_counter() - began, process.failed
        finally:
            process.end()


if __name__ == "__main__":
    main()
