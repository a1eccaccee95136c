"""What it costs to share a step: one process with all cores against one process per core, and against several.

    python benchmarks/ranks.py [--rounds 3] [--batch_size 96 ...] [--output benchmarks/results/ranks.json]
    python benchmarks/ranks.py --show benchmarks/results/ranks.json      the table of an earlier run

Pairs are made up, the model is the bundled one. Every setting is a run of `lorry train` on its own, in turns, and the
best of its rounds counts; best on an idle machine. Bytes are those that the loopback device carried, divided by the
steps: embeddings and gradients, and a few kilobytes of signs of life.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

import records

EPOCHS = 2
COLUMNS = ["batch", "processes x threads", "pairs/s", "of one process", "KB a step"]


def main() -> None:
    """Measure and show, or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of every setting (default: 3)")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[96, 384], help="pairs a step (default: 96 384)")
    parser.add_argument("--queries", type=int, default=400, help="queries of the made-up shop (default: 400)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ranks.json"), help="results file")
    parser.add_argument("--show", type=Path, help="results file to show instead of measuring")
    arguments = parser.parse_args()
    if arguments.show:
        print(_table(records.load(arguments.show)))
        return
    cores = len(os.sched_getaffinity(0))
    record = records.new_record("auto") | {"settings": []}
    with tempfile.TemporaryDirectory() as scratch:
        pairs = Path(scratch) / "pairs"
        command = [sys.executable, "-m", "lorry.data.synthetic", pairs, "--queries", str(arguments.queries)]
        subprocess.run(command, check=True)
        settings = [
            {"batch_size": size, "processes": processes, "threads": cores // processes, "runs": []}
            for size in arguments.batch_size
            for processes in sorted({1, 2, cores})
        ]
        record["settings"] = settings
        for _ in range(arguments.rounds):
            for setting in settings:
                setting["runs"].append(_run(setting, pairs / "train", Path(scratch)))
                records.save(record, arguments.output)
    print(_table(record))


def _run(setting: dict[str, Any], pairs: Path, scratch: Path) -> dict[str, float]:
    """Train once and return pairs a second and bytes a step."""
    output = scratch / "output"
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    subprocess.run(
        [
            sys.executable, "-m", "lorry", "train", "--pretrained_model", "bundled", "--train", pairs,
            "--batch_size", str(setting["batch_size"]), "--epochs", str(EPOCHS), "--interpolation", "1",
            "--best_epoch", "false", "--processes", str(setting["processes"]), "--log_every", "1000000",
            "--model_dir", scratch / "model", "--output_data_dir", output,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(setting["threads"])},
    )  # fmt: skip
    training = json.loads((output / "metrics.json").read_text("utf-8"))["training"]
    carried = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
    return {"pairs_per_second": training["pairs_per_second"], "bytes_a_step": carried / training["steps"]}


def _table(record: dict[str, Any]) -> str:
    best = {
        (setting["batch_size"], setting["processes"]): max(setting["runs"], key=lambda run: run["pairs_per_second"])
        for setting in record["settings"]
    }
    rows = [
        [
            str(setting["batch_size"]),
            f"{setting['processes']} x {setting['threads']}",
            f"{found['pairs_per_second']:.0f}",
            f"{found['pairs_per_second'] / best[setting['batch_size'], 1]['pairs_per_second']:.0%}",
            f"{found['bytes_a_step'] / 1000:,.0f}" if setting["processes"] > 1 else "none",
        ]
        for setting in record["settings"]
        for found in [best[setting["batch_size"], setting["processes"]]]
    ]
    return f"{records.describe(record)}\n\n{records.markdown(COLUMNS, rows)}"


if __name__ == "__main__":
    main()
