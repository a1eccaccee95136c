"""`lorry evaluate --model openai:…` against a server that misbehaves as servers do."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from email.utils import formatdate

import numpy as np
import pytest
from embedding_server import WIDTH, embedding

from lorry.config import PairOptions
from lorry.data.pairs import read_channel
from lorry.evaluation import scoring
from lorry.providers import openai


@pytest.fixture
def patient(monkeypatch):
    """Wait a hundredth of what is waited for."""
    real = openai._backoff
    monkeypatch.setattr(openai, "_backoff", lambda state: real(state) / 100)


def expected_metrics(folder, dimensions=WIDTH):
    pairs = read_channel(folder, PairOptions())["all"]
    query_QD, text_TD = (
        np.stack([embedding(text)[:dimensions] for text in side.to_pylist()]) for side in (pairs.queries, pairs.texts)
    )
    query_QD /= np.linalg.norm(query_QD, axis=1, keepdims=True)
    text_TD /= np.linalg.norm(text_TD, axis=1, keepdims=True)
    return scoring.measure(pairs, (query_QD[pairs.query] * text_TD[pairs.text]).sum(1))


def test_the_figures_are_those_of_the_servers_embeddings(evaluate, server, shop, tiny_model):
    local = str(tiny_model("bert"))
    ended, found = evaluate(local, "openai:toy", "openai:toy?dimensions=8")
    assert ended.code == 0, ended.output
    models = found["splits"]["all"]["models"]
    assert list(models) == [local, "openai:toy", "openai:toy?dimensions=8"]
    assert models["openai:toy"] == pytest.approx(expected_metrics(shop), abs=1e-6)
    assert models["openai:toy?dimensions=8"] == pytest.approx(expected_metrics(shop, 8), abs=1e-6)
    assert models["openai:toy"]["roc_auc"] > 0.9
    rows = [line.split()[0] for line in ended.lines if line.startswith("openai:toy") and ": " not in line]
    assert rows == ["openai:toy", "openai:toy?dimensions=8"] * 2  # of judged pairs, and of search
    assert found["splits"]["all"]["search"]["models"]["openai:toy"]["recall@10"] > 0.5
    fields = {"model", "input", "encoding_format"}
    assert [set(body) - fields for body in server.requests] == [set(), set(), {"dimensions"}, {"dimensions"}]
    assert all(fields <= set(body) for body in server.requests)
    assert found["providers"]["openai:toy?dimensions=8"]["dimensions"] == 8


def test_it_is_said_before_anything_is_sent_what_leaves_the_machine(evaluate, server):
    ended, _ = evaluate("openai:toy?price=0.5")
    said = next(number for number, line in enumerate(ended.lines) if "leave this machine" in line)
    assert ended.lines[said].startswith("openai:toy?price=0.5: 70 queries and product texts leave this machine for ")
    assert server.url in ended.lines[said]
    assert "an estimate; $0.00027 at $0.5 a million" in ended.lines[said + 1]
    server.faults = [(400, {}, "{}")] * 100
    ended, found = evaluate("openai:toy-2")
    assert (ended.code, found) == (1, None)
    assert any("leave this machine" in line for line in ended.lines[:-1])


def test_what_fails_and_may_go_away_is_tried_again(evaluate, server, shop, patient):
    server.faults = [(429, {"Retry-After": "1"}, ""), (500, {}, "oops"), "drop", (503, {}, "{}"), (408, {}, "")]
    begin = time.monotonic()
    ended, found = evaluate("openai:toy")
    assert ended.code == 0, ended.output
    assert time.monotonic() - begin > 1  # as Retry-After asked for
    assert found["splits"]["all"]["models"]["openai:toy"] == pytest.approx(expected_metrics(shop), abs=1e-6)
    assert (len(server.asked), len(server.requests), found["providers"]["openai:toy"]["requests"]) == (7, 2, 2)


def test_a_date_in_retry_after_is_obeyed(evaluate, server, patient):
    server.faults = [(429, {"Retry-After": formatdate(time.time() + 2, usegmt=True)}, "")]
    begin = time.monotonic()
    assert evaluate("openai:toy")[0].code == 0
    assert 0.5 < time.monotonic() - begin < 8


def test_what_does_not_go_away_ends_the_run(evaluate, server, patient):
    server.faults = [(503, {}, '{"error": "overloaded"}')] * 100
    ended, found = evaluate("openai:toy")
    assert (ended.code, found) == (1, None)
    assert f"{server.url}: HTTP 503 overloaded, after {openai.TRIES} tries. Check" in ended.lines[-1]


def test_a_server_that_asks_for_hours_is_not_waited_for(evaluate, server):
    server.faults = [(429, {"Retry-After": "7200"}, '{"error": {"message": "come back tomorrow"}}')]
    ended, _ = evaluate("openai:toy")
    assert ended.code == 1
    assert "HTTP 429 come back tomorrow, after 1 try." in ended.lines[-1]


def test_a_server_that_takes_fewer_texts_at_once_gets_fewer(evaluate, server, shop):
    server.most = 10
    ended, found = evaluate("openai:toy")
    assert ended.code == 0, ended.output
    assert found["splits"]["all"]["models"]["openai:toy"] == pytest.approx(expected_metrics(shop), abs=1e-6)
    assert max(len(body["input"]) for body in server.requests) == 10
    assert len(server.asked) - len(server.requests) < 10  # it is found out once


def test_embeddings_may_come_as_base64(evaluate, server, shop):
    def encoded(answer):
        for item in answer["data"]:
            item["embedding"] = base64.b64encode(np.array(item["embedding"], "<f4").tobytes()).decode()
        return answer

    server.change = encoded
    _, found = evaluate("openai:toy")
    assert found["splits"]["all"]["models"]["openai:toy"] == pytest.approx(expected_metrics(shop), abs=1e-6)


def change(**items):
    def changed(answer):
        answer["data"][0].update(items)  # which is the last text
        return answer

    return changed


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda answer: answer | {"data": answer["data"][1:]}, "gave 9 embeddings for 10 texts"),
        (lambda answer: {"embeddings": [[1.0]]}, "gave no list of embeddings for 10 texts"),
        (lambda answer: [], "gave no list of embeddings for 10 texts"),
        (change(index=0), "gave no embedding for text 10 of 10 ('"),
        (change(embedding=[1.0, 2.0]), "gave 2 numbers for text 10 of 10 ('"),
        (change(embedding=[float("nan")] * WIDTH), "gave numbers that are not finite for text 10 of 10 ('"),
        (change(embedding=None), "gave no list of numbers for text 10 of 10 ('"),
        (change(embedding="@"), "gave no list of numbers for text 10 of 10 ('"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_as_it_should_be_is_refused(evaluate, server, broken, told):
    server.change = broken
    ended, found = evaluate("openai:toy")
    assert (ended.code, found) == (1, None)
    assert f"error: {server.url} {told}" in ended.lines[-1]


def test_a_server_that_speaks_no_json_is_refused(evaluate, server):
    server.faults = [(200, {}, "<html>Welcome</html>")]
    ended, _ = evaluate("openai:toy")
    assert "answers, but not with JSON: '<html>Welcome</html>'. Check --openai_url; it ends in /v1." in ended.lines[-1]


def test_a_redirect_is_not_followed(evaluate, server):
    server.faults = [(307, {"Location": "https://elsewhere.example/v1/embeddings"}, "")]
    ended, _ = evaluate("openai:toy")
    assert ended.code == 1
    assert "HTTP 307, and points to 'https://elsewhere.example/v1/embeddings'. Check --openai_url" in ended.lines[-1]


def test_a_model_that_is_not_there(evaluate):
    ended, found = evaluate("openai:none")
    assert (ended.code, found) == (1, None)
    assert "does not know the model none (HTTP 404 The model `none` does not exist). Check" in ended.lines[-1]


def test_used_up_credit_is_not_waited_for(evaluate, server):
    server.faults = [(429, {}, json.dumps({"error": {"message": "exceeded", "code": "insufficient_quota"}}))]
    ended, _ = evaluate("openai:toy")
    assert "HTTP 429 exceeded. Add credit" in ended.lines[-1]
    assert len(server.asked) == 1


def test_a_text_that_is_refused_is_named(evaluate, server, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.csv").write_text("query,text,label\nred lamp,lamp red,1\nred lamp,sofa,0\n")
    server.most = 0
    ended, _ = evaluate("openai:toy", data=tmp_path / "pairs")
    assert "refuses the text 'red lamp': HTTP 422 batch size 1 > maximum" in ended.lines[-1]
    assert len(server.asked) == 1


@pytest.mark.parametrize("key", ["", "wrong-key-123"])
def test_a_key_that_is_not_accepted(evaluate, server, monkeypatch, key):
    server.key = "right-key-456"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    ended, found = evaluate("openai:toy")
    assert (ended.code, found, len(server.asked)) == (1, None, 1)
    assert ("does not accept the key in OPENAI_API_KEY" if key else "asks for a key (HTTP 401)") in ended.lines[-1]
    assert "key-123" not in ended.output


def test_the_key_is_sent_and_never_told(evaluate, server, monkeypatch, cache):
    server.key = "right-key-456"
    monkeypatch.setenv("OPENAI_API_KEY", f" {server.key}\n")
    server.faults = [(418, {}, json.dumps({"error": {"message": f"no tea for {server.key}"}}))]
    ended, _ = evaluate("openai:toy")
    assert "HTTP 418 no tea for ….".rstrip(".") in ended.lines[-1]
    good, found = evaluate("openai:toy")
    assert good.code == 0, good.output
    kept = b"".join(path.read_bytes() for path in cache.iterdir())
    assert server.key not in ended.output + good.output + json.dumps(found)
    assert server.key.encode() not in kept


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        ("openai:toy", {"openai_url": "https://api.openai.com/v1"}, "openai.com/v1 asks for a key. Set OPENAI_API_KEY"),
        ("openai:toy", {"openai_url": "localhost:80"}, "openai_url is 'localhost:80', which is no web address. Give"),
        ("openai:toy", {"openai_url": "http://me:secret@host/v1"}, "has a user name or a password in it. Leave"),
        ("openai:", {}, "'openai:' names no model. Write e.g. openai:text-embedding-3-small."),
        ("openai:toy?dimension=8", {}, "'openai:toy?dimension=8' asks for 'dimension'. Did you mean dimensions?"),
        ("openai:toy?dimensions=1.5", {}, "dimensions is 1.5. Give a whole number"),
        ("openai:toy?price=cheap", {}, "price is 'cheap'. Give a number of 0 or more"),
        ("openai:toy", {"max_dollars": 1}, "but the price of openai:toy is not known. Leave out --max_dollars, or add"),
    ],
)  # fmt: skip
def test_refused_before_the_pairs_are_read(evaluate, server, tmp_path, model, options, told):
    ended, found = evaluate(model, **({"data": tmp_path / "nowhere"} | options))
    assert (ended.code, found, len(ended.lines), server.asked) == (1, None, 1, [])
    assert told in ended.output
    assert "secret" not in ended.output


def test_a_key_of_odd_characters_is_refused_and_not_told(evaluate, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-zażółć")
    ended, _ = evaluate("openai:toy")
    assert (ended.code, len(ended.lines), server.asked) == (1, 1, [])
    assert "OPENAI_API_KEY holds no key" in ended.output
    assert "sk-za" not in ended.output


def test_too_expensive_is_refused_before_the_first_request(evaluate, server):
    ended, found = evaluate("openai:toy?price=100000", max_dollars=1)
    assert (ended.code, found, server.asked) == (1, None, [])
    assert "the embeddings would cost about $" in ended.lines[-1]
    assert "more than max_dollars 1. Give fewer pairs or a higher --max_dollars. Nothing was sent." in ended.lines[-1]
    assert evaluate("openai:toy?price=1", max_dollars=1)[0].code == 0
    assert evaluate("openai:toy?price=100000", max_dollars=1)[0].code == 0  # all is in the cache


def test_a_run_that_turns_out_to_cost_more_is_ended(evaluate, server):
    server.change = lambda answer: answer | {"usage": {"prompt_tokens": 10_000_000, "total_tokens": 10_000_000}}
    ended, found = evaluate("openai:toy?price=1", max_dollars=2)
    assert (ended.code, found) == (1, None)
    assert "$10.00 are spent, more than max_dollars 2: the estimate was too low. Give" in ended.lines[-1]


def test_tokens_and_dollars_are_counted(evaluate, server):
    ended, found = evaluate("openai:toy?price=2000")
    about = found["providers"]["openai:toy?price=2000"]
    words = sum(len(text.split()) for text in server.texts)
    assert about["tokens"] == words
    assert about["dollars"] == pytest.approx(words * 2000 / 1e6)
    assert about["dollars_estimated"] == pytest.approx(about["tokens_estimated"] * 2000 / 1e6)
    assert about["tokens_estimated"] == sum(-(-len(text.encode()) // 4) for text in server.texts)
    assert (about["texts"], about["from_cache"], about["tokens_counted_by"]) == (70, 0, "provider")
    assert f"2 requests, {words} tokens as the provider counts them" in ended.output
    server.change = lambda answer: {"data": answer["data"]}
    about = evaluate("openai:toy-2")[1]["providers"]["openai:toy-2"]
    assert (about["tokens"], about["tokens_counted_by"]) == (about["tokens_estimated"], "estimate")
    assert (about["dollars"], about["dollars_per_million_tokens"]) == (None, None)


def test_without_a_providers_model_nothing_is_new(evaluate, tiny_model, cache):
    _, found = evaluate(str(tiny_model("bert")))
    assert found.keys() == {"splits"}
    assert not cache.exists()


def test_requirements_hold_for_a_providers_model(evaluate, tiny_model):
    ended, found = evaluate(str(tiny_model("bert")), "openai:toy", require="ndcg@10>=+0.001")
    assert (ended.code, ended.lines[-1]) == (0, "openai:toy meets --require: ndcg@10>=+0.001")
    ended, found = evaluate("openai:toy", str(tiny_model("bert")), require="ndcg@10>=+0.001")
    assert ended.code == 1
    assert found["providers"]["openai:toy"]["from_cache"] == 70
    assert "does not meet --require: ndcg@10 on all pairs is" in ended.lines[-1]


def test_a_long_text_is_cut_and_told(evaluate, server, tmp_path):
    (tmp_path / "pairs").mkdir()
    long = "żółty lamp " * 3000
    (tmp_path / "pairs" / "pairs.csv").write_text(f"query,text,label\nred lamp,{long},1\nred lamp,sofa,0\n")
    ended, found = evaluate("openai:toy", data=tmp_path / "pairs")
    assert ended.code == 0, ended.output
    assert openai.LIMITS.text_bytes - 4 < max(len(text.encode()) for text in server.texts) <= openai.LIMITS.text_bytes
    assert found["providers"]["openai:toy"]["cut"] == 1
    assert "openai:toy: 1 texts were longer than is sent, and cut" in ended.output
    evaluate("openai:toy", data=tmp_path / "pairs", max_length=10)
    assert max(len(text.encode()) for text in server.requests[-1]["input"]) <= 40


def test_a_second_run_asks_nothing(evaluate, server):
    first = evaluate("openai:toy")[1]
    asked = len(server.asked)
    ended, second = evaluate("openai:toy")
    assert (ended.code, len(server.asked)) == (0, asked)
    assert second["splits"] == first["splits"]
    assert second["providers"]["openai:toy"]["from_cache"] == 70
    assert "openai:toy: all 70 embeddings are in the cache, nothing is sent" in ended.lines
    evaluate("openai:toy?dimensions=8")
    evaluate("openai:toy-2")
    assert len(server.asked) == asked + 4  # other embeddings


def test_what_came_back_before_a_failure_is_kept(evaluate, server, tmp_path, shop_pairs):
    data = shop_pairs(tmp_path / "data", queries=80)
    server.faults = [None, None, (404, {}, ""), (404, {}, "")]
    ended, found = evaluate("openai:toy", data=data)
    assert (ended.code, found) == (1, None)
    assert any(line.endswith(" embeddings are kept for the next run") for line in ended.lines[:-1])
    assert len(server.texts) >= 80 + 96
    assert evaluate("openai:toy", data=data)[0].code == 0
    assert len(server.texts) == len(set(server.texts)) == 80 + 480


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, cache, server, shop_pairs):
    """It is killed when three requests of five are answered, and kept."""
    data = shop_pairs(tmp_path / "data", queries=80)
    options = ["--data", data, "--output", tmp_path / "m.json", "--openai_url", server.url]
    command = [sys.executable, "-m", "lorry", "evaluate", "--model", "openai:toy", *map(str, options)]
    server.pause = 1.0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    while len(server.requests) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [text for body in server.requests[:3] for text in body["input"]]
    time.sleep(2.5)  # the server answers the two others, though nobody hears it
    server.pause, server.requests[:] = 0.0, []
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert len(kept) >= 80 + 96 + 128
    assert len(server.texts) == 80 + 480 - len(kept)
    assert not set(server.texts) & set(kept)
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["splits"]["all"]["models"]["openai:toy"] == pytest.approx(expected_metrics(data), abs=1e-6)
