"""Merge the adapters into the base model, and prove that the merged model is the one that was trained.

Weights are saved as fp32: a LoRA update can be smaller than half a step of bf16. Where queries alone were trained, the
model of the documents is the base model, and is saved beside that of the queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lorry.errors import UserError
from lorry.hardware import free_memory
from lorry.model.encoder import Encoder
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import find_pretrained
from lorry.model.saving import save_adapter, save_model
from lorry.outputs import writing

MIN_COSINE = 0.9999  # between the merged model and base + adapter
ROOM = 1.5  # memory that merging needs, in models of fp32: one, and what embeds the probes
MAX_RELOAD_GAP = 1e-6  # between the merged model in memory and as read back
DOCUMENT_MODEL = "document_model"
"""Folder, in that of the model, with the model that embeds documents, where it is another one."""


class MergeError(Exception):
    """The merged model is not what was trained; a bug of Lorry or of a library, not the user's mistake."""


@dataclass(frozen=True)
class MergeProof:
    """How far apart the models are on the probe texts, as cosines."""

    merged_to_adapter: float
    """Lowest cosine between the merged model and base + adapter; must be 0.9999 or more."""
    merged_to_base: float
    """Mean cosine between the merged model and the base: 1 if nothing was learnt."""
    reload_gap: float
    """Largest difference between an embedding's numbers in memory and after reading the files back."""
    probes: int
    documents_changed: float | None = None
    """Where queries alone were trained: largest difference of a number in the documents' embeddings to the base's."""


def export(folder: Path, encoder: Encoder, probe: TokenSequences, *, side: str, changed: bool = True) -> MergeProof:
    """Do the work of `merge`, and save the base model for the documents where queries alone were trained.

    Args:
        folder: As for `merge`, like `encoder`, `probe` and `changed`.
        encoder: See `folder`.
        probe: See `folder`.
        side: "query" where queries alone were trained, else "both".
        changed: See `folder`.

    Raises:
        MergeError: As `merge`; or the documents' model is not the base.
        UserError: As `merge`.
        OutputError: As `merge`.
    """
    proof = merge(folder, encoder, probe, changed=changed)
    if side == "both":
        return proof
    base = Encoder(encoder.base, "fp32", torch.device("cpu"))
    wanted_ND = _embed(base, probe)
    with writing(folder):
        save_model(folder / DOCUMENT_MODEL, base)
    saved = Encoder(find_pretrained(str(folder / DOCUMENT_MODEL)), "fp32", torch.device("cpu"))
    gap = float((_embed(saved, probe) - wanted_ND).abs().max())
    if gap != 0:
        raise MergeError(f"the model of the documents differs from the base model by {gap:.2g}")
    return replace(proof, documents_changed=gap)


def merge(folder: Path, encoder: Encoder, probe: TokenSequences, *, changed: bool = True) -> MergeProof:
    """Write the adapter and the merged model into `folder`, and prove that all is as trained.

    After full fine-tuning there is no adapter: the model is written as it is, and read back all the same.

    Args:
        folder: An empty folder.
        encoder: The trained encoder.
        probe: Texts to compare embeddings on.
        changed: Whether the model must differ from its base.

    Raises:
        MergeError: The merged model is not base + adapter, or does not read back as it was.
        UserError: The merged model equals its base.
        OutputError: `folder` cannot be written.
    """
    device = encoder.device if free_memory(encoder.device) > ROOM * _fp32_bytes(encoder) else torch.device("cpu")
    fresh = Encoder(encoder.base, "fp32", device)
    before_ND = _embed(fresh, probe)
    fresh.standardizer = encoder.standardizer.to(device) if encoder.standardizer else None
    if encoder.adapted:
        with writing(folder):
            save_adapter(folder / "adapter", encoder)
        adapted_ND = _merge_adapter(fresh, folder / "adapter", probe)
        merged_ND = _embed(fresh, probe)
    else:
        fresh.model.load_state_dict(encoder.model.state_dict())
        adapted_ND = merged_ND = _embed(fresh, probe)
    merged_to_adapter = float(torch.cosine_similarity(merged_ND, adapted_ND).min())
    if not merged_to_adapter >= MIN_COSINE:
        raise MergeError(f"merged model and base + adapter differ: cosine {merged_to_adapter:.6f}")
    with writing(folder):
        save_model(folder, fresh)
    del fresh  # not three models at a time
    read_back_ND = _embed(Encoder(find_pretrained(str(folder)), "fp32", device), probe)
    proof = MergeProof(
        merged_to_adapter=merged_to_adapter,
        merged_to_base=float(torch.cosine_similarity(merged_ND, before_ND).mean()),
        reload_gap=float((merged_ND - read_back_ND).abs().max()),
        probes=len(probe),
    )
    if not proof.reload_gap <= MAX_RELOAD_GAP:
        raise MergeError(f"the model read back differs from the one in memory by {proof.reload_gap:.2g}")
    if changed and torch.equal(merged_ND, before_ND):
        raise UserError(
            "the merged model equals its base: nothing was learnt",
            "Raise lr, epochs or batch_size: a step learns by comparing the pairs of its batch.",
        )
    return proof


def _merge_adapter(fresh: Encoder, adapter: Path, probe: TokenSequences) -> Tensor:
    """Merge the adapter on disk into the base model `fresh`; return what it gave the probes before."""
    from peft import PeftModel

    fresh.model = PeftModel.from_pretrained(fresh.model, adapter).eval()
    adapted_ND = _embed(fresh, probe)
    fresh.model = fresh.model.merge_and_unload()
    return adapted_ND


def _fp32_bytes(encoder: Encoder) -> int:
    return 4 * sum(int(weight.numel()) for weight in encoder.model.parameters())


def _embed(encoder: Encoder, probe: TokenSequences) -> Tensor:
    with torch.inference_mode():
        return encoder.embed(probe)
