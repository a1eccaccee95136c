"""A cache of token files on disk: checked when read, never left half-written, bounded in size, its owner's alone.

An entry is a folder of three files: the tokens of all texts end to end, where each text begins, and the checksums of
both. It is built under another name and renamed when it is complete. Whoever reads or writes an entry holds a lock on
its token file: the kernel drops it with the process, so that what no process holds may be deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from lorry.caches import cache_folder
from lorry.outputs import OutputError, writing

log = logging.getLogger("lorry")

TOKENS, OFFSETS, CHECKSUMS = "tokens.bin", "offsets.npy", "checksums.json"
COMPLETE, BUILDING = "tokens-", "writing-"  # how the names of entries begin
# The cache may take so many bytes, and this share of its disk; entries in use may exceed both.
MAX_BYTES, MAX_SHARE = 10_000_000_000, 0.1
GRACE = 60  # seconds before a new entry without a lock counts as left behind: its writer may be about to take it


class StoredTokens(NamedTuple):
    """What an entry holds."""

    tokens: np.ndarray
    """[total] int32, memory-mapped."""
    offsets: np.ndarray
    """[n + 1] int64: text i is tokens[offsets[i]:offsets[i + 1]]."""


class TokenCache:
    """The entries in one folder.

    Args:
        folder: Of this cache alone; made where it does not exist. Default: this user's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder("tokens")

    def find(self, key: str) -> StoredTokens | None:
        """Return an entry, None where there is none or it is damaged; a damaged one is deleted."""
        entry = self.folder / f"{COMPLETE}{key}"
        try:
            found = _read(entry)
            os.utime(entry)  # the entry longest unused goes first
        except Exception as error:  # whatever is wrong with it: NumPy alone raises five kinds for a broken header
            if os.path.lexists(entry):
                said = " ".join(str(error).split())[:200]
                log.warning("the token cache %s is damaged (%s): tokenising again", entry, said)
                with writing(entry), suppress(FileNotFoundError):  # another process was quicker
                    self._remove(entry)
            return None
        return found

    def store(self, key: str, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> StoredTokens:
        """Write an entry and return it.

        Args:
            key: Names the entry.
            parts: Lengths and token ids (int32, end to end) of some texts at a time.

        Raises:
            OutputError: It cannot be written.
        """
        entry = self.folder / f"{COMPLETE}{key}"
        hint = "Free some space, or set LORRY_CACHE to a folder on another disk."
        with writing(self.folder, hint):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            with self._building() as new, (new / TOKENS).open("w+b") as file:
                _lock(file, fcntl.LOCK_EX)
                _write(new, file, parts)
                with suppress(OSError):  # another process was quicker: the same content
                    new.rename(entry)
                _lock(file, fcntl.LOCK_SH)
                found = self.find(key)
            self._make_room()
        if found is None:
            raise OutputError(f"{entry} was written, but cannot be read back", hint)
        return found

    @contextmanager
    def _building(self) -> Iterator[Path]:
        """Give a folder to build an entry in; what is left of it is deleted."""
        new = Path(tempfile.mkdtemp(dir=self.folder, prefix=BUILDING))
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _make_room(self) -> None:
        """Delete what killed writers left, and entries, the longest unused first, until the rest is within bounds."""
        with suppress(FileNotFoundError):  # another process deletes too
            for left in self.folder.glob(f"{BUILDING}*"):
                if time.time() - left.lstat().st_mtime > GRACE and not _in_use(left):
                    self._remove(left)
            sizes = {entry: _size(entry) for entry in self.folder.glob(f"{COMPLETE}*")}
            room = min(MAX_BYTES, MAX_SHARE * shutil.disk_usage(self.folder).total) - sum(sizes.values())
            for entry in sorted(sizes, key=lambda entry: entry.lstat().st_mtime):
                if room < 0 and not _in_use(entry):
                    self._remove(entry)
                    room += sizes[entry]

    def _remove(self, entry: Path) -> None:
        """Delete an entry, or whatever lies in its place; no other process ever sees a part of it."""
        doomed = self.folder / f"{BUILDING}{uuid.uuid4().hex}"
        entry.rename(doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink()


def _write(new: Path, tokens: IO[bytes], parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the three files of an entry; `tokens` is its open token file."""
    digest = hashlib.sha256()
    all_lengths = [np.zeros(1, np.int64)]
    for lengths, ids in parts:
        all_lengths.append(lengths)
        digest.update(ids.data)
        tokens.write(ids.data)
    tokens.flush()
    offsets = io.BytesIO()
    np.save(offsets, np.cumsum(np.concatenate(all_lengths)))
    (new / OFFSETS).write_bytes(offsets.getbuffer())
    checksums = {TOKENS: digest.hexdigest(), OFFSETS: hashlib.sha256(offsets.getbuffer()).hexdigest()}
    (new / CHECKSUMS).write_text(json.dumps(checksums), "utf-8")


def _read(entry: Path) -> StoredTokens:
    """Return what an entry holds.

    Raises:
        Exception: It is incomplete, or not as it was written.
    """
    for name in (TOKENS, OFFSETS, CHECKSUMS):
        if (entry / name).exists() and not (entry / name).is_file():  # a pipe would be waited for
            raise ValueError(f"{name} is no file")
    expected = json.loads((entry / CHECKSUMS).read_text("utf-8"))
    with (entry / TOKENS).open("rb") as file:
        _lock(file, fcntl.LOCK_SH)  # for as long as the tokens are mapped: mmap keeps the open file
        offsets = (entry / OFFSETS).read_bytes()
        found = {TOKENS: hashlib.file_digest(file, "sha256").hexdigest(), OFFSETS: hashlib.sha256(offsets).hexdigest()}
        if found != expected:
            raise ValueError("its content has changed")
        return StoredTokens(np.memmap(file, np.int32, "r"), np.load(io.BytesIO(offsets)))


def _lock(file: IO[bytes], kind: int) -> None:
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, kind)


def _in_use(entry: Path) -> bool:
    """Return whether a process, this one too, reads or writes an entry."""
    try:
        with (entry / TOKENS).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # locked, or on a file system without locks
        return True
    return False


def _size(entry: Path) -> int:
    return sum(path.lstat().st_size for path in entry.rglob("*"))
