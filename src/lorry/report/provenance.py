"""Where a model comes from (`lorry.json`): revision of the code, versions of the libraries, machine, data."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lorry.config import TrainConfig
from lorry.options import as_dict

PACKAGES = ("lorry", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def provenance(config: TrainConfig, fingerprints: dict[str, str], **facts: Any) -> dict[str, Any]:
    """Return what `lorry.json` says.

    Args:
        config: The resolved hyperparameters.
        fingerprints: sha256 of the pairs of each split.
        facts: Whatever else belongs there: base model, precision, proof of the merge.
    """
    return {
        "config": as_dict(config),
        "seed": config.seed,
        "data_fingerprint": fingerprints,
        "versions": versions(),
        "revision": revision(),
        **facts,
    }


def environment(device: torch.device, precision: str) -> dict[str, str]:
    """Return where and with what a run was made, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "precision": precision, "python": platform.python_version(), **versions()}


def versions() -> dict[str, str]:
    """Return the installed version of every library that a result may depend on."""
    return {name: _version(name) for name in PACKAGES} | {"torch": torch.__version__}  # with its build: +cu128


def revision() -> str:
    """Return the git revision of this code, with `-dirty` where files differ from it; `unknown` where there is none."""
    if given := os.environ.get("LORRY_REVISION"):
        return given
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else the checkout around the package is another project's
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
