"""Unique texts, tokenised once, in memory-mapped files.

Queries come first, product texts after them: one table, so that a batch encodes both in one forward pass. The files are
kept under a fingerprint of the texts and the tokenizer: a second run on the same data does not tokenise again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lorry.data.pairs import Pairs
from lorry.errors import UserError
from lorry.model.packing import TokenSequences, gather
from lorry.model.pretrained import PretrainedModel

log = logging.getLogger("lorry")

CHUNK = 20_000  # texts tokenised at once: enough for every core, small in memory


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of all texts of a split: its queries, then its product texts."""

    tokens: np.ndarray
    """[total] int32, memory-mapped."""
    offsets: np.ndarray
    """[n + 1] int64: text i is tokens[offsets[i]:offsets[i + 1]]."""
    queries: int
    """Texts before this index are queries."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """[n] tokens of each text."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the tokens of each text of these rows."""
        lengths: np.ndarray = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def take(self, rows: np.ndarray) -> TokenSequences:
        """Return the texts of these rows."""
        return gather(self.tokens, self.offsets[rows], self.lengths_of(rows))


def load_tokenizer(base: PretrainedModel) -> Any:
    """Return the model's fast tokenizer.

    Raises:
        UserError: There is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"the tokenizer of {base.name} cannot be loaded: {first}", "Check its tokenizer.json."
        ) from None
    if not any((base.folder / file).is_file() for file in tokenizer.vocab_files_names.values()):
        # without them transformers makes an empty tokenizer and does not say so
        raise UserError(f"{base.name} has no tokenizer files", "Save its tokenizer next to the weights.")
    if not tokenizer.is_fast:
        raise UserError(f"{base.name} has no fast tokenizer", "Convert it to tokenizer.json first.")
    return tokenizer


def tokenize(pairs: Pairs, base: PretrainedModel, folder: Path | None = None) -> TokenizedTexts:
    """Tokenise the unique queries and texts of `pairs`, or find them in the cache.

    Args:
        pairs: The judged pairs.
        base: Gives tokenizer, prompts and maximum length.
        folder: Where the files are kept; default: this user's cache folder.
    """
    folder = folder or _cache_folder()
    tokenizer = load_tokenizer(base)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(base.max_length)
    backend.no_padding()
    settings = [base.max_length, base.query_prompt, base.text_prompt, base.lower_case]
    key = hashlib.sha256(json.dumps([backend.to_str(), settings]).encode())
    key.update(pairs.fingerprint().encode())
    done = folder / f"tokens-{key.hexdigest()[:32]}"
    if not (done / "offsets.npy").is_file():
        _write(done, backend, _all_texts(pairs, base))
        log.debug("tokens written to %s", done)
    offsets = np.load(done / "offsets.npy")
    tokens = np.memmap(done / "tokens.bin", np.int32, "r")
    return TokenizedTexts(tokens, offsets, len(pairs.queries))


def _cache_folder() -> Path:
    """Return LORRY_CACHE, else a folder for this user in the system's temporary folder."""
    given = os.environ.get("LORRY_CACHE")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"lorry-{os.getuid()}"


def _all_texts(pairs: Pairs, base: PretrainedModel) -> Iterator[list[str]]:
    for column, prompt in ((pairs.queries, base.query_prompt), (pairs.texts, base.text_prompt)):
        for start in range(0, len(column), CHUNK):
            batch = _strings(column.slice(start, CHUNK))
            batch = [prompt + text for text in batch] if prompt else batch
            yield [text.lower() for text in batch] if base.lower_case else batch


def _strings(column: pa.Array | pa.ChunkedArray) -> list[str]:
    strings: list[str] = column.to_pylist()
    return strings


def _write(done: Path, backend: Any, batches: Iterator[list[str]]) -> None:
    """Write tokens.bin and offsets.npy into a temporary folder, then rename it to `done`."""
    done.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=done.parent, prefix="writing-") as name:
        new = Path(name) / "tokens"
        new.mkdir()
        lengths = [np.zeros(1, np.int64)]
        with (new / "tokens.bin").open("wb") as out:
            for batch in batches:
                encoded = backend.encode_batch_fast(batch)
                ids = [item.ids for item in encoded]
                lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
                np.fromiter(chain.from_iterable(ids), np.int32, int(lengths[-1].sum())).tofile(out)
        np.save(new / "offsets.npy", np.cumsum(np.concatenate(lengths)))
        try:
            new.rename(done)
        except OSError:
            if not (done / "offsets.npy").is_file():  # else another process was quicker: the same files
                raise
