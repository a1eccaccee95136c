"""Load a data set from the Hugging Face Hub with `datasets.load_dataset`; every way this can fail is one line.

No code of a data set is ever run: `datasets` 5 reads data files only. Downloads are kept in its own cache (HF_HOME).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorry.data.hub_uri import HubUri
from lorry.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub.errors import HfHubHTTPError

log = logging.getLogger("lorry")

TIMEOUT = 20  # seconds for the first answer of the Hub
SIGN_IN = "set HF_TOKEN, or run `hf auth login`"
WITHOUT_HUB = "load it where there is a network, save it with save_to_disk, and give that folder"


def load_from_hub(uri: HubUri) -> Mapping[str, Dataset]:
    """Return the splits of a data set on the Hub, downloaded where the cache lacks them, memory-mapped.

    The revision is first turned into a commit, which the log names and which is then loaded, so it is known what was
    read. With HF_HUB_OFFLINE=1 the copy in the cache is used.

    Raises:
        UserError: The Hub cannot be reached or denies access; there is no such data set, revision or configuration; or
            its files cannot be read.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    offline = datasets.config.HF_HUB_OFFLINE
    commit = uri.revision if offline else _find_commit(uri)
    try:
        splits: Mapping[str, Dataset] = datasets.load_dataset(
            _path(uri), name=uri.config or None, revision=commit or None
        )
    except Exception as error:  # besides OSError, ValueError and RuntimeError these libraries raise types of their own
        raise _load_error(uri, commit, error) from error
    if offline and uri.revision:
        _check_cached(uri, splits)
    return splits


def _path(uri: HubUri) -> str:
    return f"hf://datasets/{uri.repository}"  # without hf:// a local folder OWNER/NAME would be read instead


def _find_commit(uri: HubUri) -> str:
    """Return the hash of the commit that the revision stands for."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        commit = HfApi().dataset_info(uri.repository, revision=uri.revision or None, timeout=TIMEOUT).sha or ""
    except HfHubHTTPError as error:
        raise _refusal(uri, error) from error
    except HFValidationError as error:
        raise UserError(f"{uri.repository} is not a name that the Hub allows", "Check the name.") from error
    except Exception as error:  # no answer; the HTTP library, and its types, differ between versions of huggingface_hub
        raise UserError(
            f"the Hugging Face Hub cannot be reached for {uri}: {_first_words(error)}",
            f"Check the network; set HF_HUB_OFFLINE=1 to use a copy in the cache; or {WITHOUT_HUB}.",
        ) from error
    log.info("%s: commit %s", uri, commit)
    return commit


def _refusal(uri: HubUri, error: HfHubHTTPError) -> UserError:
    """Return what to do about an answer of the Hub that is an error."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name, status = uri.repository, error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"the data set {name} has no revision {uri.revision}",
            f"Give a branch, tag or commit of {_page(uri)}/commits.",
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return _no_access(uri)
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"the Hub has no data set {name}, or it is private", f"Check the name; if it is private, {SIGN_IN}."
        )
    if status == 401:
        return UserError(f"the Hub does not accept your token for {name} (401)", f"Renew it: {SIGN_IN}.")
    if status == 429:
        return UserError(
            f"the Hub does not serve {name} now: too many requests (429)",
            f"Wait some minutes; for a higher limit, {SIGN_IN}; or {WITHOUT_HUB}.",
        )
    return UserError(f"the Hub cannot serve {name} now ({status})", f"Try again later, or {WITHOUT_HUB}.")


def _load_error(uri: HubUri, commit: str, error: Exception) -> UserError:
    """Return what to do about an error of `load_dataset`."""
    import datasets

    if answer := _http_error(error):
        return _refusal(uri, answer)
    said = _first_words(error)
    if "gated dataset" in said:  # `datasets` hides the original error
        return _no_access(uri)
    if isinstance(error, ConnectionError):
        offline = " (HF_HUB_OFFLINE is set)" if datasets.config.HF_HUB_OFFLINE else ""
        return UserError(
            f"{uri} is not in the cache, and the Hub cannot be reached{offline}", f"To go on, {WITHOUT_HUB}."
        )
    configs = _config_names(uri, commit) if isinstance(error, ValueError) else []
    if configs and uri.config not in configs:
        wrong = f"no configuration {uri.config}, only" if uri.config else "several configurations:"
        return UserError(
            f"the data set {uri.repository} has {wrong} {', '.join(configs)}",
            f"Choose one, as in '{replace(uri, config=configs[0])}'.",
        )
    cause = f": {_first_words(error.__cause__)}" if error.__cause__ else ""
    return UserError(f"cannot load {uri}: {said}{cause}", "`datasets.load_dataset` must be able to load it.")


def _http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """Return the answer of the Hub that led to an error, if one did: `datasets` may wrap it twice."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    while error is not None:
        if isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _no_access(uri: HubUri) -> UserError:
    return UserError(
        f"the Hub denies you access to the data set {uri.repository}",
        f"If it is gated, ask for access on {_page(uri)}, then {SIGN_IN}.",
    )


def _page(uri: HubUri) -> str:
    return f"https://huggingface.co/datasets/{uri.repository}"


def _config_names(uri: HubUri, commit: str) -> list[str]:
    """Return the configurations of a data set; none if they cannot be found out."""
    import datasets

    try:
        return list(datasets.get_dataset_config_names(_path(uri), revision=commit or None))
    except Exception:  # the error that led here is the one to show
        return []


def _check_cached(uri: HubUri, splits: Mapping[str, Dataset]) -> None:
    """Refuse another revision than the one asked for: offline, `datasets` takes the newest copy in the cache."""
    folders = {Path(file["filename"]).parent.name for dataset in splits.values() for file in dataset.cache_files}
    if folders != {uri.revision}:  # a folder of the cache is named after its commit
        raise UserError(
            f"the cache has commit {', '.join(sorted(folders))} of {uri.repository}, not {uri.revision}",
            "Without the Hub a branch or tag cannot be looked up: give the commit, or no revision.",
        )


def _first_words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"
