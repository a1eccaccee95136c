"""Any models side by side on the same judged pairs (`lorry evaluate`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from lorry.config import ProviderOptions, TrainConfig
from lorry.data.pairs import Pairs, read_channel
from lorry.errors import UserError
from lorry.evaluation import metrics, scoring
from lorry.evaluation.catalogue import make_catalogue
from lorry.evaluation.evidence import Sides
from lorry.evaluation.gate import Requirement, check_measurable, read_requirements, unmet
from lorry.evaluation.side_by_side import Judged, differences, judge, searches, thresholds
from lorry.hardware import make_accelerator
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.merge import DOCUMENT_MODEL
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.model.tokens import tokenize
from lorry.names import METRICS
from lorry.outputs import check_output_file, write_json
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
    check_output_file(output, "metrics.json")  # pairs may be JSON files too
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
    catalogue = make_catalogue(channel, config.search_products, config.seed) if config.search_products else None
    catalogue = catalogue if catalogue and catalogue.queries else None
    judged: dict[str, Judged] = {}
    for name in dict.fromkeys(models):
        if name in remote:
            sides = _remote_sides(remote, name, channel)
        else:
            sides = _sides(bases[name], channel, config, accelerator.device, precision)
        judged[name] = judge(name, sides, channel, catalogue, config)
        for split, found in judged[name].metrics.items():
            log.info("%s, %s: %s", name, split, " ".join(f"{key}={value:.4f};" for key, value in found.items()))
    splits = {split: _block(split, pairs, judged, config) for split, pairs in channel.items()}
    parts = [differences(judged, channel, config.seed), thresholds(judged, channel)]
    parts += [searches(judged, channel, catalogue, config.seed)] if catalogue else []
    for split, block in splits.items():
        if undefined := [name for name in METRICS if name not in measurable[split]]:
            log.warning("%s: not defined by these labels: %s", split, ", ".join(undefined))
        for part in parts:
            block.update(part[split])
        log.info("\n%s\n", "\n\n".join(filter(None, [_table(split, block), _search_table(split, block)])))
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


def _sides(
    base: PretrainedModel, channel: Mapping[str, Pairs], config: TrainConfig, device: torch.device, precision: str
) -> dict[str, Sides]:
    """Return by split what a model on disk makes of queries and product texts."""
    encoder, other = Encoder(base, precision, device), None
    if (folder := base.folder / DOCUMENT_MODEL).is_dir():  # queries alone were trained
        other = Encoder(find_pretrained(str(folder), config.max_length), precision, device)
    sides = {}
    for split, pairs in channel.items():
        texts = tokenize(pairs, base)
        documents_TD = embed_all(other, texts, config.eval_batch_size, side="document") if other else None
        all_ND = scoring.embed_pairs(encoder, texts, config, documents_TD=documents_TD)
        sides[split] = all_ND[: texts.queries], all_ND[texts.queries :]
    return sides


def _remote_sides(remote: RemoteModels, name: str, channel: Mapping[str, Pairs]) -> dict[str, Sides]:
    """Return by split what a provider's model makes of queries and product texts."""
    sides = {}
    for split, pairs in channel.items():
        query_QD, text_TD = remote.embed(name, pairs.queries.to_pylist(), pairs.texts.to_pylist())
        sides[split] = normalize(torch.from_numpy(query_QD), dim=-1), normalize(torch.from_numpy(text_TD), dim=-1)
    return sides


def _block(split: str, pairs: Pairs, judged: Mapping[str, Judged], config: TrainConfig) -> dict[str, Any]:
    return {
        "pairs": len(pairs),
        "queries": len(pairs.queries),
        "queries_rankable": metrics.rankable_queries(pairs.query, pairs.gain),
        **scoring.baselines(pairs, config.seed),
        "models": {name: found.metrics[split] for name, found in judged.items()},
    }


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


def _search_table(split: str, block: dict[str, Any]) -> str:
    """Return what each model finds among all products, alone and with BM25; "" where that was not measured."""
    if "search" not in block:
        return ""
    found = block["search"]
    fused = {f"BM25 + {name}": values for name, values in found["hybrid"].items()}
    rows = {"BM25": found["bm25"], **found["models"], **fused}
    width = max(map(len, rows))
    of = f"{found['products']:,} of {found['products_all']:,} products"
    head = f"{split}: search among {of}, {found['queries']:,} queries"
    lines = [head, " " * width + "".join(f"{name:>12}" for name in found["bm25"])]
    lines += [f"{name:<{width}}" + "".join(f"{value:12.4f}" for value in row.values()) for name, row in rows.items()]
    return "\n".join(lines)


def _table(split: str, block: dict[str, Any]) -> str:
    rows = {"random": block["random"], "BM25": block["bm25"], **block["models"]}
    width = max(map(len, rows))
    columns = {name: max(8, len(name)) + 2 for name in METRICS}
    head = f"{split}: {block['pairs']:,} pairs, {block['queries']:,} queries\n" + " " * width
    lines = [head + "".join(f"{name:>{column}}" for name, column in columns.items())]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row[key]:{column}.4f}" for key, column in columns.items()))
    return "\n".join(lines)
