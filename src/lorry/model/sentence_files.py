"""Read what sentence-transformers wrote beside a model: its modules, pooling, prompts and maximum length.

The files are modules.json, 1_Pooling/config.json, sentence_bert_config.json and config_sentence_transformers.json. Each
may be missing, unless another one names it. None is trusted: a value of another kind than it should be is an error that
names file and value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lorry.errors import UserError

POOLINGS = ("mean", "cls", "lasttoken")
MODULES = {"Transformer", "Pooling", "Normalize"}
STANDARDIZED = ("Transformer", "Pooling", "Dense")
"""How the modules of a standardised model begin."""
# Longer texts cost more than they gain; a higher limit must be asked for with --max_length.
DEFAULT_MAX_LENGTH = 512
# Names that models give the prompt of a product text.
TEXT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class SentenceSettings:
    """How a model turns token vectors into one embedding, as its own files say."""

    pooling: str
    normalize: bool
    prompts: dict[str, str]
    max_length: int
    """Maximum tokens per text."""
    lower_case: bool
    standardizer: str = ""
    """Folder, in that of the model, of the module that standardises embeddings; "" for none."""


def read_sentence_files(folder: Path, name: str) -> SentenceSettings:
    """Read the settings in `folder`; without such files mean pooling and embeddings of length 1.

    Args:
        folder: Of the model.
        name: What to call the model.

    Raises:
        UserError: A file is not as it should be, or the model needs what Lorry cannot do.
    """
    modules = _modules(folder, name)
    path = folder / "sentence_bert_config.json"
    sentence = read_object(path)
    lower_case = sentence.get("do_lower_case") or False
    if not isinstance(lower_case, bool):
        _refuse(path, "do_lower_case", lower_case, "true or false")
    return SentenceSettings(
        pooling=_pooling(folder, modules, name),
        normalize=not modules or any(module["type"].endswith("Normalize") for module in modules),
        prompts=_prompts(folder),
        max_length=_read_number(path, sentence, "max_seq_length") or _tokenizer_length(folder),
        lower_case=lower_case,
        standardizer=next((module["path"] for module in modules if module["type"].endswith("Dense")), ""),
    )


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one where there is no such file.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
    found = _read_json(path, {})
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object", "Correct or remove that file.")
    return found


def _tokenizer_length(folder: Path) -> int:
    """Return the maximum length that the tokenizer has: newer sentence-transformers leaves it to that."""
    path = folder / "tokenizer_config.json"
    return min(_read_number(path, read_object(path), "model_max_length") or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)


def _read_number(path: Path, settings: dict[str, Any], key: str) -> int | None:
    """Return a whole number above 0 from the settings read from `path`; None where they have none.

    Raises:
        UserError: It is something else.
    """
    value = settings.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < float("inf"):
        _refuse(path, key, value, "a number of 1 or more")
    return int(value)  # 1e30 stands for no limit


def _read_json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else default
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})", "Correct or remove that file.") from error


def _refuse(path: Path, key: str, value: Any, wanted: str) -> NoReturn:
    raise UserError(f"{key} in {path} is {value!r:.100}", f"It must be {wanted}: correct that file.")


def _modules(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / "modules.json"
    modules = _read_json(path, [])
    if not isinstance(modules, list):
        raise UserError(f"{path} holds no list of modules", "Correct or remove that file.")
    for number, module in enumerate(modules):
        if not isinstance(module, dict):
            _refuse(path, f"module {number}", module, "an object with type and path")
        for key in ("type", "path"):
            if not isinstance(module.get(key), str):
                _refuse(path, f"{key} of module {number}", module.get(key), "a string")
        if "\0" in module["path"] or not (folder / module["path"]).resolve().is_relative_to(folder.resolve()):
            _refuse(path, f"path of module {number}", module["path"], "a folder inside the model's")
        library, _, kind = module["type"].rpartition(".")
        if kind == "Dense" and _standardizes(folder, modules, number):
            continue
        if library.split(".")[0] != "sentence_transformers" or kind not in MODULES:
            raise UserError(
                f"{name} has a {module['type']} module",
                "Choose a model of sentence-transformers' own Transformer, Pooling and Normalize modules.",
            )
    return modules


def _standardizes(folder: Path, modules: list[dict[str, str]], number: int) -> bool:
    """Tell whether a module Dense is one that standardises: square, linear, and next to the pooling."""
    kinds = tuple(str(module.get("type", "")).rpartition(".")[2] for module in modules[: number + 1])
    place = folder / modules[number]["path"]
    settings = read_object(place / "config.json")
    return (
        kinds == STANDARDIZED
        and (place / "model.safetensors").is_file()
        and settings.get("in_features") == settings.get("out_features")
        and settings.get("bias") is True
        and str(settings.get("activation_function")).endswith(".Identity")
        and not settings.get("use_residual")
    )


def _pooling(folder: Path, modules: list[dict[str, str]], name: str) -> str:
    places = [module["path"] for module in modules if module["type"].endswith("Pooling")]
    path = folder / (places[0] if places else "1_Pooling") / "config.json"
    if places and not path.is_file():
        raise UserError(f"{path} is missing, and modules.json names it", "Copy the whole model, with its sub-folders.")
    settings = read_object(path)
    if settings.get("include_prompt") is False:
        raise UserError(f"{name} pools without its prompt tokens", "Choose a base model that pools over all tokens.")
    flag = "pooling_mode_"
    modes = [key.removeprefix(flag) for key, chosen in settings.items() if key.startswith(flag) and chosen]
    modes = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]
    if named := settings.get("pooling_mode"):
        modes = named if isinstance(named, list) else [named]
        if not all(isinstance(mode, str) for mode in modes):
            _refuse(path, "pooling_mode", named, "a name or a list of names")
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"{name} pools by {' + '.join(modes)}", f"Choose a base model that pools by one of {', '.join(POOLINGS)}."
        )
    return modes[0]


def _prompts(folder: Path) -> dict[str, str]:
    """Return the prompts by name; that of a product text also as `document`."""
    path = folder / "config_sentence_transformers.json"
    found = read_object(path).get("prompts") or {}
    if not isinstance(found, dict):
        _refuse(path, "prompts", found, "an object of texts")
    prompts = {key: prompt for key, prompt in found.items() if prompt is not None}
    for key, prompt in prompts.items():
        if not isinstance(prompt, str):
            _refuse(path, f"prompt {key}", prompt, "a text")
    if text_prompt := next((prompts[key] for key in TEXT_PROMPTS if prompts.get(key)), ""):
        prompts["document"] = text_prompt  # the only name that encode_document of the tuned model is sure to look at
    return prompts
