"""Write a model as sentence-transformers, transformers, PEFT and text-embeddings-inference read it."""

from __future__ import annotations

from pathlib import Path

from lorry.model.encoder import Encoder
from lorry.model.tokens import load_tokenizer
from lorry.outputs import write_json


def save_adapter(folder: Path, encoder: Encoder) -> None:
    """Write the adapters of `encoder` alone, for `PeftModel.from_pretrained(base, folder)`."""
    encoder.model.peft_config["default"].base_model_name_or_path = encoder.base.name
    encoder.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form; the model card is one level up


def save_model(folder: Path, encoder: Encoder) -> None:
    """Write the weights of `encoder`, without adapters, and the other files that servers need."""
    encoder.model.set_attn_implementation("eager")  # the packed attention is nobody else's
    encoder.model.save_pretrained(folder)
    load_tokenizer(encoder.base).save_pretrained(folder)
    _save_sentence_transformers(folder, encoder)


def _save_sentence_transformers(folder: Path, encoder: Encoder) -> None:
    """Write the files that sentence-transformers and text-embeddings-inference read, in their oldest form."""
    base, width = encoder.base, encoder.width
    kinds = ["Transformer", "Pooling", *(["Dense"] if encoder.standardizer else [])]
    kinds += ["Normalize"] if base.normalize else []
    paths = ["" if index == 0 else f"{index}_{kind}" for index, kind in enumerate(kinds)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    flags = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    pooling = {"word_embedding_dimension": width} | {
        f"pooling_mode_{flag}": base.pooling == mode for mode, flag in flags.items()
    }
    settings = {"prompts": base.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    for path, kind in zip(paths, kinds, strict=True):
        if kind == "Dense" and encoder.standardizer:
            encoder.standardizer.save(folder / path)
        elif path:
            (folder / path).mkdir()
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "config_sentence_transformers.json", settings)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": base.max_length, "do_lower_case": base.lower_case}
    )
