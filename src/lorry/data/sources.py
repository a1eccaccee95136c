"""The tables of a channel: the files of a folder, a saved data set, or a data set on the Hugging Face Hub."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorry.data.files import FileSource, file_format, list_files
from lorry.data.hub import load_from_hub
from lorry.data.hub_uri import HubUri, is_hub_uri, parse_hub_uri
from lorry.data.saved import JSON_FILES, DatasetSource, is_saved, open_saved, saved_splits
from lorry.data.unpacking import reading
from lorry.errors import UserError
from lorry.names import SPLITS

log = logging.getLogger("lorry")

Source = FileSource | DatasetSource

OTHER_NAMES = {
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "testing": "test",
}
"""Other names of splits, in lower case."""


@dataclass(frozen=True)
class Sources:
    """What a channel consists of.

    Attributes:
        tables: Its files, its data set, or the splits of that.
        unused: Why a file is not read, by its name.
    """

    tables: list[Source]
    unused: dict[str, str] = field(default_factory=dict)


def find_sources(location: str, names: Collection[str], purpose: str) -> Sources:
    """Return the tables of a channel.

    Of a data set that has several splits, only those asked for are read. A data set with a single split is one table,
    whatever the name of the split; but training does not take what is meant for validation or test.

    Args:
        location: A folder, a file, or the URI of a data set on the Hub.
        names: Which of "train", "validation" and "test" to read from a data set that has several splits.
        purpose: The one of `names` that the channel is given as, and that must exist; "" where any of them will do.

    Raises:
        UserError: There is nothing to read, a data set is damaged or cannot be loaded, or it lacks the split.
    """
    if is_hub_uri(location):
        return Sources(_from_hub(location, parse_hub_uri(location), names, purpose))
    folder = Path(location)
    with reading(folder):
        saved = is_saved(folder)
    if not saved:
        files, unused = list_files(folder)
        return Sources([FileSource(path) for path in files], unused)
    _check_unmixed(folder)
    name = folder.absolute().name
    places = {split: str(folder / split) for split in saved_splits(folder)}
    if not places:
        return Sources([DatasetSource(open_saved(folder), name, "")])
    chosen = _choose(location, places, names, purpose)
    return Sources(
        [DatasetSource(open_saved(folder / split), f"{name} split {split}", use) for split, use in chosen.items()]
    )


def _from_hub(location: str, uri: HubUri, names: Collection[str], purpose: str) -> list[Source]:
    loaded = load_from_hub(uri)
    places = {split: str(replace(uri, split=split)) for split in loaded}
    if uri.split and uri.split not in loaded:
        raise UserError(f"{uri.repository} has no split {uri.split}; it has {', '.join(loaded)}", "Choose one of them.")
    chosen = {uri.split: ""} if uri.split else _choose(location, places, names, purpose)
    name = replace(uri, split="")
    return [DatasetSource(loaded[split], f"{name} split {split}", use) for split, use in chosen.items()]


def _choose(location: str, places: Mapping[str, str], names: Collection[str], purpose: str) -> dict[str, str]:
    """Return the splits to read and what each is used for ("train", "validation", "test"; "" for a lone split).

    Args:
        location: The data set.
        places: Its splits, and how the user would name each of them alone.
        names: As in `find_sources`.
        purpose: As in `find_sources`.
    """
    uses = {split: OTHER_NAMES.get(split.lower(), split.lower()) for split in places}
    if len(uses) == 1 and not (purpose == "train" and set(uses.values()) & {"validation", "test"}):
        return dict.fromkeys(uses, "")
    chosen: dict[str, str] = {}
    for use in SPLITS:
        named = [split for split in uses if uses[split] == use]
        if use in names and named:
            chosen[use if use in named else named[0]] = use  # "validation" before "dev"
    if not chosen or (purpose and purpose not in chosen.values()):
        raise UserError(
            f"{location} has no split {purpose or ' or '.join(SPLITS)}; it has {', '.join(places)}",
            f"Name one split, as in '{next(iter(places.values()))}', or save the judged pairs, each with its product "
            f"text, as split {purpose or 'train'}.",
        )
    if others := [split for split in places if split not in chosen]:
        log.info("%s: reading split %s; not reading %s", location, ", ".join(chosen), ", ".join(others))
    return chosen


def _check_unmixed(folder: Path) -> None:
    """Refuse a saved data set with other tables beside it: it is not clear which of them are meant."""
    others = sorted(path.name for path in folder.iterdir() if file_format(path) and path.name not in JSON_FILES)
    if others:
        raise UserError(
            f"{folder} holds a data set saved with save_to_disk and also {', '.join(others[:6])}",
            "Keep them in separate folders.",
        )
