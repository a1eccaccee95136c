"""What a run writes: its folders are checked before it begins and kept for it alone, no file is left half-written."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorry.config import TrainConfig
from lorry.errors import UserError


class OutputError(UserError):
    """A result could not be written."""


@contextmanager
def writing(path: Path, hint: str = "Check free space and permissions there.") -> Iterator[None]:
    """Turn an error of the disk, or of a library that reports one in its own type, into an `OutputError`."""
    from safetensors import SafetensorError

    try:
        yield
    except UnicodeError as error:
        raise OutputError(f"{path} cannot be written: its name or its text is not UTF-8", hint) from error
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OutputError(f"{path} cannot be written: {reason}", hint) from error


def check_apart(config: TrainConfig) -> None:
    """Check that no folder of a run lies in another one's way.

    Raises:
        UserError: Something that the run reads, or writes elsewhere, lies in `model_dir`; or results would lie among
            the pairs or the checkpoints.
    """
    model_dir = Path(config.model_dir).resolve()
    channels = ("train", "validation", "test", "probe")
    for name in (*channels, "output_data_dir", "checkpoint_dir", "pretrained_model"):
        given = getattr(config, name)
        if name == "pretrained_model" and not Path(given).is_dir():
            continue
        if given and "://" not in given and Path(given).resolve().is_relative_to(model_dir):
            raise UserError(
                f"{name} {given} lies in model_dir {config.model_dir}, where the new model goes",
                f"Give a folder outside it as --{name}, or another --model_dir.",
            )
    output = Path(config.output_data_dir).resolve()
    for name in channels:
        given = getattr(config, name)
        if given and "://" not in given and output in _places(Path(given).resolve()):
            raise UserError(f"output_data_dir is the folder of the {name} pairs", "Give another --output_data_dir.")
    if config.checkpoint_dir and Path(config.checkpoint_dir).resolve() == output:
        raise UserError(
            f"output_data_dir and checkpoint_dir are the same folder, {config.output_data_dir}",
            "Give another --checkpoint_dir.",
        )


def _places(pairs: Path) -> set[Path]:
    """Return the folders of a channel, which may be a file: results there could be written over the pairs."""
    return {pairs, pairs.parent} if pairs.is_file() else {pairs}


def check_results(folder: Path) -> None:
    """Check that results written to `folder` replace nothing but earlier ones; changes nothing.

    Raises:
        UserError: There is a file of somebody else's under the name of one of ours.
    """
    for name, is_ours in _RESULTS.items():
        if (folder / name).exists() and not _holds(folder / name, is_ours):
            raise UserError(
                f"{folder / name} exists and was not written by Lorry",
                "Move it away, or give another --output_data_dir.",
            )


def check_output_file(path: Path, kind: str) -> None:
    """Check that a result can be written to `path` and replaces nothing but an earlier one.

    Args:
        path: What --output names.
        kind: Name of such a result in a run's folder: metrics.json, report.html.

    Raises:
        UserError: It cannot, or it would replace a file of somebody else's.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder", f"Give a file as --output, e.g. {kind}.")
    check_writable(path.parent, "--output")
    if path.exists() and not _holds(path, _RESULTS[kind]):
        raise UserError(f"{path} exists and was not written by Lorry", "Give another file as --output.")


def _holds(path: Path, is_ours: Callable[[str], bool]) -> bool:
    try:
        return path.is_file() and is_ours(path.read_text("utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # of another form, or no JSON
        return False


def _are_metrics(text: str) -> bool:
    splits = json.loads(text)["splits"]
    return bool(splits) and all({"pairs", "queries", "bm25"} <= block.keys() for block in splits.values())


def _is_log(text: str) -> bool:
    line = text.partition("\n")[0]  # none where a run was stopped before its first
    return not line or {"step", "epoch"} <= json.loads(line).keys()


def _is_report(text: str) -> bool:
    return "Lorry" in text


def _is_stored(text: str) -> bool:
    return bool({"format", "command", "fingerprints"} <= json.loads(text).keys())


_RESULTS = {
    "metrics.json": _are_metrics,
    "training.jsonl": _is_log,
    "report.html": _is_report,
    "report.json": _is_stored,
}


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
        if isinstance(error, FileExistsError) and (link := _broken_link(folder)):
            raise UserError(
                f"{link} is a symbolic link to {link.readlink()}, which does not exist",
                f"Make that folder, or give another {option}.",
            ) from None
        raise UserError(
            f"{folder} cannot be written: {error.strerror}", f"Give another {option}, or change its permissions."
        ) from None


def _broken_link(path: Path) -> Path | None:
    """Return what on the way to `path` is a symbolic link that leads nowhere."""
    return next((link for link in (path, *path.parents) if link.is_symlink() and not link.exists()), None)


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
