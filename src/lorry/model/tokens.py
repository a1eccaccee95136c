"""Unique texts, tokenised once, in memory-mapped files.

Queries come first, product texts after them: one table, so that a batch encodes both in one forward pass. The files are
kept under a fingerprint of the texts and the tokenizer: a second run on the same data does not tokenise again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lorry.data.pairs import Pairs
from lorry.errors import UserError
from lorry.model.failures import refusing
from lorry.model.packing import TokenSequences, gather
from lorry.model.pretrained import PretrainedModel
from lorry.model.token_cache import TokenCache

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
    """Return the model's fast tokenizer; code that comes with it is never run.

    Raises:
        UserError: There is none.
    """
    from transformers import AutoTokenizer

    with refusing(f"the tokenizer of {base.name} cannot be loaded", "Check its tokenizer.json."):
        tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
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

    Raises:
        UserError: The tokenizer does not work or does not belong to the model, the maximum length leaves no room for a
            text, or the files cannot be written.
    """
    tokenizer = load_tokenizer(base)
    with refusing(f"the tokenizer of {base.name} does not work", "Check its tokenizer.json."):
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        _check_max_length(backend, base)
        backend.enable_truncation(base.max_length)
        settings = [base.max_length, base.query_prompt, base.text_prompt, base.lower_case]
        key = hashlib.sha256(json.dumps([backend.to_str(), settings]).encode())
    key.update(pairs.fingerprint().encode())
    name, cache = key.hexdigest()[:32], TokenCache(folder)
    found = cache.find(name)
    if found is None:
        found = cache.store(name, _encode(backend, _all_texts(pairs, base), base))
    else:
        _check_tokens(found.tokens, base)
    return TokenizedTexts(found.tokens, found.offsets, len(pairs.queries))


def _check_max_length(backend: Any, base: PretrainedModel) -> None:
    """Refuse a maximum length at which all texts would be equal: special tokens, and perhaps a part of the prompt."""
    prompts = base.query_prompt.rstrip(), base.text_prompt.rstrip()
    taken = max(len(backend.encode(prompt).ids) for prompt in prompts)
    if base.max_length <= taken:
        what = "special tokens and prompt" if any(prompts) else "special tokens"
        raise UserError(
            f"max_length is {base.max_length}, and the {what} of {base.name} alone take {taken} tokens",
            f"Give --max_length {taken + 1} or more, or take a model that allows more.",
        )


def _all_texts(pairs: Pairs, base: PretrainedModel) -> Iterator[list[str]]:
    for column, prompt in ((pairs.queries, base.query_prompt), (pairs.texts, base.text_prompt)):
        for start in range(0, len(column), CHUNK):
            batch = _strings(column.slice(start, CHUNK))
            batch = [prompt + text for text in batch] if prompt else batch
            yield [text.lower() for text in batch] if base.lower_case else batch


def _strings(column: pa.Array | pa.ChunkedArray) -> list[str]:
    strings: list[str] = column.to_pylist()
    return strings


def _encode(
    backend: Any, batches: Iterator[list[str]], base: PretrainedModel
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield lengths and token ids of each batch of texts."""
    for batch in batches:
        with refusing(f"the tokenizer of {base.name} does not work", "Check its tokenizer.json."):
            ids = [item.ids for item in backend.encode_batch_fast(batch)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        if not lengths.all():
            text = batch[int(lengths.argmin())]
            raise UserError(
                f"the tokenizer of {base.name} gives the text {text!r:.100} no tokens", "Remove or change that text."
            )
        tokens = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        _check_tokens(tokens, base)
        yield lengths, tokens.astype(np.int32)


def _check_tokens(tokens: np.ndarray, base: PretrainedModel) -> None:
    """Refuse tokens that the model has no embedding for: on a GPU they would end the process."""
    vocabulary = base.vocabulary or np.iinfo(np.int32).max
    if (highest := int(tokens.max())) >= vocabulary:
        raise UserError(
            f"the tokenizer of {base.name} gives token {highest:,}, and the model has {vocabulary:,} (vocab_size)",
            "Choose a model whose tokenizer is its own.",
        )
