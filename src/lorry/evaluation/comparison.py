"""Any models side by side on the same judged pairs (`lorry evaluate`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lorry.config import TrainConfig
from lorry.data.pairs import read_channel
from lorry.errors import UserError
from lorry.evaluation import metrics, scoring
from lorry.hardware import make_accelerator
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize
from lorry.names import METRICS
from lorry.outputs import check_writable, holds_metrics, write_json

log = logging.getLogger("lorry")


def compare_models(models: list[str], data: str, output: Path, config: TrainConfig) -> None:
    """Score each model on the pairs of a folder and write the metrics as JSON.

    Args:
        models: Hub ids, folders or `bundled`.
        data: Judged pairs: a folder, a file, or hf://datasets/OWNER/NAME.
        output: The file to write.
        config: How to read the pairs, maximum length, precision and batch size.

    Raises:
        UserError: A model or the pairs cannot be read, or the file cannot be written.
    """
    _check_output(output)
    accelerator, precision = make_accelerator(config.precision)
    bases = {name: find_pretrained(name, config.max_length) for name in models}
    splits = {}
    for split, pairs in read_channel(data, config).items():
        scores: dict[str, dict[str, float]] = {}
        for name, base in bases.items():
            encoder = Encoder(base, precision, accelerator.device)
            scores[name] = scoring.score(encoder, tokenize(pairs, base), pairs, config).metrics
            log.info("%s: %s", name, " ".join(f"{key}={value:.4f};" for key, value in scores[name].items()))
        undefined = metrics.undefined(pairs.query, pairs.gain, pairs.relevant)
        if undefined:
            log.warning("%s: not defined by these labels: %s", split, ", ".join(undefined))
        block = {"pairs": len(pairs), "queries": len(pairs.queries), **scoring.baselines(pairs, config.seed)}
        splits[split] = {**block, "models": scores}
        log.info("\n%s\n", _table(split, splits[split]))
    write_json(output, {"splits": splits})
    log.info("metrics: %s", output)


def _check_output(path: Path) -> None:
    """Refuse to write over anything but an earlier result: pairs may be JSON files too."""
    if path.is_dir():
        raise UserError(f"{path} is a folder", "Give a file as --output, e.g. metrics.json.")
    check_writable(path.parent, "--output")
    if path.exists() and not holds_metrics(path):
        raise UserError(f"{path} exists and holds no metrics", "Give another file as --output.")


def _table(split: str, block: dict[str, Any]) -> str:
    rows = {"random": block["random"], "BM25": block["bm25"], **block["models"]}
    width = max(map(len, rows))
    head = f"{split}: {block['pairs']:,} pairs, {block['queries']:,} queries\n" + " " * width
    lines = [head + "".join(f"{name:>19}" for name in METRICS)]
    lines += [f"{name:<{width}}" + "".join(f"{row[key]:19.4f}" for key in METRICS) for name, row in rows.items()]
    return "\n".join(lines)
