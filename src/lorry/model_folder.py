"""The folder of the model: an old model is replaced by a whole new one, and nothing of anybody else's is touched.

A model is built inside the model folder, in `.lorry-new`, so that everything happens on one disk, whether the folder is
a mount, a symbolic link or the current directory. Once it is complete it is renamed to `.lorry-ready`; from then on
every step is a rename that can be repeated, and the next run finishes what a killed one had begun.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from lorry.errors import UserError
from lorry.outputs import write_json, writing

BUILDING, READY, REPLACED = TEMPORARY = (".lorry-new", ".lorry-ready", ".lorry-old")

MANIFEST = "lorry.json"
"""Lists, under `files`, what Lorry wrote: nothing else in the folder is ever deleted."""

REFUSED = "REFUSED.txt"
"""Says, in a model that was kept aside, why it was."""

# What versions of Lorry without such a list wrote.
EARLIER_NAMES = {
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt", "vocab.json", "merges.txt", "modules.json", "1_Pooling", "2_Normalize", "README.md", "adapter",
    "config_sentence_transformers.json", "sentence_bert_config.json", MANIFEST,
}  # fmt: skip


def check_model_dir(folder: Path) -> None:
    """Check that a model can be put into `folder` without harm to anything there; changes nothing.

    Raises:
        UserError: It holds something, but no model of Lorry's.
    """
    names = _names(folder)
    if not names or (folder / READY).is_dir() or _manifest(folder) is not None:
        return
    seen = f"its {MANIFEST} is none of Lorry's" if MANIFEST in names else ", ".join(sorted(names)[:3])
    raise UserError(
        f"{folder} is not empty and holds no model of Lorry's ({seen})", "Give an empty or new folder as --model_dir."
    )


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


def keep_aside(folder: Path, place: Path, reason: str) -> Path:
    """Move the model that `staging` holds to `place`, with the reason in REFUSED.txt, and return where it is now.

    It replaces a model that was kept so before; where there is anything else, it gets another name beside it.

    Raises:
        OutputError: It cannot be moved.
    """
    part, replaced = (place.with_name(f".{place.name}.{ending}") for ending in ("part", "old"))
    with writing(place):
        for leftover in filter(os.path.lexists, (part, replaced)):  # of a killed run
            shutil.rmtree(leftover)
        (folder / REFUSED).write_text(f"{reason}\n", "utf-8")
        _complete(folder)
        try:
            shutil.move(folder, part)  # to another disk it is a copy, and takes time
            if _was_kept_aside(place):
                place.rename(replaced)
            kept = part.rename(_free(place))
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return kept


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


def _was_kept_aside(folder: Path) -> bool:
    """Return whether a folder holds a model that `keep_aside` put there, and nothing of anybody else's."""
    manifest = None if folder.is_symlink() else _manifest(folder)
    listed = set(manifest.get("files", [])) if manifest else set()
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    return REFUSED in listed and found <= listed


def _install(folder: Path) -> None:
    """Put the model in READY in place of an earlier one; can be killed and called again at any point."""
    ready, replaced = folder / READY, folder / REPLACED
    replaced.mkdir(exist_ok=True)
    for new in sorted(ready.iterdir()):  # what is still here is not in place yet
        _set_aside(folder / new.name, replaced)
        new.rename(folder / new.name)
    for name in _manifest_names(replaced) - _manifest_names(folder):  # what the new model does not have
        if not os.path.lexists(replaced / name):  # else a killed run has set it aside, and moved others' files back
            _set_aside(folder / name, replaced)
    _keep_others(folder, replaced)
    ready.rmdir()
    shutil.rmtree(replaced)


def _set_aside(path: Path, replaced: Path) -> None:
    if os.path.lexists(path):
        path.rename(replaced / path.name)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Return what `lorry.json` says, None where there is none or it is none of Lorry's."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict):
        return None
    files = manifest.get("files", [])
    return manifest if isinstance(files, list) and all(map(_is_inside, files)) else None


def _is_inside(name: Any) -> bool:
    """Return whether a name in the manifest is that of a file in the model folder: what it names may be moved."""
    if not isinstance(name, str):
        return False
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and path.parts[0] not in TEMPORARY


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
        parent = folder
        for part in name.parts[:-1]:
            parent = parent / part
            while os.path.lexists(parent) and not parent.is_dir():  # the new model has a file of that name
                parent = parent.with_name(f"{parent.name}.kept")
            parent.mkdir(exist_ok=True)
        path.rename(_free(parent / name.name))


def _free(path: Path) -> Path:
    """Return the path, or `NAME.kept` and so on where there is something already."""
    names = chain([path.name, f"{path.name}.kept"], (f"{path.name}.kept{number}" for number in count(2)))
    return next(free for free in map(path.with_name, names) if not os.path.lexists(free))
