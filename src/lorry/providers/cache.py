"""Embeddings that were paid for, in a file for each model: kept at every moment, checked when read.

A file is an SQLite database in WAL mode. A process may be killed at any moment, and several may use a file at once.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from lorry.errors import UserError

log = logging.getLogger("lorry")

WAIT = 60.0  # seconds for another process that writes to the same file


class VectorCache:
    """The embeddings of one model; a context manager, for one thread.

    Args:
        path: The file; it is made where it does not exist, and moved away where it is damaged.

    Raises:
        UserError: It can be neither read nor written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._writing():
            try:
                self._connection = _connect(path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._move_away(error)
                self._connection = _connect(path)

    def __enter__(self) -> VectorCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return the keys that have no embedding; a damaged one is left out and warned of."""
        keys = list(keys)
        with self._writing():
            try:
                return self._missing(keys)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._connection.close()
                self._move_away(error)
                self._connection = _connect(self.path)
                return keys

    def store(self, keys: Sequence[bytes], vectors_ND: np.ndarray) -> None:
        """Keep embeddings [n, width]: all of them or, where the process is killed meanwhile, none."""
        blobs = [vector.astype("<f4").tobytes() for vector in vectors_ND]
        rows = ((key, blob, zlib.crc32(blob)) for key, blob in zip(keys, blobs, strict=True))
        with self._writing(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def read(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the embeddings of keys that are there, [n, width] float32.

        Raises:
            UserError: They are of different widths.
        """
        out: np.ndarray | None = None
        for row, key in enumerate(keys):
            with self._writing():
                (blob,) = self._connection.execute("SELECT vector FROM vectors WHERE text = ?", (key,)).fetchone()
            vector = np.frombuffer(blob, "<f4")
            if out is None:
                out = np.empty((len(keys), len(vector)), np.float32)
            if len(vector) != out.shape[1]:
                raise UserError(
                    f"the model gave embeddings of {out.shape[1]} and of {len(vector)} numbers: {self.path} has both",
                    "Delete that file, and run it again.",
                )
            out[row] = vector
        return np.zeros((0, 0), np.float32) if out is None else out

    def _missing(self, keys: list[bytes]) -> list[bytes]:
        absent, damaged = [], []
        for key in keys:
            found = self._connection.execute("SELECT vector, checksum FROM vectors WHERE text = ?", (key,)).fetchone()
            if found is None:
                absent.append(key)
            elif not isinstance(found[0], bytes) or zlib.crc32(found[0]) != found[1]:
                damaged.append(key)
        if damaged:
            log.warning("%s: %d damaged embeddings are not used, and asked for again", self.path, len(damaged))
        return absent + damaged

    def _move_away(self, error: sqlite3.DatabaseError) -> None:
        log.warning("the cache of embeddings %s is damaged (%s): it is not used, and begun anew", self.path, error)
        self.path.replace(self.path.with_suffix(".damaged"))
        for ending in ("-wal", "-shm"):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{self.path} cannot be used: {error}",
                "Free some space, or set LORRY_CACHE to a folder on another disk.",
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB, checksum INTEGER)")
        connection.commit()
    except sqlite3.Error:
        connection.close()
        raise
    return connection
