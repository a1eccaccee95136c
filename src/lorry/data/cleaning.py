"""Clean texts: no HTML tags, no entities, no control characters, single spaces."""

from __future__ import annotations

import html
import re

import pyarrow as pa
import pyarrow.compute as pc

# Arrow uses RE2 regular expressions. A tag starts with a letter, / or ! after <, so that "2 < 3" is kept.
TAG = r"<!--[\s\S]*?-->|<[A-Za-z/!][^<>]*>"
ENTITY = r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);"
CONTROL = r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\x{ad}\x{200b}\x{feff}]"  # with soft hyphen, zero-width space, BOM
SPACE = r"[\s\x0b\x1c-\x1f\x{85}\p{Z}]"
SPACES = rf"{SPACE}{{2,}}|[\t-\r\x1c-\x1f\x{{85}}]|[^\P{{Z}} ]"  # any white space but a single plain space
NEEDS_CLEANING = rf"^$|{TAG}|{ENTITY}|{CONTROL}|{SPACES}|^ | $"


def clean(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the cleaned texts [N] (large_string); empty ones become null.

    Tags become a space, then entities are unescaped once, control characters are removed, and white space is collapsed.
    """
    return pa.chunked_array([_clean(chunk) for chunk in texts.chunks], pa.large_string())


def _clean(texts: pa.Array) -> pa.Array:
    dirty = pc.fill_null(pc.match_substring_regex(texts, NEEDS_CLEANING), False)
    if not pc.any(dirty, min_count=0).as_py():
        return texts
    some = pc.replace_substring_regex(texts.filter(dirty), TAG, " ")
    some = _unescape(some)
    some = pc.replace_substring_regex(some, CONTROL, "")
    some = pc.utf8_trim(pc.replace_substring_regex(some, SPACES, " "), " ")
    some = pc.if_else(pc.equal(some, ""), pa.scalar(None, pa.large_string()), some)
    return pc.replace_with_mask(texts, dirty, some)


def _unescape(texts: pa.Array) -> pa.Array:
    """Unescape entities that end in a semicolon ("?a=1&copy=2" is kept); only texts that have one go through Python."""
    has = pc.match_substring_regex(texts, ENTITY)
    some = [re.sub(ENTITY, lambda found: html.unescape(found[0]), text) for text in texts.filter(has).to_pylist()]
    return pc.replace_with_mask(texts, has, pa.array(some, pa.large_string()))
