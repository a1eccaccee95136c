"""Read a model's config.json, and refuse what is no text encoder before anything large is read.

Code that comes with a model is never run: only what the installed transformers knows is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorry.errors import UserError
from lorry.model.failures import refusing
from lorry.model.sentence_files import read_object

INSTEAD = "Choose a text-embedding model that transformers knows, such as bundled or TaylorAI/gte-tiny."
# More than any model has: with a damaged number, all memory could be taken before anything fails.
LARGEST = {
    "vocab_size": 100_000_000,
    "hidden_size": 1_000_000,
    "num_attention_heads": 10_000,
    "num_hidden_layers": 1_000,
    "max_position_embeddings": 100_000_000,
}
NO_LIMIT = {"max_position_embeddings"}  # -1 where a model, such as XLNet, reads texts of any length


def read_config(folder: Path, name: str) -> Any:
    """Return the transformers configuration of the text encoder in `folder`.

    Args:
        folder: Of the model.
        name: What to call the model.

    Raises:
        UserError: It cannot be read, is not that of a text encoder, or the model needs code of its own.
    """
    path = folder / "config.json"
    written = read_object(path)
    kind = written.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise UserError(f"{path} does not say which model_type it is", "Give a model as transformers saves it.")
    _check_known(kind, name, needs_code="auto_map" in written)

    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with refusing(f"{path} cannot be used", "Correct that file, or choose another model."):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _check_numbers(path, config)
    _check_encodes_text(config, name)
    return config


def needs_own_code(folder: Path) -> bool:
    """Return whether the model in `folder` brings code that it may need."""
    return "auto_map" in read_object(folder / "config.json")


def own_code_error(name: str) -> UserError:
    """Return the refusal of a model that only its own code can load."""
    return UserError(f"{name} needs code that comes with it (auto_map), and Lorry never runs such code", INSTEAD)


def _check_known(kind: str, name: str, *, needs_code: bool) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind in CONFIG_MAPPING:
        return
    if needs_code:
        raise own_code_error(name)
    version = transformers.__version__
    raise UserError(f"{name} is of the type {kind}, which transformers {version} does not know", INSTEAD)


def _check_numbers(path: Path, config: Any) -> None:
    for key, largest in LARGEST.items():
        value = getattr(config, key, None)
        smallest = -1 if key in NO_LIMIT else 1
        if isinstance(value, int) and not smallest <= value <= largest:
            raise UserError(
                f"{key} in {path} is {value}", f"It must be from {smallest} to {largest:,}: correct that file."
            )


def _check_encodes_text(config: Any, name: str) -> None:
    """Refuse models that read images or sound, also beside text, or that answer texts with texts."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(config), None)
    model = found[0] if isinstance(found, list | tuple) else found
    reads = getattr(model, "main_input_name", "nothing")
    what = f"{name} is of the type {config.model_type}"
    if parts := {"vision_config", "audio_config"} & config.sub_configs.keys():
        raise UserError(f"{what}, which has a {' and '.join(sorted(parts))}", INSTEAD)
    if reads != "input_ids":
        raise UserError(f"{what}, which reads {reads} and not text", INSTEAD)
    if config.is_encoder_decoder:
        raise UserError(f"{what}, an encoder with a decoder", INSTEAD)
