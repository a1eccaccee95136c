"""Load a base model: every weight from its files, or one line that says why not."""

from __future__ import annotations

from typing import Any

import torch

from lorry.errors import UserError
from lorry.model.failures import refusing
from lorry.model.model_config import needs_own_code, own_code_error
from lorry.model.pretrained import PretrainedModel


def load_model(base: PretrainedModel, dtype: torch.dtype) -> Any:
    """Load the transformers model of `base`, every weight from its files; code that comes with it is never run.

    Raises:
        UserError: The files cannot be read, or weights are missing from them.
    """
    model, info = _load(base, dtype)
    if info["missing_keys"] and all("pooler" in key for key in info["missing_keys"]):
        # Saved without BERT's pooler, which no embedding uses: do not make up one.
        model, info = _load(base, dtype, add_pooling_layer=False)
    if info["missing_keys"]:
        if needs_own_code(base.folder):  # of a known model_type, but another model
            raise own_code_error(base.name)
        raise UserError(
            f"model {base.name} lacks weights: {', '.join(sorted(info['missing_keys'])[:3])}", "Take a complete model."
        )
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"], key=str)
        raise UserError(
            f"model {base.name} has weights of another shape than its config.json says: "
            f"{name} is {list(found)} and not {list(expected)}",
            "Take a complete model.",
        )
    return model


def _load(base: PretrainedModel, dtype: torch.dtype, **options: bool) -> tuple[Any, dict[str, Any]]:
    """Return the model, and what was missing or different in its files."""
    from transformers import AutoModel

    with refusing(f"model {base.name} cannot be loaded", "Check its files, or take another."):
        model, info = AutoModel.from_pretrained(
            base.folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    return model, info
