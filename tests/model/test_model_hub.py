"""Base models on the Hub: downloaded, or refused in one line that says what to do; through a Hub on this machine."""

import json
import os
import subprocess
import sys

import pytest
from model_hub_server import ModelHubServer

ERRORS = {
    "shop/private": (401, {"X-Error-Code": "RepoNotFound"}),
    "shop/badtoken": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "shop/forbidden": (403, {}),
    "shop/busy": (429, {}),
    "shop/down": (503, {}),
    "shop/norevision": (404, {"X-Error-Code": "RevisionNotFound"}),
}
FILE_ERRORS = {"shop/gated": (401, {"X-Error-Code": "GatedRepo"}), "shop/asked": (403, {"X-Error-Code": "GatedRepo"})}
PROGRAM = """
import json, sys
from lorry.errors import UserError
from lorry.model.pretrained import find_pretrained
found = {}
for name in sys.argv[1:]:
    try:
        base = find_pretrained(name)
        found[name] = sorted(path.name for path in base.folder.iterdir())
    except UserError as error:
        found[name] = str(error)
print(json.dumps(found))
"""
WITHOUT_HUB = "give a folder, --pretrained_model bundled, or (on SageMaker) a channel named model."
SIGN_IN = "set HF_TOKEN, or run `hf auth login`"


def asked(home, url, *names, **environment):
    """Return the files that `find_pretrained` gets, or what it says, in a process that believes `url` is the Hub."""
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def server(tiny_model):
    files = {path.name: path.read_bytes() for path in tiny_model("bert", plain=True).iterdir()}
    models = {
        "shop/base": files | {"pytorch_model.bin": b"", "logo.png": b""},
        "shop/gated": files,
        "shop/asked": files,
    }
    server = ModelHubServer(models, ERRORS, FILE_ERRORS)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hugging-face")


@pytest.fixture(scope="module")
def online(home, server):
    return asked(home, server.url, "shop/base", "shop/nothing", "shop/gated", "shop/asked", *ERRORS)


def test_a_model_is_downloaded_without_what_is_not_read(online):
    assert online["shop/base"] == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", ["shop/gated", "shop/asked", "shop/forbidden"])
def test_a_gated_model(online, name):
    assert online[name] == (
        f"the model {name} is gated, and you have no access. "
        f"Ask for it on https://huggingface.co/{name}, then {SIGN_IN}."
    )


@pytest.mark.parametrize("name", ["shop/nothing", "shop/private"])
def test_a_model_that_is_not_there_or_private(online, name):
    assert online[name] == (
        f"the Hub has no model {name}, or it is private. Check the name; if it is private, {SIGN_IN}; or {WITHOUT_HUB}"
    )


def test_a_token_that_is_not_accepted(online):
    assert online["shop/badtoken"] == (
        f"the Hub does not accept your token for shop/badtoken (401). Renew it: {SIGN_IN}."
    )


def test_too_many_requests(online):
    assert online["shop/busy"] == (
        "the Hub does not serve shop/busy now: too many requests (429). "
        f"Wait some minutes; for a higher limit, {SIGN_IN}; or {WITHOUT_HUB}"
    )


def test_a_hub_that_is_down(online):
    assert online["shop/down"] == f"the Hub cannot serve shop/down now (503). Try again later, or {WITHOUT_HUB}"


def test_a_model_without_a_main_branch(online):
    assert online["shop/norevision"] == (
        f"the model shop/norevision has no branch main. Choose another model, or {WITHOUT_HUB}"
    )


def test_no_network(tmp_path):
    assert asked(tmp_path, "http://127.0.0.1:9", "shop/base")["shop/base"] == (
        "shop/base is not in the cache, or not completely, and the Hub cannot be reached. "
        f"Check the name and the network, or {WITHOUT_HUB}"
    )


def test_offline(online, home, server, tmp_path):
    """What was downloaded is found in the cache."""
    found = asked(home, server.url, "shop/base", "shop/other", HF_HUB_OFFLINE="1")
    assert found["shop/base"] == online["shop/base"]
    assert found["shop/other"] == (
        "shop/other is not in the cache, or not completely, and the Hub cannot be reached (HF_HUB_OFFLINE is set). "
        f"Check the name and the network, or {WITHOUT_HUB}"
    )


def test_a_copy_in_the_cache_serves_while_the_hub_does_not(online, home):
    down = ModelHubServer({}, {"shop/base": (503, {})}, {})
    assert asked(home, down.url, "shop/base")["shop/base"] == online["shop/base"]
    down.shutdown()
    down.server_close()


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    said = asked(tmp_path / "file", server.url, "shop/base")["shop/base"]
    assert said.startswith(f"shop/base cannot be stored in {tmp_path / 'file' / 'hub'}: Not a directory.")
    assert "set HF_HOME to another folder" in said
