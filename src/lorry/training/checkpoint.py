"""Checkpoints: written completely or not at all, checked when read, and continued exactly.

A checkpoint is a folder `step-00000120` with the adapters and the optimizer's moments as safetensors, the log so far
and `state.json`, which names the data, the hyperparameters and the sha256 of the other files. It is written under
another name and renamed; one whose files do not match its `state.json` (after an interrupted
sync, say) is skipped, and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorry.config import TrainConfig, as_dict
from lorry.errors import UserError

log = logging.getLogger("lorry")

KEPT = 2  # checkpoints: the newest, and one in case it is cut short
# Hyperparameters that may differ between the run that stopped and the one that continues it.
NOT_COMPARED = {
    "train", "validation", "test", "model_dir", "output_data_dir", "checkpoint_dir", "eval_batch_size", "log_every",
    "checkpoint_every", "on_stop",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A run's state after `step` optimizer steps."""

    step: int
    adapters: dict[str, Tensor]
    moments: dict[str, Tensor]
    """The optimizer's state, as `name|entry`."""
    progress: dict[str, Any]
    """Counters, the gradient scaler's state, and whatever else is plain JSON."""
    log_lines: list[dict[str, Any]]


class CheckpointStore:
    """The checkpoint folder of one run."""

    def __init__(self, folder: Path, config: TrainConfig, data: str, model: str) -> None:
        """Open the folder.

        Args:
            folder: Where checkpoints lie.
            config: The run's hyperparameters.
            data: Fingerprint of the training pairs.
            model: Fingerprint of the base model.
        """
        self.folder = folder
        settings = {name: value for name, value in as_dict(config).items() if name not in NOT_COMPARED}
        self.identity = {"training data": data, "base model": model, **settings}

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and drop the oldest.

        Raises:
            UserError: The folder cannot be written.
        """
        name = f"step-{checkpoint.step:08d}"
        unfinished = self.folder / f".{name}.writing"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            save_file(checkpoint.adapters, unfinished / "adapters.safetensors")
            save_file(checkpoint.moments, unfinished / "optimizer.safetensors")
            lines = "".join(json.dumps(line) + "\n" for line in checkpoint.log_lines)
            (unfinished / "training.jsonl").write_text(lines, "utf-8")
            state = {
                "step": checkpoint.step,
                "identity": self.identity,
                "progress": checkpoint.progress,
                "sha256": {path.name: _sha256(path) for path in sorted(unfinished.iterdir())},
            }
            (unfinished / "state.json").write_text(json.dumps(state, indent=1), "utf-8")
            shutil.rmtree(self.folder / name, ignore_errors=True)
            unfinished.rename(self.folder / name)
            for old in self._names()[:-KEPT]:
                shutil.rmtree(old)
        except OSError as error:
            raise UserError(
                f"no checkpoint can be written to {self.folder}: {error.strerror or error}",
                "Check space and permissions of --checkpoint_dir.",
            ) from None

    def load(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None where there is none.

        Raises:
            UserError: It belongs to other data, another base model or other hyperparameters.
        """
        for folder in reversed(self._names()):
            state = _read_state(folder)
            if state is None:
                log.warning("checkpoint %s is incomplete and is skipped", folder.name)
                continue
            self._check(folder, state["identity"])
            lines = (folder / "training.jsonl").read_text("utf-8").splitlines()
            return Checkpoint(
                state["step"],
                load_file(folder / "adapters.safetensors"),
                load_file(folder / "optimizer.safetensors"),
                state["progress"],
                [json.loads(line) for line in lines],
            )
        return None

    def _names(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _check(self, folder: Path, identity: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.identity))
        differ = [name for name in now if now[name] != identity.get(name)]
        if differ:
            shown = ", ".join(
                name if name in {"training data", "base model"} else f"{name} ({identity.get(name)}, now {now[name]})"
                for name in differ
            )
            raise UserError(
                f"checkpoint {folder} belongs to another run: {shown} differ",
                "Train with the same data and options, or give another --checkpoint_dir.",
            )


def optimizer_moments(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}|{entry}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, entries in state.items()
        for entry, value in entries.items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, names: list[str], moments: dict[str, Tensor]) -> None:
    """Put back what `optimizer_moments` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, entry = key.split("|")
        state.setdefault(names.index(name), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Return state.json, or None where it or a file that it names is not complete."""
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text("utf-8"))
        complete = all(_sha256(folder / name) == digest for name, digest in state["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if complete else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
