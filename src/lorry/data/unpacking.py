"""The bytes of a file, unpacked where it is compressed, and what to say of one that cannot be read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from lorry.archives import MAX_RATIO, SMALL_BYTES
from lorry.data.wording import plain
from lorry.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 4 << 20  # read at once


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked, some megabytes at a time.

    Raises:
        UserError: A small file unpacks to a very large one, as one made to fill a disk does.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        packed = COMPRESSIONS.get(path.suffix.lower())
        stream: Any = pa.CompressedInputStream(file, packed) if packed else file
        size = path.stat().st_size
        limit, total = max(SMALL_BYTES, MAX_RATIO * size), 0
        while block := stream.read(BLOCK_BYTES):
            total += len(block)
            if packed and total > limit:
                raise UserError(
                    f"{path} unpacks to more than {limit:,} bytes, from {size:,}",
                    "If it is what you expect, unpack it first.",
                )
            yield block


@contextmanager
def open_seekable(path: Path) -> Iterator[Any]:
    """Open a file that must be read from its end, which a compressed stream cannot be."""
    if path.suffix.lower() not in COMPRESSIONS:
        with pa.OSFile(str(path)) as stream:
            yield stream
        return
    with tempfile.TemporaryFile(buffering=0) as unpacked:
        for block in read_blocks(path):
            try:
                unpacked.write(block)
            except OSError as error:
                raise UserError(f"cannot unpack {path}: {error}", "Set TMPDIR to a folder with more space.") from error
        yield unpacked


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system and Arrow say about a bad file into what the user can do about it.

    Raises:
        UserError: In place of their errors.
    """
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read {path}: permission denied", "Allow this user to read it.") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = " ".join((getattr(error, "strerror", "") or str(error) or type(error).__name__).split())
        hint = "Is the file complete, and in the format that its name says?"
        raise UserError(f"cannot read {path}: {plain(said[:200])}", hint) from error
