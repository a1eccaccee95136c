"""The folders that a run writes: checked before it begins, kept for it alone, and never left half-written.

A model is built inside the model folder, in `.lorry-new`, so that everything happens on one disk, whether the folder is
a mount, a symbolic link or the current directory. Once it is complete it is renamed to `.lorry-ready`; from then on
every step is a rename that can be repeated, and the next run finishes what a killed one had begun.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorry.config import TrainConfig
from lorry.errors import UserError

BUILDING, READY, REPLACED = ".lorry-new", ".lorry-ready", ".lorry-old"
MANIFEST = "lorry.json"
"""Lists, under `files`, what Lorry wrote: nothing else in the folder is ever deleted."""

# What versions of Lorry without such a list wrote.
EARLIER_NAMES = {
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt", "vocab.json", "merges.txt", "modules.json", "1_Pooling", "2_Normalize", "README.md", "adapter",
    "config_sentence_transformers.json", "sentence_bert_config.json", MANIFEST,
}  # fmt: skip


class OutputError(UserError):
    """A result could not be written."""


@contextmanager
def writing(path: Path, hint: str = "Check free space and permissions there.") -> Iterator[None]:
    """Turn an error of the disk, or of a library that reports one in its own type, into an `OutputError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OutputError(f"{path} cannot be written: {reason}", hint) from error


def check_apart(config: TrainConfig) -> None:
    """Check that no folder of a run lies in another one's way.

    Raises:
        UserError: Something that the run reads, or writes elsewhere, lies in `model_dir`; or results would lie among
            the pairs.
    """
    model_dir = Path(config.model_dir).resolve()
    channels = ("train", "validation", "test")
    for name in (*channels, "output_data_dir", "checkpoint_dir", "pretrained_model"):
        given = getattr(config, name)
        if name == "pretrained_model" and not Path(given).is_dir():
            continue
        if given and "://" not in given and Path(given).resolve().is_relative_to(model_dir):
            raise UserError(
                f"{name} {given} lies in model_dir {config.model_dir}, where the new model goes",
                f"Give a folder outside it as --{name}, or another --model_dir.",
            )
    for name in channels:
        given = getattr(config, name)
        if given and "://" not in given and Path(given).resolve() == Path(config.output_data_dir).resolve():
            raise UserError(f"output_data_dir is the folder of the {name} pairs", "Give another --output_data_dir.")


def check_model_dir(folder: Path) -> None:
    """Check that a model can be put into `folder` without harm to anything there; changes nothing.

    Raises:
        UserError: It holds something, but no model of Lorry's.
    """
    names = _names(folder)
    if names and MANIFEST not in names and not (folder / READY).is_dir():
        raise UserError(
            f"{folder} is not empty and holds no model of Lorry's ({', '.join(sorted(names)[:3])})",
            "Give an empty or new folder as --model_dir.",
        )


def check_writable(folder: Path, option: str) -> None:
    """Make the folder that `option` names and check that it can be written.

    Raises:
        UserError: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".lorry-"):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}", f"Give another {option}, or change its permissions."
        ) from None


def check_space(needs: dict[Path, int]) -> None:
    """Compare the free space of each disk with what will be written to its folders.

    Args:
        needs: Bytes to write, by existing folder.

    Raises:
        UserError: A disk is too small.
    """
    by_disk: dict[int, list[Path]] = {}
    for folder in needs:
        by_disk.setdefault(folder.stat().st_dev, []).append(folder)
    for folders in by_disk.values():
        needed, free = sum(needs[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if needed > free:
            raise UserError(
                f"the disk of {' and '.join(map(str, folders))} has {free / 1e6:,.0f} MB free, and the run needs about "
                f"{needed / 1e6:,.0f} MB",
                "Free some space, or give folders on another disk.",
            )


@contextmanager
def claimed(folder: Path, option: str) -> Iterator[None]:
    """Keep `folder` for this run as long as the block runs; make it, and remove it again where nothing was written.

    The lock is the kernel's and belongs to the process, so that a killed run leaves none behind.

    Raises:
        UserError: It cannot be written, or another run has it.
    """
    created = not folder.exists()
    check_writable(folder, option)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {folder}", f"Wait until it has ended, or give another {option}."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
        if created:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def recover(model_dir: Path) -> bool:
    """Finish what a killed run had begun: put its complete model in place; return whether there was one."""
    if not (model_dir / READY).is_dir():
        return False
    with writing(model_dir):
        _install(model_dir)
    return True


@contextmanager
def staging(model_dir: Path) -> Iterator[Path]:
    """Give a folder to build the model in, with a `lorry.json`; when the block ends well it becomes `model_dir`.

    Raises:
        OutputError: It cannot be written.
    """
    new = model_dir / BUILDING
    with writing(model_dir):
        for leftover in (BUILDING, REPLACED):
            shutil.rmtree(model_dir / leftover, ignore_errors=True)
        new.mkdir()
    try:
        yield new
        with writing(model_dir):
            _complete(new)
            new.rename(model_dir / READY)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    recover(model_dir)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines; an earlier file is replaced completely or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file; an earlier one is replaced completely or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            part.write_text(text, "utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _names(folder: Path) -> set[str]:
    """Return the names in a folder, without those of our own temporary folders."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".lorry-")} if folder.is_dir() else set()


def _complete(folder: Path) -> None:
    """List the files in the manifest and give all the permissions of a plain `open`: safetensors lets only us read."""
    mask = os.umask(0)
    os.umask(mask)
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    write_json(folder / MANIFEST, manifest | {"files": files})
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _install(folder: Path) -> None:
    """Put the model in READY in place of an earlier one; can be killed and called again at any point."""
    ready, replaced = folder / READY, folder / REPLACED
    replaced.mkdir(exist_ok=True)
    for new in sorted(ready.iterdir()):  # what is still here is not in place yet
        _set_aside(folder / new.name, replaced)
        new.rename(folder / new.name)
    for name in _manifest_names(replaced) - _manifest_names(folder):  # what the new model does not have
        _set_aside(folder / name, replaced)
    _keep_others(folder, replaced)
    ready.rmdir()
    shutil.rmtree(replaced)


def _set_aside(path: Path, replaced: Path) -> None:
    if os.path.lexists(path):
        path.rename(replaced / path.name)


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _manifest_names(folder: Path) -> set[str]:
    """Return what Lorry wrote at the top of the model folder that the manifest in `folder` belongs to."""
    manifest = _manifest(folder)
    if manifest is None:
        return set()
    return {Path(name).parts[0] for name in manifest["files"]} if "files" in manifest else EARLIER_NAMES


def _keep_others(folder: Path, replaced: Path) -> None:
    """Move back what was set aside with an earlier model but was not written by Lorry."""
    manifest = _manifest(replaced) or {"files": []}
    for path in sorted(replaced.rglob("*")):
        name = path.relative_to(replaced)
        ours = str(name) in manifest["files"] if "files" in manifest else name.parts[0] in EARLIER_NAMES
        if ours or (path.is_dir() and not path.is_symlink()):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):  # the new model has a file of this name
            target = target.with_name(f"{target.name}.kept")
        path.rename(target)
