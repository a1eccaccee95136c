"""Hand an object to other processes of this host through a file; its arrays are mapped there, not copied."""

from __future__ import annotations

import copyreg
import pickle
from pathlib import Path
from typing import Any

import numpy as np

ALIGNED = 64  # bytes: where arrays may begin


def save(value: Any, path: Path) -> None:
    """Write an object; arrays that are memory-mapped already are not copied but named."""
    arrays: list[pickle.PickleBuffer] = []
    with path.open("wb") as file:
        file.write(bytes(ALIGNED))
        pickler = pickle.Pickler(file, protocol=5, buffer_callback=arrays.append)
        pickler.dispatch_table = copyreg.dispatch_table | {np.memmap: _named}
        pickler.dump(value)
        end, places = file.tell(), []
        for array in arrays:
            file.write(bytes(-file.tell() % ALIGNED))
            places.append((file.tell(), array.raw().nbytes))
            file.write(array.raw())
        table = np.array([*places, (file.tell(), end)], np.int64)
        file.write(table.tobytes())
        file.seek(0)
        file.write(np.array([table.nbytes], np.int64).tobytes())


def load(path: Path) -> Any:
    """Return what `save` wrote; its arrays are read-only and stay in the file, which may be deleted."""
    whole = np.memmap(path, np.uint8, "r")
    size = int(whole[:8].view(np.int64)[0])
    *places, (_, end) = np.frombuffer(whole[len(whole) - size :].tobytes(), np.int64).reshape(-1, 2).tolist()
    arrays = [whole[start : start + length].data for start, length in places]
    return pickle.loads(whole[ALIGNED:end].data, buffers=arrays)


def _named(array: np.memmap[Any, Any]) -> Any:
    return np.memmap, (array.filename, array.dtype, "r", array.offset, array.shape)
