"""The folders that a run writes: checked before it begins; the model folder is replaced completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorry.config import TrainConfig
from lorry.errors import UserError


@contextmanager
def staging(model_dir: Path) -> Iterator[Path]:
    """Give a folder to build the model in; when the block ends well its files become `model_dir`.

    Raises:
        UserError: `model_dir` cannot be written, or holds something other than a model of Lorry's.
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
    """Make `folder`, and check that it can be written and that nothing would be lost.

    Raises:
        UserError: It cannot, or it holds something other than a model of Lorry's.
    """
    _probe_writing(folder, "--model_dir")
    for stale in folder.glob(".lorry-*"):  # a run killed in the middle of its export
        shutil.rmtree(stale, ignore_errors=True)
    if _entries(folder) and not (folder / "lorry.json").is_file():
        raise UserError(f"{folder} is not empty and holds no model of Lorry's", "Give an empty folder as --model_dir.")


def check_apart(config: TrainConfig) -> None:
    """Check that nothing of the user's lies in `model_dir`, which is replaced whole when the model is ready.

    Raises:
        UserError: A folder of pairs, of results or of checkpoints is `model_dir` or lies in it.
    """
    model_dir = Path(config.model_dir).resolve()
    for name in ("train", "validation", "test", "output_data_dir", "checkpoint_dir"):
        given = getattr(config, name)
        if given and "://" not in given and Path(given).resolve().is_relative_to(model_dir):
            raise UserError(
                f"{name} {given} lies in model_dir {config.model_dir}, which the finished model replaces whole",
                f"Give a folder outside it as --{name}.",
            )


def check_output(folder: Path, option: str = "--output_data_dir") -> None:
    """Make the folder that `option` names and check that it can be written.

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


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
