"""Embeddings from Amazon Bedrock: Titan and Cohere's models, each in its own words.

https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-embed-text.html
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-embed.html
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tenacity
from botocore import exceptions as aws

from lorry.aws.session import DENIED, THROTTLED, client, code, explain, session
from lorry.errors import UserError
from lorry.providers.endpoint import Answer, Limits, Side, as_matrix
from lorry.providers.names import RemoteName

BUSY = THROTTLED | {"ServiceUnavailableException", "ModelNotReadyException", "ServiceQuotaExceededException"}
TOKENS_HEADER = "x-amzn-bedrock-input-token-count"  # the models that do not count in the answer itself do it here


@dataclass(frozen=True)
class Family:
    """Models that are asked in the same words."""

    names: tuple[str, ...]
    """What the model's id has in it."""
    limits: Limits
    two_sided: bool
    dimensions: tuple[int, ...]
    """What may be asked for; empty: the model's own alone."""
    body: Callable[[list[str], Side, int | None], dict[str, Any]]
    """Makes a request of texts, their side and the dimensions."""
    rows: Callable[[dict[str, Any]], Any]
    """Takes the embeddings out of an answer."""


def _titan_v2(texts: list[str], _side: Side, dimensions: int | None) -> dict[str, Any]:
    return {"inputText": texts[0], "normalize": True} | ({"dimensions": dimensions} if dimensions else {})


def _titan_v1(texts: list[str], _side: Side, _dimensions: int | None) -> dict[str, Any]:
    return {"inputText": texts[0]}


def _cohere_v3(texts: list[str], side: Side, _dimensions: int | None) -> dict[str, Any]:
    return {"texts": texts, "input_type": f"search_{side}", "truncate": "END"}


def _cohere_v4(texts: list[str], side: Side, dimensions: int | None) -> dict[str, Any]:
    body = {"texts": texts, "input_type": f"search_{side}", "truncate": "RIGHT", "embedding_types": ["float"]}
    return body | ({"output_dimension": dimensions} if dimensions else {})


def _titan_rows(answer: dict[str, Any]) -> Any:
    return [answer.get("embedding")]


def _cohere_rows(answer: dict[str, Any]) -> Any:
    """Return the list of embeddings, which the fourth version may wrap by type."""
    rows = answer.get("embeddings")
    return rows.get("float") if isinstance(rows, dict) else rows


# Titan takes one text a request, of 8,192 tokens and 50,000 characters, and cuts nothing itself: two bytes a token are
# few. Cohere's third version takes 2,048 characters and cuts at 512 tokens, the fourth takes 128,000 tokens.
_ONE_TEXT = Limits(texts=1, request_bytes=16_000, text_characters=16_000, text_bytes=16_000, at_once=8)
FAMILIES = (
    Family(("titan-embed-text-v2",), _ONE_TEXT, False, (1024, 512, 256), _titan_v2, _titan_rows),
    Family(("titan-embed-text-v1", "titan-embed-g1-text"), _ONE_TEXT, False, (), _titan_v1, _titan_rows),
    Family(
        ("cohere.embed-english", "cohere.embed-multilingual"),
        Limits(texts=96, request_bytes=400_000, text_characters=2048, text_bytes=8192, at_once=4),
        True,
        (),
        _cohere_v3,
        _cohere_rows,
    ),
    Family(
        ("cohere.embed-v4",),
        Limits(texts=96, request_bytes=400_000, text_characters=128_000, text_bytes=256_000, at_once=4),
        True,
        (1536, 1024, 512, 256),
        _cohere_v4,
        _cohere_rows,
    ),
)


class BedrockEndpoint:
    """A model of Amazon Bedrock; see `Endpoint`.

    Args:
        name: The model: its id, or that of an inference profile.
        runtime: boto3's client of bedrock-runtime; None: one with the user's own credentials and region.

    Raises:
        UserError: The model is of no known family or lacks the dimensions, or there are no credentials or region.
    """

    url = ""

    def __init__(self, name: RemoteName, runtime: Any = None) -> None:
        self._name, self._family = name, _family(name)
        self.limits, self.two_sided = self._family.limits, self._family.two_sided
        self._runtime = runtime or client(session(), "bedrock-runtime", retries="adaptive")
        self.place = f"Amazon Bedrock in {self._runtime.meta.region_name}"

    def send(self, texts: list[str], side: Side) -> Answer:
        """Return the embeddings of texts; see `Endpoint.send`."""
        body = json.dumps(self._family.body(texts, side, self._name.dimensions), ensure_ascii=False)
        doing = f"embedding with {self._name.model}"
        try:
            answer, headers = self._invoke(body)
        except aws.ClientError as error:
            raise _explain(error, doing, self._name.model) from error
        except aws.BotoCoreError as error:
            raise explain(error, doing) from error
        counted = answer.get("inputTextTokenCount") or headers.get(TOKENS_HEADER, "")
        tokens = int(counted) if str(counted).isdecimal() else None
        return Answer(as_matrix(self._family.rows(answer), texts, self.place), tokens)

    def give_up(self) -> None:
        """Do nothing: boto3 waits by itself, and not for long."""

    @tenacity.retry(  # boto3 tries again until an answer begins, but not where it breaks off
        retry=tenacity.retry_if_exception_type((aws.ReadTimeoutError, aws.ResponseStreamingError)),
        stop=tenacity.stop_after_attempt(3),
        reraise=True,
    )
    def _invoke(self, body: str) -> tuple[dict[str, Any], dict[str, str]]:
        response = self._runtime.invoke_model(
            modelId=self._name.model, body=body.encode(), contentType="application/json", accept="application/json"
        )
        try:
            answer = json.loads(response["body"].read())
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UserError(f"{self.place}: the answer of {self._name.model} is no JSON object", "Try again.")
        return answer, response["ResponseMetadata"].get("HTTPHeaders", {})


def _family(name: RemoteName) -> Family:
    for family in FAMILIES:
        if any(part in name.model for part in family.names):
            if name.dimensions and name.dimensions not in family.dimensions:
                offered = ", ".join(map(str, family.dimensions)) or "no other number than its own"
                raise UserError(f"{name.text!r}: {name.dimensions} dimensions cannot be had", f"It has {offered}.")
            return family
    raise UserError(
        f"{name.text!r}: how to ask that model is not known",
        "Known are amazon.titan-embed-text-v2:0 and -v1, cohere.embed-english-v3, cohere.embed-multilingual-v3 and "
        "cohere.embed-v4:0, also as us.cohere.embed-v4:0 and the like.",
    )


def _explain(error: aws.ClientError, doing: str, model: str) -> UserError:
    """Return what Bedrock says as one line with the hint."""
    name = code(error)
    said = " ".join(str(error.response.get("Error", {}).get("Message", name)).split())[:300]
    if name in DENIED:
        return UserError(
            f"{doing}: AWS denies it: {said}",
            "Allow your user bedrock:InvokeModel on the model, and open the model for the account in the console.",
        )
    if name in BUSY:
        return UserError(
            f"{doing}: AWS throttles, and did not stop ({said})",
            "Try again later, or ask for a higher quota of the model in Service Quotas.",
        )
    if "on-demand throughput" in said:
        return UserError(f"{doing}: {said}", f"Give an inference profile of the model, e.g. bedrock:us.{model}.")
    if name == "ResourceNotFoundException" or "model identifier" in said:
        return UserError(
            f"{doing}: Bedrock does not know the model here: {said}",
            "Check its id and AWS_REGION; `aws bedrock list-foundation-models` lists the region's models.",
        )
    if name == "ValidationException":
        return UserError(f"{doing}: {said}", "The message is AWS's own; --max_length cuts texts shorter.")
    return explain(error, doing)
