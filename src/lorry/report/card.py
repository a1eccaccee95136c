"""The model card for the Hugging Face Hub: `README.md` in the model's folder.

huggingface_hub writes and checks the metadata. The card travels with the model, so it names no folder, file or row of
the user's data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented as public

from lorry.config import CONTAINER_PATHS
from lorry.names import BUNDLED_MODEL_ID, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG
from lorry.outputs import write_text
from lorry.report.facts import SCORER_TITLES, ReportFacts
from lorry.report.rendering import render
from lorry.report.tables import Row, before_and_after
from lorry.report.verdict import verdict_of, verdict_split

TITLE = "Text embeddings for product search"
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "lora", "product-search"]
# Task and metric ids as the evaluators of sentence-transformers write them into a card, where they have the metric.
_HUB_METRICS = {
    "ndcg@10": ("Reranking", "ndcg@10"),
    "ndcg@10_rankable": ("Reranking", "ndcg@10_rankable"),
    "mrr@10": ("Reranking", "mrr@10"),
    "pair_accuracy": ("Reranking", "pair_accuracy"),
    OFFICIAL_NDCG: ("Reranking", OFFICIAL_NDCG),
    OFFICIAL_WHOLE_NDCG: ("Reranking", OFFICIAL_WHOLE_NDCG),
    "roc_auc": ("Binary Classification", "cosine_roc_auc"),
    "average_precision": ("Binary Classification", "cosine_ap"),
    "spearman": ("Semantic Similarity", "spearman_cosine"),
}
# Options that may hold a path on the user's machine.
_PATHS = {*CONTAINER_PATHS, "pretrained_model"}


def write_model_card(folder: Path, facts: ReportFacts) -> None:
    """Write the card of a finished model, with its results as text and as metadata, into `folder`."""
    base_model, tables = _hub_id(facts.config["pretrained_model"]), before_and_after(facts)
    split = verdict_split(facts.metrics)
    body = render(
        "model_card.md.j2",
        title=TITLE,
        facts=facts,
        base_model=base_model,
        verdict=verdict_of(facts),
        verdict_split=split,
        threshold=facts.metrics["splits"][split].get("threshold", {}).get("tuned"),
        tables=tables,
        scorers=SCORER_TITLES,
        options={name: value for name, value in facts.config.items() if name not in _PATHS and value not in ("", None)},
    )
    _write(folder, _metadata(base_model, _results(tables)), body)


def write_unfinished_card(folder: Path, base_model: str, steps: int) -> None:
    """Write the card of a model whose training was stopped, which has no results, into `folder`.

    Args:
        folder: The model's folder.
        base_model: The base model as the user named it; only a Hub id is shown.
        steps: Number of steps trained.
    """
    hub_id = _hub_id(base_model)
    _write(folder, _metadata(hub_id), render("unfinished_card.md.j2", title=TITLE, base_model=hub_id, steps=steps))


def _write(folder: Path, metadata: ModelCardData, body: str) -> None:
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")  # reads the metadata back, and so checks it
    write_text(folder / "README.md", str(card))


def _metadata(base_model: str | None, results: Sequence[EvalResult] = ()) -> ModelCardData:
    """Return the card's metadata; licence and language are left to the owner of the model."""
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        tags=_TAGS,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=TITLE if results else None,
        eval_results=list(results) or None,
    )


def _results(tables: Mapping[str, Sequence[Row]]) -> list[EvalResult]:
    """Return the tuned model's value of every defined metric, for every split."""
    results = []
    for split, rows in tables.items():
        for row in rows:
            if not row.defined:
                continue
            task, metric_type = _HUB_METRICS[row.metric]
            results.append(
                EvalResult(
                    task_name=task,
                    task_type=task.lower().replace(" ", "-"),
                    dataset_name=f"Judged query-product pairs ({split})",
                    dataset_type="unknown",  # what sentence-transformers writes for data that is not on the Hub
                    dataset_split=split,
                    metric_name=row.title,
                    metric_type=metric_type,
                    metric_value=round(row.scores["tuned"], 4),
                )
            )
    return results


def _hub_id(name: str) -> str | None:
    """Return the Hub id of a base model, or None where `name` is a path."""
    if name == "bundled":
        return BUNDLED_MODEL_ID
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name
