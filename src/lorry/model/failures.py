"""Errors of the libraries that read a model: one line for the user, whatever their type.

A model's files come from anywhere and may be wrong in any way; what transformers, tokenizers and safetensors then raise
is of many types, and not documented.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorry.errors import UserError

LONGEST = 200  # characters of a library's message that are shown


@contextmanager
def refusing(cause: str, hint: str) -> Iterator[None]:
    """Turn an error inside the block into a `UserError` of this cause and hint; the library's own words follow.

    Raises:
        UserError: Something was raised in the block.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # tokenizers, written in Rust, panics on some files: that is an error too, but no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{cause}: {first_words(error)}", hint) from error
        raise


def first_words(error: BaseException) -> str:
    """Return the beginning of an error's message, its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
