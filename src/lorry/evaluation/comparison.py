"""Any models side by side on the same judged pairs (`lorry evaluate`)."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lorry.config import ProviderOptions, TrainConfig
from lorry.data.pairs import Pairs, read_channel
from lorry.errors import UserError
from lorry.evaluation import metrics, scoring
from lorry.evaluation.gate import Requirement, check_measurable, read_requirements, unmet
from lorry.hardware import make_accelerator
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.merge import DOCUMENT_MODEL
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.model.tokens import tokenize
from lorry.names import METRICS
from lorry.outputs import check_writable, holds_metrics, write_json
from lorry.providers.remote_models import RemoteModels

log = logging.getLogger("lorry")


def compare_models(
    models: list[str], data: str, output: Path, config: TrainConfig, providers: ProviderOptions | None = None
) -> None:
    """Score each model on the pairs of a folder and write the metrics as JSON.

    Args:
        models: Hub ids, folders or `bundled`; or models that a provider runs: `bedrock:MODEL`, `openai:MODEL`.
        data: Judged pairs: a folder, a file, or hf://datasets/OWNER/NAME.
        output: The file to write.
        config: How to read the pairs, maximum length, precision and batch size; and what the last model must reach,
            where the first one is the base model.
        providers: Where the models of providers are, and what they may cost.

    Raises:
        UserError: A model or the pairs cannot be read, a provider refuses, or the file cannot be written; or the last
            model does not meet the requirements: then the file is written all the same.
    """
    requirements = _requirements(config.require, models)
    _check_output(output)
    accelerator, precision = make_accelerator(config.precision)
    remote = RemoteModels(models, providers or ProviderOptions(), config.max_length)
    bases = {name: find_pretrained(name, config.max_length) for name in models if name not in remote}
    channel = read_channel(data, config)
    measurable = {split: scoring.measurable(pairs) for split, pairs in channel.items()}
    check_measurable(requirements, measurable)
    remote.announce(
        chain.from_iterable(pairs.queries.to_pylist() for pairs in channel.values()),
        chain.from_iterable(pairs.texts.to_pylist() for pairs in channel.values()),
    )
    splits: dict[str, dict[str, Any]] = {}
    for split, pairs in channel.items():
        scores: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(models):
            if name in remote:
                scores[name] = _measure_remote(remote, name, pairs)
            else:
                scores[name] = _measure_local(bases[name], pairs, config, accelerator.device, precision)
            log.info("%s: %s", name, " ".join(f"{key}={value:.4f};" for key, value in scores[name].items()))
        if undefined := [name for name in METRICS if name not in measurable[split]]:
            log.warning("%s: not defined by these labels: %s", split, ", ".join(undefined))
        splits[split] = {
            "pairs": len(pairs),
            "queries": len(pairs.queries),
            "queries_rankable": metrics.rankable_queries(pairs.query, pairs.gain),
            **scoring.baselines(pairs, config.seed),
            "models": scores,
        }
        log.info("\n%s\n", _table(split, splits[split]))
    about = remote.summary()
    write_json(output, {"splits": splits} | ({"providers": about} if about else {}))
    log.info("metrics: %s", output)
    first, last = models[0], models[-1]
    blocks = {
        split: {**block, "base": block["models"][first], "tuned": block["models"][last]}
        for split, block in splits.items()
    }
    if missed := unmet(requirements, blocks):
        raise UserError(f"{last} does not meet --require: {'; '.join(missed)}", f"The metrics are in {output}.")
    if requirements:
        log.info("%s meets --require: %s", last, config.require)


def _measure_local(
    base: PretrainedModel, pairs: Pairs, config: TrainConfig, device: torch.device, precision: str
) -> dict[str, float]:
    """Return the metrics of a model on disk."""
    texts, encoder = tokenize(pairs, base), Encoder(base, precision, device)
    documents_TD = None
    if (folder := base.folder / DOCUMENT_MODEL).is_dir():  # queries alone were trained
        other = Encoder(find_pretrained(str(folder), config.max_length), precision, device)
        documents_TD = embed_all(other, texts, config.eval_batch_size, side="document")
    return scoring.score(encoder, texts, pairs, config, documents_TD=documents_TD).metrics


def _measure_remote(remote: RemoteModels, name: str, pairs: Pairs) -> dict[str, float]:
    """Return the metrics of a model that a provider runs."""
    all_ND = torch.from_numpy(remote.embed(name, pairs.queries.to_pylist(), pairs.texts.to_pylist()))
    torch.nn.functional.normalize(all_ND, dim=-1, out=all_ND)
    queries = len(pairs.queries)
    return scoring.measure(pairs, scoring.cosines(pairs, all_ND[:queries], all_ND[queries:]))


def _requirements(text: str, models: list[str]) -> list[Requirement]:
    """Read the requirements; refuse one that compares with the base model where there is only one model."""
    requirements = read_requirements(text)
    for requirement in requirements:
        if requirement.reference == "base" and len(models) == 1:
            raise UserError(
                f"require has {requirement.text!r}, which compares with the base model, and only one model is given",
                f"Give the base model first: --model BASE --model {models[0]}.",
            )
    return requirements


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
    columns = {name: max(8, len(name)) + 2 for name in METRICS}
    head = f"{split}: {block['pairs']:,} pairs, {block['queries']:,} queries\n" + " " * width
    lines = [head + "".join(f"{name:>{column}}" for name, column in columns.items())]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row[key]:{column}.4f}" for key, column in columns.items()))
    return "\n".join(lines)
