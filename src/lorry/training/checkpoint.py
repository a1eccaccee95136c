"""Checkpoints: written completely or not at all, checked when read, and continued exactly.

A checkpoint is a folder `step-00000120` with the adapters and the optimizer's moments as safetensors, the log so far
and `state.json`, which names the data, the hyperparameters, the sha256 of the other files and its own. It is written
under another name and renamed; one whose files are not as they were written (after an interrupted sync, say) is
skipped, and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.options import as_dict
from lorry.outputs import writing

log = logging.getLogger("lorry")

KEPT = 2  # complete checkpoints: the newest, and one in case it gets damaged
FORMAT = 4  # of state.json; since 3 it has a checksum of its own, since 4 the best epoch
COUNTERS = {"step", "pairs", "tokens", "seconds", "micro_batch_tokens"}  # of loop.Progress
CONTENTS = ("training data", "base model", "validation data")  # compared by their fingerprints
FILES = {"adapters.safetensors", "optimizer.safetensors", "kept.safetensors", "training.jsonl"}
# Hyperparameters that may differ between the run that stopped and the one that continues it. Pairs and base model are
# compared by their content, wherever they lie.
NOT_COMPARED = {
    "train", "validation", "test", "pretrained_model", "model_dir", "output_data_dir", "checkpoint_dir",
    "eval_batch_size", "log_every", "checkpoint_every", "on_stop", "interpolation", "require", "processes", "host_wait",
    "cuda_graphs", "evals_per_epoch",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A run's state after `step` optimizer steps."""

    step: int
    adapters: dict[str, Tensor]
    moments: dict[str, Tensor]
    """The optimizer's state, as `name|entry`."""
    kept: dict[str, Tensor]
    """Weights of the best epoch and mined negatives, where there are any."""
    progress: dict[str, Any]
    """Counters, the gradient scaler's state, and whatever else is plain JSON."""
    log_lines: list[dict[str, Any]]


class CheckpointStore:
    """The checkpoint folder of one run."""

    def __init__(
        self, folder: Path, config: TrainConfig, *, precision: str, data: str, model: str, validation: str = ""
    ) -> None:
        """Open the folder.

        Args:
            folder: Where checkpoints are kept.
            config: The run's hyperparameters.
            precision: The one that the run computes in.
            data: Fingerprint of the training pairs.
            model: Fingerprint of the base model.
            validation: Fingerprint of the validation pairs, where the epoch is chosen on them.
        """
        self.folder = folder
        settings = {name: value for name, value in as_dict(config).items() if name not in NOT_COMPARED}
        contents = dict(zip(CONTENTS, (data, model, validation), strict=True))
        self.identity = {**contents, **settings, "precision": precision}
        self.versions = {name: metadata.version(name) for name in ("lorry", "torch")}

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and drop the oldest.

        Raises:
            OutputError: The folder cannot be written.
            UserError: Training has diverged: a number is not finite.
        """
        self._check_finite(checkpoint)
        name = f"step-{checkpoint.step:08d}"
        unfinished = self.folder / f".{name}.writing"
        with writing(self.folder / name, "Check free space and permissions of --checkpoint_dir."):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            save_file(checkpoint.adapters, unfinished / "adapters.safetensors")
            save_file(checkpoint.moments, unfinished / "optimizer.safetensors")
            save_file(checkpoint.kept, unfinished / "kept.safetensors")
            lines = "".join(json.dumps(line) + "\n" for line in checkpoint.log_lines)
            (unfinished / "training.jsonl").write_text(lines, "utf-8")
            state = {
                "format": FORMAT,
                "step": checkpoint.step,
                "identity": self.identity,
                "versions": self.versions,
                "progress": checkpoint.progress,
                "sha256": {path.name: _sha256(path) for path in sorted(unfinished.iterdir())},
            }
            state["checksum"] = _checksum(state)
            (unfinished / "state.json").write_text(json.dumps(state, indent=1), "utf-8")
            _remove(self.folder / name)
            unfinished.rename(self.folder / name)
        self._prune(checkpoint.step)

    def load(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None where there is none.

        Raises:
            UserError: It belongs to other data, another base model or other hyperparameters, or to a newer version.
        """
        for folder in reversed(_folders(self.folder)):
            state = _read_state(folder)
            if state is None:
                log.warning("checkpoint %s is incomplete and is skipped", folder.name)
                continue
            self._check(folder, state)
            lines = (folder / "training.jsonl").read_text("utf-8").splitlines()
            return Checkpoint(
                state["step"],
                load_file(folder / "adapters.safetensors"),
                load_file(folder / "optimizer.safetensors"),
                load_file(folder / "kept.safetensors"),
                state["progress"],
                [json.loads(line) for line in lines],
            )
        return None

    def _prune(self, step: int) -> None:
        """Delete all but the newest complete checkpoints up to this step; later ones are left alone."""
        earlier = [folder for folder in _folders(self.folder) if int(folder.name.removeprefix("step-")) <= step]
        complete = [folder for folder in earlier if _read_state(folder) is not None]
        for folder in earlier:
            if folder not in complete[-KEPT:]:
                _remove(folder)

    def _check_finite(self, checkpoint: Checkpoint) -> None:
        """Refuse to write what a run could not continue from."""
        tensors = {**checkpoint.adapters, **checkpoint.moments}
        finite = all(bool(value.isfinite().all()) for value in tensors.values())
        if not finite or not all(map(math.isfinite, checkpoint.progress["losses"])):
            kept = [folder.name for folder in _folders(self.folder) if _read_state(folder) is not None]
            last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no earlier checkpoint"
            raise UserError(
                f"training has diverged by step {checkpoint.step}: weights or losses are not finite numbers; {last}",
                "Lower lr, or take another precision.",
            )

    def _check(self, folder: Path, state: dict[str, Any]) -> None:
        if state["format"] > FORMAT:
            raise UserError(
                f"checkpoint {folder} was written by a newer version of Lorry ({state['versions'].get('lorry')})",
                "Update Lorry, or give another --checkpoint_dir.",
            )
        if state["format"] < FORMAT:
            raise UserError(
                f"checkpoint {folder} was written by an older version of Lorry",
                "Continue with that version, or give another --checkpoint_dir.",
            )
        now, identity = json.loads(json.dumps(self.identity)), state["identity"]
        differ = [name for name in now if now[name] != identity.get(name)]
        if differ:
            shown = ", ".join(
                name if name in CONTENTS else f"{name} ({identity.get(name)}, now {now[name]})" for name in differ
            )
            raise UserError(
                f"checkpoint {folder} belongs to another run: {shown} differ",
                "Train with the same data and options, or give another --checkpoint_dir.",
            )
        for name, version in self.versions.items():
            if state["versions"].get(name, version) != version:
                log.warning(
                    "the checkpoint was written with %s %s, this is %s: results may differ in the last digits",
                    name, state["versions"][name], version,
                )  # fmt: skip


def precision_of_checkpoint(folder: Path) -> str:
    """Return the precision of the newest complete checkpoint in a folder, "" where there is none."""
    states = (_read_state(path) for path in reversed(_folders(folder)))
    state = next((state for state in states if state is not None), None)
    return str(state["identity"].get("precision", "")) if state is not None else ""


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


def _folders(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest last; folders with other names are the user's."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name) and path.is_dir())


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Return state.json, or None where it or a file of the checkpoint is missing, damaged or cut short."""
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        state = {"format": 1, "versions": {}, **state}
        counters, losses = state["progress"]["counters"], state["progress"]["losses"]
        valid = (
            isinstance(state["format"], int)
            and _is_sound(state)
            and folder.name == f"step-{state['step']:08d}"
            and isinstance(state["identity"], dict)
            and isinstance(state["versions"], dict)
            and isinstance(state["progress"]["scaler"], dict)
            and (state["format"] < 4 or [type(value) for value in state["progress"]["best"]] == [int, float])
            and counters.keys() == COUNTERS
            and all(isinstance(value, int | float | None) for value in counters.values())
            and isinstance(counters["step"], int)
            and counters["step"] == state["step"]
            and all(isinstance(loss, int | float) for loss in losses)
            and state["sha256"].keys() == FILES - ({"kept.safetensors"} if state["format"] < 4 else set())
        )
        complete = valid and all(_sha256(folder / name) == digest for name, digest in state["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return state if complete else None


def _remove(folder: Path) -> None:
    """Delete a checkpoint; a folder that holds anything else is not ours, whatever its name."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= FILES | {"state.json"}:
        shutil.rmtree(folder, ignore_errors=True)


def _is_sound(state: dict[str, Any]) -> bool:
    """Return whether the content of state.json is as it was written, as far as its format can tell."""
    if "checksum" in state:
        return bool(state["checksum"] == _checksum(state))
    return bool(state["format"] < 3)


def _checksum(state: dict[str, Any]) -> str:
    """Return the sha256 of everything in state.json but this checksum itself."""
    rest = {name: value for name, value in state.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
