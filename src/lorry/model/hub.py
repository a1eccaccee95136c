"""Download a base model from the Hugging Face Hub; every way this can fail is one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorry.errors import UserError
from lorry.model.failures import first_words

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*", "2_Dense/*"]
SIGN_IN = "set HF_TOKEN, or run `hf auth login`"
WITHOUT_HUB = "give a folder, --pretrained_model bundled, or (on SageMaker) a channel named model"


def download(name: str) -> Path:
    """Return the folder of a model on the Hub, downloaded where the cache lacks it.

    With HF_HUB_OFFLINE=1, or where the Hub does not answer, the copy in the cache is used.

    Raises:
        UserError: There is no such model, access to it is denied, the Hub cannot be reached or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except HFValidationError as error:
        raise UserError(
            f"{name!r} is neither a folder nor a name that the Hub allows", f"Check it, or {WITHOUT_HUB}."
        ) from error
    except Exception as error:  # besides its own types the library lets those of its HTTP client through
        raise _refusal(name, error) from error


def _refusal(name: str, error: Exception) -> UserError:
    """Return what to do about an error of `snapshot_download`."""
    from huggingface_hub.errors import HfHubHTTPError

    # Where the cache has no copy either, the Hub's answer is the cause of another error.
    answers = [each for each in _causes(error) if isinstance(each, HfHubHTTPError)]
    return _answered(name, answers[0]) if answers else _unanswered(name, error)


def _answered(name: str, error: HfHubHTTPError) -> UserError:
    """Return what to do about an answer of the Hub that is an error."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status == 403:
        return UserError(
            f"the model {name} is gated, and you have no access",
            f"Ask for it on https://huggingface.co/{name}, then {SIGN_IN}.",
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"the model {name} has no branch main", f"Choose another model, or {WITHOUT_HUB}.")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"the Hub has no model {name}, or it is private",
            f"Check the name; if it is private, {SIGN_IN}; or {WITHOUT_HUB}.",
        )
    if status == 401:
        return UserError(f"the Hub does not accept your token for {name} (401)", f"Renew it: {SIGN_IN}.")
    if status == 429:
        return UserError(
            f"the Hub does not serve {name} now: too many requests (429)",
            f"Wait some minutes; for a higher limit, {SIGN_IN}; or {WITHOUT_HUB}.",
        )
    return UserError(f"the Hub cannot serve {name} now ({status})", f"Try again later, or {WITHOUT_HUB}.")


def _unanswered(name: str, error: Exception) -> UserError:
    """Return what to do where the Hub gave no answer, or its files could not be stored."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
        return UserError(
            f"{name} cannot be stored in {constants.HF_HUB_CACHE}: {error.strerror}",
            "Check free space and permissions there, or set HF_HOME to another folder.",
        )
    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    said = "" if isinstance(error, LocalEntryNotFoundError) else f": {first_words(error)}"
    return UserError(
        f"{name} is not in the cache, or not completely, and the Hub cannot be reached{offline}{said}",
        f"Check the name and the network, or {WITHOUT_HUB}.",
    )


def _causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and those that led to it."""
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
