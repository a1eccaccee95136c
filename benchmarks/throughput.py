"""Speed and memory beside the peers, in turns on the same work: `make bench` writes the table that the README shows.

    python benchmarks/throughput.py [--task train …] [--rounds 5] [--seconds 5] [--output benchmarks/results/….json]
    python benchmarks/throughput.py --show benchmarks/results/throughput.json      the table of an earlier run

Every contestant is a process of its own (see `contestants.py`); they work one at a time, A B C A B C …, so that a
machine whose speed changes is the same for all. What counts is the ratio within a round: its median, and how far it
spread. Absolute figures of a shared machine say little.

Work: titles of Home Depot (`short`), and titles, descriptions and bullet points of ESCI cut at 256 tokens (`long`; the
sample's labels are all E, so they are drawn anew: they weigh nothing here). Both come from LORRY_DATA.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from lorry.config import PairOptions
from lorry.data.pairs import read_channel
from lorry.hardware import choose_precision
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize

DATA = Path(os.environ.get("LORRY_DATA", "../shared/data"))
COLUMNS = "product_title,product_description,product_bullet_point"
BATCH_SIZES = (32, 120, 512)
POST_BATCH_SIZE = 120  # the post's own; at 512 a step of it takes minutes
FIRST_STEP_BATCH_SIZE = 120
ENCODED_PAIRS = 2000

Rounds = list[dict[str, dict[str, float]]]


class Contestant:
    """A process that works when it is told to."""

    def __init__(self, task: str, name: str, file: Path, batch_size: int, precision: str) -> None:
        script = Path(__file__).with_name("contestants.py")
        command = [sys.executable, str(script), task, name, str(file), str(batch_size), precision]
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.failed = ""
        self._answer()

    def work(self, seconds: float) -> dict[str, float]:
        """Return what was done in at least so many seconds; nothing once it failed."""
        if self.failed or self.process.stdin is None:
            return {}
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = next((line for line in self.process.stdout if line.startswith("{")), "")
        if not line and self.process.wait() == -signal.SIGKILL:  # by the kernel, which ran out of memory
            self.failed = "out of memory"
            return {}
        if not line:
            raise RuntimeError(self.process.stderr.read())
        answer: dict[str, Any] = json.loads(line)
        self.failed = answer.pop("error", "")
        return answer

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def main() -> None:
    """Run the tasks and print the table."""
    tasks = {"train": training, "encode": encoding, "tokenize": tokenizing, "first_step": first_step}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", choices=list(tasks), help="only these")
    parser.add_argument("--work", action="append", choices=("short", "long"), help="only these")
    parser.add_argument("--batch_size", action="append", type=int, help="only these")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count; one more goes before")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a turn is at the least")
    parser.add_argument("--output", default="benchmarks/results/throughput.json")
    parser.add_argument("--show", help="print the tables of an earlier run")
    arguments = parser.parse_args()
    if arguments.show:
        print(tables(json.loads(Path(arguments.show).read_text("utf-8"))))
        return
    logging.getLogger("lorry").setLevel(logging.ERROR)
    precision = choose_precision("auto", torch.device("cpu"))
    results: dict[str, Any] = {"machine": machine(precision), "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as folder:
        works = {name: prepare(name, Path(folder)) for name in arguments.work or ("short", "long")}
        arguments.batch_size = arguments.batch_size or list(BATCH_SIZES)
        for task in arguments.task or tasks:
            results[task] = tasks[task](works, precision, arguments)
            output = Path(arguments.output)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(tables(results))


def machine(precision: str) -> dict[str, Any]:
    """Return what the figures were made on."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"cpu": name, "threads": torch.get_num_threads(), "torch": platform.python_version() and torch.__version__,
            "precision": precision}  # fmt: skip


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


def training(works: Mapping[str, Path], precision: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Let the contestants train at every batch size."""
    found = []
    for work, file in works.items():
        for batch_size in arguments.batch_size:
            names = ["lorry", "st", *(["post"] if (work, batch_size) == ("short", POST_BATCH_SIZE) else [])]
            rounds = compete("train", dict.fromkeys(names, batch_size), file, precision, arguments)
            found.append({"work": work, "batch_size": batch_size, "rounds": rounds})
    return found


def encoding(works: Mapping[str, Path], precision: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Let both encode some texts, each at its own batch size."""
    found = []
    for work, file in works.items():
        some = file.with_name(f"{work}-some.parquet")
        pq.write_table(pq.read_table(file).slice(0, ENCODED_PAIRS), some)
        rounds = compete("encode", {"lorry": 256, "st": 32}, some, precision, arguments)
        found.append({"work": work, "batch_size": 32, "rounds": rounds})
    return found


def tokenizing(works: Mapping[str, Path], precision: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Let both tokenise all pairs, once."""
    return [
        {
            "work": work,
            "batch_size": 120,
            "rounds": compete("tokenize", {"lorry": 120, "st": 120}, file, precision, arguments),
        }
        for work, file in works.items()
    ]


def compete(task: str, sizes: Mapping[str, int], file: Path, precision: str, arguments: argparse.Namespace) -> Rounds:
    """Return what each contestant did in each round; one that runs out of memory is missing from then on.

    Args:
        task: train, encode or tokenize.
        sizes: Batch size of each contestant, by name.
        file: The pairs.
        precision: bf16 or fp32.
        arguments: Rounds, and seconds a turn.
    """
    contestants = {name: Contestant(task, name, file, size, precision) for name, size in sizes.items()}
    if task == "train":
        contestants["peak"] = Contestant("peak", "torch", file, 1, precision)
    rounds: Rounds = []
    try:
        for turn in tqdm(range(arguments.rounds + 1), f"{task} {file.stem} {max(sizes.values())}", file=sys.stderr):
            done = {
                name: some
                for name, contestant in contestants.items()
                if (some := contestant.work(1.0 if name == "peak" else arguments.seconds))
            }
            if turn:  # the first is for warming up
                rounds.append(done)
    finally:
        for contestant in contestants.values():
            contestant.end()
    return rounds


def first_step(works: Mapping[str, Path], precision: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time both from the start of the process to the end of the first step, every file read before."""
    found = []
    for work, file in works.items():
        rounds: Rounds = []
        for turn in tqdm(range(arguments.rounds + 1), f"first step {work}", file=sys.stderr):
            peer = Contestant("train", "st", file, FIRST_STEP_BATCH_SIZE, precision)
            peer.work(0)
            took = time.perf_counter() - peer.began
            peer.end()
            if turn:
                rounds.append({"lorry": {"seconds": _lorry_first_step(file)}, "st": {"seconds": took}})
            else:
                _lorry_first_step(file)
        found.append({"work": work, "batch_size": FIRST_STEP_BATCH_SIZE, "rounds": rounds})
    return found


def _lorry_first_step(file: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("lorry")), "train", "--pretrained_model", "bundled"]
        options = {"train": file, "label_column": "gain", "positive_threshold": 0.5, "log_every": 1, "loss": "cosent",
                   "batch_size": FIRST_STEP_BATCH_SIZE, "model_dir": f"{folder}/model",
                   "output_data_dir": f"{folder}/output"}  # fmt: skip
        words = [str(item) for name, value in options.items() for item in (f"--{name}", value)]
        began = time.perf_counter()
        with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            seen = any(line.startswith("step=1/") for line in process.stdout)
            took = time.perf_counter() - began
            process.kill()
    if not seen:
        raise RuntimeError("lorry train ended before its first step")
    return took


def tables(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    about = results["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, {about['precision']}; "
        f"median of {results['rounds']} rounds, in brackets the lowest and highest ratio."
    ]
    if "train" in results:
        head = ["training", "pairs a batch", "Lorry, pairs/s", "ST, pairs/s", "Lorry / ST", "memory, Lorry / ST",
                "tokens/s, Lorry", "share of peak, Lorry", "ST"]  # fmt: skip
        lines += ["", *_table(head, [_training_row(item) for item in results["train"]])]
        lines += [_post_line(item["rounds"]) for item in results["train"] if "post" in item["rounds"][0]]
    names = {"encode": ("encoding", "texts/s"), "tokenize": ("tokenising", "pairs/s")}
    for task, (name, unit) in names.items():
        if task in results:
            head = [name, "ST's batch", f"Lorry, {unit}", f"ST, {unit}", "Lorry / ST"]
            lines += ["", *_table(head, [_plain_row(item) for item in results[task]])]
    if "first_step" in results:
        head = ["start to first step", "Lorry, s", "ST, s", "Lorry / ST"]
        rows = [
            [item["work"], *(f"{_median(item['rounds'], name, 'seconds'):.1f}" for name in ("lorry", "st")),
             _ratio(item["rounds"], "st", lambda done: done["seconds"])]
            for item in results["first_step"]
        ]  # fmt: skip
        lines += ["", *_table(head, rows)]
    return "\n".join(lines)


def _speed(done: Mapping[str, float]) -> float:
    return done["pairs"] / done["seconds"]


def _training_row(item: Mapping[str, Any]) -> list[str]:
    rounds = item["rounds"]
    row = [item["work"], str(item["batch_size"]), f"{median(_speed(r['lorry']) for r in rounds):.0f}"]
    has_st = all("st" in done for done in rounds)
    if has_st:
        row += [f"{median(_speed(r['st']) for r in rounds):.1f}", _ratio(rounds, "st", _speed),
                _ratio(rounds, "st", lambda done: done["peak_memory_bytes"])]  # fmt: skip
    else:
        row += ["out of memory", "", ""]
    row.append(f"{median(r['lorry']['tokens'] / r['lorry']['seconds'] for r in rounds):,.0f}")
    return [*row, *(_share(rounds, name) if name == "lorry" or has_st else "" for name in ("lorry", "st"))]


def _post_line(rounds: Rounds) -> str:
    return (
        f"\nThe post's way, short texts, {POST_BATCH_SIZE} a batch: {median(_speed(r['post']) for r in rounds):.1f} "
        f"pairs/s; Lorry / post {_ratio(rounds, 'post', _speed)}."
    )


def _plain_row(item: Mapping[str, Any]) -> list[str]:
    rounds = item["rounds"]
    speeds = [f"{median(_speed(done[name]) for done in rounds):,.0f}" for name in ("lorry", "st")]
    return [item["work"], str(item["batch_size"]), *speeds, _ratio(rounds, "st", _speed)]


def _median(rounds: Rounds, name: str, figure: str) -> float:
    return median(done[name][figure] for done in rounds)


def _ratio(rounds: Rounds, other: str, figure: Any) -> str:
    ratios = [figure(done["lorry"]) / figure(done[other]) for done in rounds]
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _share(rounds: Rounds, name: str) -> str:
    shares = [
        done[name]["flop"] / done[name]["seconds"] / (done["peak"]["flop"] / done["peak"]["steps"]) for done in rounds
    ]
    return f"{median(shares):.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


if __name__ == "__main__":
    main()
