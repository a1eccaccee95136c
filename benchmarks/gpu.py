"""All of Lorry that needs a GPU, on one, in less than ten minutes: `make gpu`.

    python benchmarks/gpu.py [--part train …] [--data FOLDER] [--output FILE]
    python benchmarks/gpu.py --pretend          every line of it without a GPU, on few texts: its figures mean nothing
    python benchmarks/gpu.py --show FILE        the tables of an earlier run

Parts:

- tests: those marked `gpu`, against transformers, PEFT and the CPU.
- train: steps, also with cuda_graphs, beside sentence-transformers + PEFT (and with flash-attn, where that is
  installed), in turns; short and long texts, in bf16, and in fp16 as on a T4.
- encode: texts beside `SentenceTransformer.encode`.
- first_step: seconds from the start of the process to the end of the first step.
- profile: the ten kernels that take most of a training step, and how long the GPU is idle.
- host: the operations of a step and the time in which the CPU gives them out; see step_costs.py.
- plan: what `lorry plan` says of a run, and what that run then takes.

The results file, benchmarks/results/gpu-NAME.json, is rewritten after every round. A part that fails is recorded, and
the others continue; the exit code is then 1. `gpu_kit.py` packs what an environment without a network lacks. With
--pretend the contestants and the profile run on the CPU, the tests on a pretended device.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import records
from lorry.hardware import choose_precision, gpu_of_driver
from processes import OUT_OF_MEMORY
from speed_tables import tables
from throughput import Contest, Settings, hold, prepare, start

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
GPU = torch.device("cuda", 0)
SECONDS = 500  # after which no contest begins
WORKS = ("short", "long")
PAIRS = {"short": 6000, "long": 483}


@dataclass(frozen=True)
class Job:
    """What is measured, and on what."""

    files: list[Path]
    sizes: tuple[int, ...]
    precisions: tuple[str, ...]
    """The first for all contests, the others for one batch size."""
    settings: Settings
    deadline: float
    """By `time.perf_counter`: no contest begins after it."""

    @property
    def pretended(self) -> bool:
        """Whether there is no GPU."""
        return self.settings.device == "cpu"


def main() -> None:
    """Run the parts, print their tables, and exit with 1 where one failed."""
    arguments = _parser().parse_args()
    if arguments.show:
        print(report(records.load(arguments.show)))
        return
    if not arguments.pretend and not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no GPU. --pretend runs all of this without one.")
    logging.getLogger("lorry").setLevel(logging.ERROR)
    name = "pretended" if arguments.pretend else _slug(torch.cuda.get_device_name())
    output = arguments.output or RESULTS / f"gpu-{name}.json"
    record, began = _new_record(arguments.pretend), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        job = _job(arguments.pretend, arguments.data, Path(folder), began + SECONDS)
        for part in arguments.part or PARTS:
            try:
                PARTS[part](job, record, output)
            except Exception as error:  # the other parts count all the same
                record["failed"][part] = f"{type(error).__name__}: {error}"
            record["seconds"] = round(time.perf_counter() - began)
            records.save(record, output)
    print(report(record))
    sys.exit(1 if record["failed"] else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--data", type=Path, help="folder of short.parquet and long.parquet; default: from LORRY_DATA")
    parser.add_argument("--output", type=Path, help="results file; default: benchmarks/results/gpu-NAME.json")
    parser.add_argument("--pretend", action="store_true", help="run without a GPU, on few texts")
    parser.add_argument("--show", help="print the tables of an earlier run's results file, and do nothing else")
    return parser


def _new_record(pretended: bool) -> dict[str, Any]:
    record = records.new_record("fp32" if pretended else choose_precision("auto", GPU)) | {
        "rounds": 1 if pretended else 2,
        "failed": {},
    }
    if not pretended:
        gpu = torch.cuda.get_device_properties(0)
        facts = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GB"
        record["machine"]["gpu"] = ", ".join([facts, *gpu_of_driver()[1:], f"CUDA {torch.version.cuda}"])
    return record


def _job(pretended: bool, data: Path | None, folder: Path, deadline: float) -> Job:
    files = [data / f"{work}.parquet" if data else prepare(work, folder) for work in WORKS]
    for place, file in enumerate(files):
        files[place] = folder / file.name
        table = pq.read_table(file)
        some = np.linspace(0, len(table) - 1, 80).astype(int) if pretended else np.arange(PAIRS[file.stem])
        pq.write_table(table.take(pa.array(some[some < len(table)])), files[place])
    if pretended:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # of the processes that are started
        return Job(files, (8,), ("fp32", "bf16"), Settings(rounds=1, seconds=0.1, timeout=300), math.inf)
    precisions = tuple(dict.fromkeys([choose_precision("auto", GPU), "fp16"]))
    settings = Settings(rounds=2, seconds=2, timeout=120, device="cuda")
    return Job(files, (240, 120, 1024), precisions, settings, deadline)


def tests(job: Job, record: dict[str, Any], output: Path) -> None:
    """Run the tests marked `gpu`."""
    environment = os.environ | ({"LORRY_GPU": "pretended"} if job.pretended else {})
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    lines = done.stdout.splitlines()
    record["tests"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:]
    if done.returncode:
        raise RuntimeError(f"pytest ended with exit code {done.returncode}: {' | '.join(record['tests'])}")


def train(job: Job, record: dict[str, Any], output: Path) -> None:
    """Hold the contests in training."""
    flash = ["st_flash"] if importlib.util.find_spec("flash_attn") else []
    contests = []
    for place, precision in enumerate(job.precisions):
        for file in job.files:
            for size in dict.fromkeys(min(size, pq.read_metadata(file).num_rows) for size in job.sizes):
                if not place or size == job.sizes[0]:
                    names = ["lorry", "lorry_graphs", "st", *flash]
                    contests.append(Contest("train", file, size, dict.fromkeys(names, size), precision))
    _hold(contests, job, record, output)


def encode(job: Job, record: dict[str, Any], output: Path) -> None:
    """Hold the contests in encoding."""
    contests = [
        Contest("encode", file, 128, {"lorry": 128, "st": 128}, precision)
        for precision in job.precisions
        for file in job.files
    ]
    _hold(contests, job, record, output)


def first_step(job: Job, record: dict[str, Any], output: Path) -> None:
    """Time both from their start to the end of the first step."""
    contest = Contest("first_step", job.files[0], 120, {"lorry": 120, "st": 120}, job.precisions[0])
    _hold([contest], job, record, output)


def _hold(contests: Sequence[Contest], job: Job, record: dict[str, Any], output: Path) -> None:
    """Hold contests of one task; raise what failed when all are over. That a peer lacks memory is a result."""
    reasons = []
    for contest in contests:
        rows, work = record.setdefault(contest.task, []), f"{contest.file.stem}, {contest.precision}"
        if time.perf_counter() > job.deadline:
            reasons.append(f"{work}, {contest.batch_size}: no time was left")
            continue
        hold(contest, job.settings, record, output)
        rows[-1]["work"] = work
        for name, reason in rows[-1]["failed"].items():
            if name != "st_flash" and (name, reason) != ("st", OUT_OF_MEMORY):
                reasons.append(f"{work}, {contest.batch_size}: {name}: {reason}")
    if reasons:
        raise RuntimeError("; ".join(reasons))


def profile(job: Job, record: dict[str, Any], output: Path) -> None:
    """Profile Lorry's training step on short and on long texts."""
    record["profile"] = {}
    for file in job.files:
        _ask("profile", Contest("profile", file, job.sizes[0], {}, job.precisions[0]), job, record)


def host(job: Job, record: dict[str, Any], output: Path) -> None:
    """Count and time what the CPU does for a training step."""
    size, device = min(job.sizes[0], pq.read_metadata(job.files[0]).num_rows), job.settings.device
    command = [Path(__file__).with_name("step_costs.py"), job.files[0], "--batch_size", size, "--device", device]
    done = subprocess.run(
        [sys.executable, *map(str, command)], check=False, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise RuntimeError(f"step_costs.py: {done.stderr.strip().splitlines()[-1:]}")
    record["host"] = {f"short, {size} pairs": json.loads(done.stdout)}


def _ask(task: str, contest: Contest, job: Job, record: dict[str, Any]) -> None:
    process = start(task, "lorry", contest, contest.batch_size, job.settings)
    try:
        process.answer()
        process.tell("0")
        found = process.answer()
    finally:
        process.end()
    if process.failed:
        raise RuntimeError(process.failed)
    record[task][f"{contest.file.stem}, {contest.precision}, {contest.batch_size} pairs"] = found


def plan(job: Job, record: dict[str, Any], output: Path) -> None:
    """Ask `lorry plan` how long an epoch takes, then train it."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"pretrained_model": "bundled", "train": job.files[0], "label_column": "gain",
                   "positive_threshold": 0.5, "epochs": 1}  # fmt: skip
        folders = {"model_dir": f"{folder}/model", "output_data_dir": f"{folder}/output"}
        planned = re.search(r"training (.*), evaluation", _lorry("plan", options))
        _lorry("train", options | folders)
        training = json.loads(Path(folder, "output", "metrics.json").read_text("utf-8"))["training"]
    if planned is None:
        raise RuntimeError("lorry plan gave no time here")
    record["plan"] = {"planned": planned[1], "measured_seconds": training["seconds"]}


def _lorry(command: str, options: dict[str, Any]) -> str:
    words = [str(item) for name, value in options.items() for item in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "lorry.cli", command, *words],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"lorry {command}: {done.stdout.strip().splitlines()[-1:]}")
    return done.stdout


PARTS: dict[str, Callable[[Job, dict[str, Any], Path], None]] = {
    "tests": tests,
    "train": train,
    "encode": encode,
    "first_step": first_step,
    "profile": profile,
    "host": host,
    "plan": plan,
}


def report(record: dict[str, Any]) -> str:
    """Return what was found as Markdown."""
    return "\n\n".join([tables(record), *_profiles(record), *_lines(record)])


def _profiles(record: dict[str, Any]) -> Iterator[str]:
    for work, found in record.get("profile", {}).items():
        busy = min(1.0, found["busy_seconds"] / found["seconds"])
        rows = [[name, f"{seconds / found['busy_seconds']:.0%}"] for name, seconds in found["kernels"]]
        yield f"{work}: {1000 * found['seconds'] / found['steps']:.1f} ms a step, idle {1 - busy:.0%} of it."
        yield records.markdown(["kernel", "share of the busy time"], rows)


def _lines(record: dict[str, Any]) -> Iterator[str]:
    for work, found in record.get("host", {}).items():
        counted = f"{found['operations']:,} operations, {found['launches']:,} of them no views"
        yield f"The CPU's part of a step, {work}: {found['host_milliseconds']:.1f} ms for {counted}."
    if "plan" in record:
        yield f"Planned: {record['plan']['planned']}; measured: {record['plan']['measured_seconds']:.0f} s."
    yield from record.get("tests", [])
    yield from (f"FAILED {part}: {reason}" for part, reason in record["failed"].items())
    if "seconds" in record:
        yield f"All of it took {record['seconds']} s."


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
