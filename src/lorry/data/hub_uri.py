"""The URI of a data set on the Hugging Face Hub: hf://datasets/OWNER/NAME[@REVISION][?config=CONFIG&split=SPLIT].

The part before the question mark is the Hub's own form. This module imports nothing heavy, so that the container can
look at a URI before any large library is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode

from lorry.errors import UserError

FORM = "hf://datasets/OWNER/NAME[@REVISION][?config=CONFIG&split=SPLIT]"
# A revision has no slash (write %2F), except in the Hub's own names for pull requests and conversions.
PATTERN = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/?@]+))?/?(?:\?(?P<query>.*))?"
)


@dataclass(frozen=True)
class HubUri:
    """A data set on the Hub.

    Attributes:
        repository: OWNER/NAME.
        revision: Branch, tag or commit; "" for the newest of the main branch.
        config: Name of the configuration (the Hub also calls it subset); "" for the default one.
        split: Name of the one split to read; "" for all of them.
    """

    repository: str
    revision: str = ""
    config: str = ""
    split: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        query = urlencode({key: value for key in ("config", "split") if (value := getattr(self, key))})
        return f"hf://datasets/{self.repository}{revision}{'?' if query else ''}{query}"


def is_hub_uri(text: str) -> bool:
    """Tell whether `text` is a URI of the Hub, valid or not, rather than a path."""
    return text.startswith("hf://")


def parse_hub_uri(text: str) -> HubUri:
    """Read the URI of a data set on the Hub.

    Raises:
        UserError: It is not of the form above.
    """
    found = PATTERN.fullmatch(text)
    query = parse_qsl((found and found["query"]) or "", keep_blank_values=True)
    if not found or len(dict(query)) < len(query) or not dict(query).keys() <= {"config", "split"}:
        raise UserError(
            f"{text!r} is not of the form {FORM}",
            "Put config and split behind the question mark; a path inside the data set cannot be given.",
        )
    return HubUri(found["repository"], unquote(found["revision"] or ""), **dict(query))
