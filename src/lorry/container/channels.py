"""The folders that a job reads: pairs for each split, and perhaps a base model. Errors name what is mounted wrongly."""

from __future__ import annotations

import difflib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorry.archives import unpack
from lorry.errors import UserError
from lorry.names import CHANNELS, SPLITS

log = logging.getLogger("lorry")

OTHER_NAMES = {"training": "train"}
KNOWN = (*CHANNELS, *OTHER_NAMES)


def read_channels(data: Path, declared: Mapping[str, Any]) -> dict[str, Path]:
    """Return the folder of each channel that Lorry knows.

    Args:
        data: /opt/ml/input/data.
        declared: inputdataconfig.json.

    Raises:
        UserError: A channel comes as a pipe or under two names, or its folder cannot be one of pairs.
    """
    folders: dict[str, Path] = {}
    entries = list(data.iterdir()) if data.is_dir() else []
    pipes = {path.name.rpartition("_")[0] for path in entries if path.is_fifo()}
    there = {path.name for path in entries if path.is_dir() or path.name in KNOWN}
    for name in sorted(there | pipes | set(declared)):
        channel = OTHER_NAMES.get(name, name)
        if channel not in CHANNELS:
            log.warning("channel %s is not used. %s", name, _suggestion(name))
            continue
        if name in pipes or _input_mode(name, declared) == "Pipe":
            raise UserError(f"channel {name} comes in Pipe mode", "Use input mode File or FastFile.")
        if channel in folders:
            raise UserError(f"channel {channel} is there twice: as {folders[channel].name} and as {name}", "Give one.")
        folders[channel] = data / name
        if (data / name).exists():
            _check_folder(data / name, channel)
    return folders


def missing_pairs(root: Path) -> UserError:
    """Return the error for a job without a channel train; it names what is mounted in the wrong place."""
    from lorry.data.files import file_format

    data = root / "input" / "data"
    for folder in (data, data.parent, root):
        if folder.is_file():
            return UserError(f"{folder} is a file", _mount(f"{data}/train", "the folder that holds it"))
        if pairs := _names(folder, lambda path: path.is_file() and bool(file_format(path))):
            return UserError(
                f"there are pairs in {folder} ({', '.join(pairs[:3])}), but there is no folder {data}/train",
                _mount(f"{data}/train", "the folder that holds them"),
            )
        if folder != data and (folder / "train").is_dir():
            return UserError(f"there is {folder}/train, but no {data}/train", f"Mount the folder of train at {data}.")
    for name in _names(data, Path.is_dir):
        if _nearest(name) in ("train", "training"):
            return UserError(f"no training pairs: there is a channel {name}, but none train", "Did you mean train?")
    return UserError(
        f"no training pairs: there is no folder {data}/train",
        f"{_mount(f'{data}/train')} On SageMaker name a channel train. Or give a data set on the Hub: "
        "--train hf://datasets/OWNER/NAME.",
    )


def find_model(channel: Path) -> Path:
    """Return the folder of the base model in a channel that holds one, as files or as model.tar.gz.

    Raises:
        UserError: There is none, or the archive cannot be unpacked.
    """
    archives = sorted(channel.glob("*.tar.gz"))
    folder = channel
    if archives and not (channel / "config.json").is_file():
        # The same name in every run, since the path is recorded with the model.
        folder = Path(tempfile.gettempdir()) / "lorry-base-model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        unpack(archives[0], folder)
    found = sorted(folder.glob("config.json")) or sorted(folder.glob("*/config.json"))
    if not found:
        raise UserError(
            f"the channel model has no config.json: {channel}",
            "Give the folder, or model.tar.gz, of a Hugging Face model.",
        )
    return found[0].parent


def _check_folder(folder: Path, channel: str) -> None:
    """Refuse a file in place of a folder, an empty folder, and one that is mounted a level too high."""
    if not folder.is_dir():
        raise UserError(f"{folder} is a file", _mount(str(folder), "the folder that holds it"))
    entries = sorted(path.name for path in folder.iterdir())
    if not entries:
        raise UserError(
            f"{folder} is empty",
            "Check the path before the colon of -v: Docker makes an empty folder where there is none. On SageMaker "
            "check the channel's S3 URI.",
        )
    folders = _names(folder, Path.is_dir)
    if channel not in SPLITS or len(folders) < len(entries):
        return
    hint = f"Mount a folder of files at {folder}: folders within it are not read."
    if set(folders) & set(KNOWN):
        hint = f"Mount it at {folder.parent}, or one folder of it at {folder}."
    raise UserError(f"{folder} holds no files, only folders: {', '.join(folders[:6])}", hint)


def _input_mode(name: str, declared: Mapping[str, Any]) -> str:
    settings = declared.get(name, {})
    if not isinstance(settings, dict):
        raise UserError(f"inputdataconfig.json: channel {name} is no object", 'Write {"TrainingInputMode": "File"}.')
    return str(settings.get("TrainingInputMode", ""))


def _suggestion(name: str) -> str:
    guess = _nearest(name)
    return f"Did you mean {guess}?" if guess else f"Lorry knows {', '.join(KNOWN)}."


def _nearest(name: str) -> str:
    """Return the known name closest to `name`, or "". SDK v3's channel `code` is not meant to be `model`."""
    return next(iter(difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.7)), "")


def _names(folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """Return the names in a folder of what is wanted, sorted; none where there is no such folder."""
    return sorted(path.name for path in folder.iterdir() if wanted(path)) if folder.is_dir() else []


def _mount(place: str, what: str = "one") -> str:
    return f"Mount {what}: docker run -v /path/to/pairs:{place} …"
