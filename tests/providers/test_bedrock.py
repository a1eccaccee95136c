"""`bedrock:` models: what is asked is what botocore's own service model and the models' documents take."""

import io
import json

import boto3
import numpy as np
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber
from embedding_server import embedding

from cloud import REGION
from lorry.errors import UserError
from lorry.providers.bedrock import BedrockEndpoint
from lorry.providers.names import read_name

pytest_plugins = ("cloud",)
TITAN, COHERE = "amazon.titan-embed-text-v2:0", "cohere.embed-multilingual-v3"


@pytest.fixture
def stubbed(nobody):
    """Return `make(name) -> endpoint, stubber, expect`; `expect(body, answer, **headers)` is a call to be made."""

    def make(text):
        name = read_name(f"bedrock:{text}")
        runtime = boto3.client("bedrock-runtime")
        stubber = Stubber(runtime)
        stubber.activate()

        def expect(body, answer, **headers):
            raw = json.dumps(answer).encode()
            stubber.add_response(
                "invoke_model",
                {
                    "body": StreamingBody(io.BytesIO(raw), len(raw)),
                    "contentType": "application/json",
                    "ResponseMetadata": {"HTTPHeaders": headers},
                },
                {
                    "modelId": name.model,
                    "body": json.dumps(body, ensure_ascii=False).encode(),
                    "contentType": "application/json",
                    "accept": "application/json",
                },
            )

        return BedrockEndpoint(name, runtime), stubber, expect

    return make


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("amazon.titan-embed-text-v2:0", {"inputText": "red żółty", "normalize": True}),
        (
            "amazon.titan-embed-text-v2:0?dimensions=256",
            {"inputText": "red żółty", "normalize": True, "dimensions": 256},
        ),
        ("amazon.titan-embed-text-v1", {"inputText": "red żółty"}),
        ("amazon.titan-embed-g1-text-02", {"inputText": "red żółty"}),
    ],
)
def test_titan_gets_one_text(stubbed, model, body):
    endpoint, stubber, expect = stubbed(model)
    expect(body, {"embedding": [0.5, -0.25], "inputTextTokenCount": 4})
    found = endpoint.send(["red żółty"], "query")
    stubber.assert_no_pending_responses()
    assert (found.vectors_ND.tolist(), found.vectors_ND.dtype, found.tokens) == ([[0.5, -0.25]], np.float32, 4)
    assert (endpoint.limits.texts, endpoint.two_sided) == (1, False)


@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.parametrize(
    ("model", "options", "wrap"),
    [
        ("cohere.embed-multilingual-v3", {"truncate": "END"}, lambda rows: rows),
        ("cohere.embed-english-v3", {"truncate": "END"}, lambda rows: rows),
        ("us.cohere.embed-v4:0", {"truncate": "RIGHT", "embedding_types": ["float"]}, lambda rows: {"float": rows}),
        ("cohere.embed-v4:0", {"truncate": "RIGHT", "embedding_types": ["float"]}, lambda rows: rows),
        (
            "cohere.embed-v4:0?dimensions=512",
            {"truncate": "RIGHT", "embedding_types": ["float"], "output_dimension": 512},
            lambda rows: {"float": rows},
        ),
    ],
)
def test_cohere_is_told_which_side_a_text_is_of(stubbed, model, options, wrap, side):
    endpoint, stubber, expect = stubbed(model)
    expect(
        {"texts": ["red", "blue"], "input_type": f"search_{side}", **options},
        {"embeddings": wrap([[1, 0], [0, 1]]), "id": "1", "texts": ["red", "blue"]},
        **{"x-amzn-bedrock-input-token-count": "6"},
    )
    found = endpoint.send(["red", "blue"], side)
    stubber.assert_no_pending_responses()
    assert (found.vectors_ND.tolist(), found.tokens) == ([[1, 0], [0, 1]], 6)
    assert (endpoint.limits.texts, endpoint.two_sided) == (96, True)


def test_cohere_that_does_not_count_leaves_tokens_unknown(stubbed):
    endpoint, _, expect = stubbed(COHERE)
    expect({"texts": ["red"], "input_type": "search_query", "truncate": "END"}, {"embeddings": [[1.0]]})
    assert endpoint.send(["red"], "query").tokens is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"embeddings": [[1.0]]}, "gave 1 embeddings for 2 texts"),
        ({"embeddings": [[1.0], [1.0, 2.0]]}, "gave 2 numbers for text 2 of 2 ('blue')"),
        ({"message": "no"}, "gave no list of embeddings for 2 texts"),
        (["no"], "the answer of cohere.embed-multilingual-v3 is no JSON object"),
    ],
)
def test_an_answer_that_is_not_as_it_should_be_is_refused(stubbed, answer, told):
    endpoint, _, expect = stubbed(COHERE)
    expect({"texts": ["red", "blue"], "input_type": "search_query", "truncate": "END"}, answer)
    with pytest.raises(UserError, match=f"Amazon Bedrock in {REGION}") as caught:
        endpoint.send(["red", "blue"], "query")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message", "told", "hint"),
    [
        (
            "AccessDeniedException",
            "You don't have access",
            "AWS denies it: You don't have access",
            "bedrock:InvokeModel",
        ),
        ("ResourceNotFoundException", "no such", "does not know the model here: no such", "AWS_REGION"),
        ("ValidationException", "The provided model identifier is invalid.", "does not know the model", "AWS_REGION"),
        (
            "ValidationException",
            "Invocation of model ID with on-demand throughput isn't supported.",
            "on-demand throughput isn't supported",
            f"bedrock:us.{TITAN}",
        ),
        ("ValidationException", "Too many input tokens.", "Too many input tokens", "--max_length"),
        ("ThrottlingException", "Too many requests", "AWS throttles, and did not stop", "Try again later"),
        ("ServiceQuotaExceededException", "Too many tokens", "AWS throttles, and did not stop", "Try again later"),
        ("ExpiredTokenException", "old", "the AWS credentials have expired", "aws sso login"),
        ("UnrecognizedClientException", "who?", "AWS does not know these credentials", "aws configure"),
    ],
)
def test_what_bedrock_refuses_is_one_line(stubbed, code, message, told, hint):
    endpoint, stubber, _ = stubbed(TITAN)
    stubber.add_client_error("invoke_model", code, message, 400)
    with pytest.raises(UserError) as caught:
        endpoint.send(["red"], "query")
    assert told in caught.value.cause
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("bedrock:amazon.nova-pro-v1:0", "how to ask that model is not known. Known are amazon.titan-embed-text-v2:0"),
        (f"bedrock:{TITAN}?dimensions=300", "300 dimensions cannot be had. It has 1024, 512, 256."),
        (f"bedrock:{COHERE}?dimensions=256", "256 dimensions cannot be had. It has no other number than its own."),
        ("bedrock:", "'bedrock:' names no model. Write e.g. bedrock:amazon.titan-embed-text-v2:0."),
    ],
)
def test_refused_before_the_pairs_are_read(evaluate, nobody, tmp_path, model, told):
    ended, found = evaluate(model, data=tmp_path / "nowhere")
    assert (ended.code, found, len(ended.lines)) == (1, None, 1)
    assert told in ended.output


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "no AWS credentials"),
        (("AWS_DEFAULT_REGION",), "no AWS region. Set AWS_REGION, run `aws configure`"),
    ],
)
def test_without_credentials_or_region(evaluate, nobody, monkeypatch, variables, told):
    for name in variables:
        monkeypatch.delenv(name)
    ended, found = evaluate(f"bedrock:{TITAN}")
    assert (ended.code, found, len(ended.lines)) == (1, None, 1)
    assert told in ended.output


@pytest.fixture
def bedrock(server, nobody, monkeypatch):
    """Let boto3 ask the server of the tests."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url.removesuffix("/v1"))
    return server


def throttled(message="Too many requests"):
    return 429, {"x-amzn-ErrorType": "ThrottlingException"}, json.dumps({"message": message})


def test_models_of_bedrock_beside_ours(evaluate, bedrock, tiny_model):
    names = [str(tiny_model("bert")), f"bedrock:{TITAN}", f"bedrock:{COHERE}", "openai:toy"]
    ended, found = evaluate(*names)
    assert ended.code == 0, ended.output
    models = found["splits"]["all"]["models"]
    assert list(models) == names
    assert models[f"bedrock:{TITAN}"] == models[f"bedrock:{COHERE}"] == models["openai:toy"]  # the same embeddings
    titan = [body for body in bedrock.requests if body["model"] == TITAN]
    assert len(titan) == 70
    queries, documents = [body for body in bedrock.requests if body["model"] == COHERE]
    assert [queries["input_type"], documents["input_type"]] == ["search_query", "search_document"]
    assert [len(queries["texts"]), len(documents["texts"])] == [10, 60]
    about = found["providers"][f"bedrock:{TITAN}"]
    assert (about["requests"], about["tokens"], about["dollars_per_million_tokens"]) == (70, 210, 0.02)
    assert about["dollars"] == pytest.approx(210 * 0.02 / 1e6)
    assert about["place"] == f"Amazon Bedrock in {REGION}"
    assert f"70 queries and product texts leave this machine for Amazon Bedrock in {REGION}" in ended.output
    asked = len(bedrock.asked)
    assert evaluate(*names)[1]["splits"] == found["splits"]
    assert len(bedrock.asked) == asked


def test_a_text_that_is_a_query_and_a_product_is_embedded_as_both_by_cohere_alone(evaluate, bedrock, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.csv").write_text("query,text,label\nred lamp,red lamp,1\nred lamp,sofa,0\n")
    evaluate(f"bedrock:{COHERE}", f"bedrock:{TITAN}", data=tmp_path / "pairs")
    cohere = [(body["input_type"], body["texts"]) for body in bedrock.requests if body["model"] == COHERE]
    assert cohere == [("search_query", ["red lamp"]), ("search_document", ["red lamp", "sofa"])]
    titan = [body["inputText"] for body in bedrock.requests if body["model"] == TITAN]
    assert sorted(titan) == ["red lamp", "sofa"]


def test_bedrock_that_throttles_or_fails_is_asked_again(evaluate, bedrock, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.csv").write_text("query,text,label\nred lamp,lamp,1\nred lamp,sofa,0\n")
    bedrock.faults = [throttled(), (500, {}, "")]
    ended, _ = evaluate(f"bedrock:{TITAN}", data=tmp_path / "pairs")
    assert ended.code == 0, ended.output
    assert (len(bedrock.asked), len(bedrock.requests)) == (5, 3)


def test_what_bedrock_costs_is_held_to_the_limit(evaluate, bedrock):
    ended, found = evaluate(f"bedrock:{TITAN}", f"bedrock:{COHERE}", max_dollars=1e-5)
    assert (ended.code, found, bedrock.asked) == (1, None, [])
    assert "more than max_dollars 1e-05" in ended.lines[-1]
    assert "at $0.02 a million (price from November 2026)" in ended.output


def test_cohere_gets_no_more_characters_than_it_takes(evaluate, bedrock, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.csv").write_text(f"query,text,label\nred lamp,{'żółty ' * 1000},1\nred lamp,sofa,0\n")
    _, found = evaluate(f"bedrock:{COHERE}", data=tmp_path / "pairs")
    assert max(len(text) for body in bedrock.requests for text in body["texts"]) == 2048
    assert found["providers"][f"bedrock:{COHERE}"]["cut"] == 1


def test_the_server_of_the_tests_answers_as_the_documents_say():
    assert embedding("red lamp") == pytest.approx(embedding("red") + embedding("lamp"))
