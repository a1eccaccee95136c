"""Merge the adapters, prove the merge, and put the model in place.

The model is built in a folder of its own beside `model_dir` and moved in when it is complete and proved, so `model_dir`
never holds anything unfinished. Weights are saved as fp32: a LoRA update can be smaller than half a step of bf16.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorry.config import TrainConfig, as_dict
from lorry.errors import UserError
from lorry.model.encoder import Encoder
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import PretrainedModel, find_pretrained
from lorry.model.tokens import load_tokenizer

LEAST_COSINE = 0.9999  # between the merged model and base + adapter
LARGEST_RELOAD_GAP = 1e-6  # between the merged model in memory and as read back
PACKAGES = ("lorry", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


class MergeError(Exception):
    """The merged model is not what was trained; a fault of Lorry or of a library, not of the user."""


@dataclass(frozen=True)
class MergeProof:
    """How far the models are apart on the probe texts, as cosines."""

    merged_to_adapter: float
    """Lowest cosine between the merged model and base + adapter: must be 0.9999 or more."""
    merged_to_base: float
    """Mean cosine between the merged model and the base: 1 if nothing was learnt."""
    reload_gap: float
    """Largest difference between an embedding's numbers in memory and after reading the files back."""
    probes: int


@contextmanager
def staging(model_dir: Path) -> Iterator[Path]:
    """Give a folder to build the model in; when the block ends well its files become `model_dir`.

    Raises:
        UserError: `model_dir` cannot be written, or holds something else than a model of Lorry's.
    """
    check_writable(model_dir)
    # A mounted folder (as in a container) cannot be replaced and has no neighbour on its own disk.
    fixed = model_dir.is_dir() and (os.path.ismount(model_dir) or not os.access(model_dir.parent, os.W_OK))
    parent = model_dir if fixed else model_dir.parent
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=".lorry-"))
    try:
        yield folder
        _open_to_readers(folder)
        for old in [path for path in _entries(model_dir) if path != folder]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        if fixed:
            for path in sorted(folder.iterdir()):
                path.rename(model_dir / path.name)
        else:
            if model_dir.is_dir():
                model_dir.rmdir()
            folder.rename(model_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    """Give every file the permissions that a plain `open` would have: safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def check_writable(folder: Path) -> None:
    """Make `folder`, see that it can be written, and that nothing would be lost.

    Raises:
        UserError: It cannot, or it holds something else than a model of Lorry's.
    """
    _probe_writing(folder, "--model_dir")
    for stale in folder.glob(".lorry-*"):  # a run killed in the middle of its export
        shutil.rmtree(stale, ignore_errors=True)
    if _entries(folder) and not (folder / "lorry.json").is_file():
        raise UserError(f"{folder} is not empty and holds no model of Lorry's", "Give an empty folder as --model_dir.")


def check_apart(config: TrainConfig) -> None:
    """See that nothing of the user's lies in `model_dir`, which is replaced whole when the model is ready.

    Raises:
        UserError: A folder of pairs, of results or of checkpoints is `model_dir` or lies in it.
    """
    model_dir = Path(config.model_dir).resolve()
    for name in ("train", "validation", "test", "output_data_dir", "checkpoint_dir"):
        given = getattr(config, name)
        if given and Path(given).resolve().is_relative_to(model_dir):
            raise UserError(
                f"{name} {given} lies in model_dir {config.model_dir}, which the finished model replaces whole",
                f"Give a folder outside it as --{name}.",
            )


def check_output(folder: Path, option: str = "--output_data_dir") -> None:
    """Make the folder that `option` names and see that it can be written.

    Raises:
        UserError: It cannot.
    """
    _probe_writing(folder, option)


def _probe_writing(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".lorry-"):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}", f"Give another {option}.") from None


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def write_model(folder: Path, encoder: Encoder, probe: TokenSequences) -> MergeProof:
    """Merge, write the weights, tokenizer and sentence-transformers files, and prove that all is as trained.

    Args:
        folder: An empty folder.
        encoder: The trained encoder.
        probe: Texts to compare embeddings on.

    Raises:
        MergeError: The merged model is not base + adapter, or does not read back as it was.
        UserError: The merged model equals its base.
    """
    from peft import PeftModel

    base = encoder.base
    _write_adapter(folder / "adapter", encoder)
    fresh = Encoder(base, "fp32", encoder.device)
    before_ND = _embed(fresh, probe)
    fresh.model = PeftModel.from_pretrained(fresh.model, folder / "adapter").eval()
    adapted_ND = _embed(fresh, probe)
    fresh.model = fresh.model.merge_and_unload()
    merged_ND = _embed(fresh, probe)
    fresh.model.set_attn_implementation("eager")
    fresh.model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    _write_sentence_transformers(folder, base, encoder.width)
    read_back_ND = _embed(Encoder(find_pretrained(str(folder)), "fp32", encoder.device), probe)
    proof = MergeProof(
        merged_to_adapter=float(torch.cosine_similarity(merged_ND, adapted_ND).min()),
        merged_to_base=float(torch.cosine_similarity(merged_ND, before_ND).mean()),
        reload_gap=float((merged_ND - read_back_ND).abs().max()),
        probes=len(probe),
    )
    if not proof.merged_to_adapter >= LEAST_COSINE:
        raise MergeError(f"merged model and base + adapter differ: cosine {proof.merged_to_adapter:.6f}")
    if not proof.reload_gap <= LARGEST_RELOAD_GAP:
        raise MergeError(f"the model read back differs from the one in memory by {proof.reload_gap:.2g}")
    if torch.equal(merged_ND, before_ND):
        raise UserError("the merged model equals its base: nothing was learnt", "Raise lr or epochs.")
    return proof


def _embed(encoder: Encoder, probe: TokenSequences) -> Tensor:
    with torch.inference_mode():
        return encoder.embed(probe)


def _write_adapter(folder: Path, encoder: Encoder) -> None:
    encoder.model.peft_config["default"].base_model_name_or_path = encoder.base.name
    encoder.model.save_pretrained(folder, save_embedding_layers=False)  # the adapters alone
    (folder / "README.md").unlink(missing_ok=True)  # a form left blank; the model card is one level up


def _write_sentence_transformers(folder: Path, base: PretrainedModel, width: int) -> None:
    """Write the files that sentence-transformers and text-embeddings-inference read, in their oldest spelling."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if base.normalize else [])]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    flags = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    pooling = {"word_embedding_dimension": width} | {
        f"pooling_mode_{flag}": base.pooling == mode for mode, flag in flags.items()
    }
    settings = {"prompts": base.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    for path, _ in kinds[1:]:
        (folder / path).mkdir()
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "config_sentence_transformers.json", settings)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": base.max_length, "do_lower_case": base.lower_case}
    )


def provenance(config: TrainConfig, fingerprints: dict[str, str], **facts: Any) -> dict[str, Any]:
    """Return what `lorry.json` says of where the model comes from."""
    return {
        "config": as_dict(config),
        "seed": config.seed,
        "data_fingerprint": fingerprints,
        "versions": {name: package_version(name) for name in PACKAGES},
        "revision": revision(),
        **facts,
    }


def revision() -> str:
    """Return the git revision of this code, with `-dirty` where files differ from it; `unknown` where there is none."""
    if given := os.environ.get("LORRY_REVISION"):
        return given
    here = Path(__file__).parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else the checkout around us is somebody else's
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def package_version(name: str) -> str:
    """Return the installed version of a package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
