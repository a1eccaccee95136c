"""Data sets on the Hub: the URI, what is loaded, and every refusal in one line; through a Hub on this machine."""

import json
import os
import subprocess
import sys

import datasets
import pytest
from hub_server import MAIN, V1, HubServer

from cloud import options
from lorry.aws.submit import check, submit
from lorry.config import PairOptions, TrainConfig
from lorry.container import environment
from lorry.container import train as container
from lorry.data.hub_uri import HubUri, parse_hub_uri
from lorry.data.pairs import read_channel, read_splits
from lorry.errors import UserError

pytest_plugins = ("cloud",)


def table(label, count, query="q"):
    rows = [f"{query}{row // 2},{label} text {row},{row % 2}" for row in range(count)]
    return "\n".join(["query,product_title,label", *rows]).encode()


CONFIGS = b"""---
configs:
- config_name: us
  data_files: [{split: train, path: us.csv}, {split: test, path: us_test.csv}]
- config_name: es
  data_files: es.csv
---
"""
REPOSITORIES = {
    "shop/pairs": {
        MAIN: {"train.csv": table("new", 40), "validation.csv": table("new", 8, "v"), "test.csv": table("new", 6, "t")},
        V1: {"train.csv": table("old", 20), "test.csv": table("old", 4, "t")},
    },
    "shop/locales": {
        MAIN: {
            "README.md": CONFIGS,
            "us.csv": table("us", 12),
            "us_test.csv": table("us", 4, "t"),
            "es.csv": table("es", 2),
        }
    },
    "shop/gated": {MAIN: {"train.csv": table("gated", 4)}},
    "shop/expired": {MAIN: {"train.csv": table("expired", 4)}},
    "shop/mixed": {MAIN: {"train_1.csv": table("x", 4), "train_2.csv": b"a,b\n1,2\n"}},
    "shop/script": {MAIN: {"script.py": b"raise SystemExit('code of the data set was run')"}},
    "shop/empty": {MAIN: {"README.md": b"nothing yet"}},
}
ERRORS = {"shop/badtoken": (401, ""), "shop/busy": (429, ""), "shop/down": (503, ""), "shop/denied": (403, "GatedRepo")}
FILE_ERRORS = {"shop/gated": (403, "GatedRepo"), "shop/expired": (401, "")}
PROGRAM = """
import json, logging, sys
from lorry.config import TrainConfig
from lorry.data.pairs import read_splits
from lorry.errors import UserError
found = {}
for name, given in json.loads(sys.argv[1]).items():
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("lorry").handlers = [handler]
    logging.getLogger("lorry").setLevel(logging.INFO)
    try:
        splits = read_splits(TrainConfig(**given))
        pairs = {
            split: {"pairs": len(p), "text": p.texts[0].as_py(), "sources": p.health.sources, "print": p.fingerprint()}
            for split, p in splits.items()
        }
        found[name] = {"splits": pairs, "log": lines}
    except UserError as error:
        found[name] = {"error": str(error), "log": lines}
print(json.dumps(found))
"""


def asked(home, url, channels, **environment):
    """Return what `read_splits` gives, or says, for each of `channels`, in a process that believes `url` is the Hub."""
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(channels)]
    done = subprocess.run(command, env=os.environ | own | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def uri(rest):
    return {"train": f"hf://datasets/shop/{rest}"}


ONLINE = {
    name: uri(name)
    for name in (
        "pairs", "pairs@v1", f"pairs@{V1}", "pairs@v9", "pairs?split=test", "pairs?split=nope", "locales",
        "locales?config=us", "locales?config=fr", "gated", "nope", "badtoken", "busy", "down", "mixed", "script",
        "empty", "a..b", "denied", "expired",
    )
}  # fmt: skip
OTHERS = {"validation": "hf://datasets/shop/pairs", "test": "hf://datasets/shop/pairs"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hugging-face")


@pytest.fixture(scope="module")
def online(home):
    server = HubServer(REPOSITORIES, ERRORS, FILE_ERRORS)
    yield asked(home, server.url, ONLINE | {"all three": uri("pairs@v1") | OTHERS})
    server.shutdown()
    server.server_close()


def sizes(answer):
    return {name: split["pairs"] for name, split in answer["splits"].items()}


def test_the_splits_of_a_data_set_become_those_of_the_run(online):
    assert sizes(online["pairs"]) == {"train": 40, "validation": 8, "test": 6}
    assert online["pairs"]["splits"]["test"]["sources"] == ["hf://datasets/shop/pairs split test"]
    assert f"hf://datasets/shop/pairs: commit {MAIN}" in online["pairs"]["log"]


@pytest.mark.parametrize("revision", ["v1", V1])
def test_a_revision_is_another_data_set(online, revision):
    answer = online[f"pairs@{revision}"]
    assert sum(sizes(answer).values()) == 24
    assert answer["splits"]["train"]["text"].startswith("old text")
    assert answer["splits"]["test"]["sources"] == [f"hf://datasets/shop/pairs@{revision} split test"]
    assert f"hf://datasets/shop/pairs@{revision}: commit {V1}" in answer["log"]


def test_a_configuration_and_a_split_may_be_named(online):
    assert sum(sizes(online["locales?config=us"]).values()) == 16
    assert online["locales?config=us"]["splits"]["test"]["text"] == "us text 0"
    assert sum(sizes(online["pairs?split=test"]).values()) == 6  # training on the split test, as asked


def test_channels_may_be_different_data_sets(online):
    answer = online["all three"]
    assert sizes(answer) == {"train": 20, "validation": 8, "test": 6}
    assert answer["splits"]["validation"]["sources"] == ["hf://datasets/shop/pairs split validation"]
    assert "hf://datasets/shop/pairs@v1: reading split train; not reading test" in answer["log"]


def test_pairs_from_the_hub_are_those_of_the_file(online, tmp_path):
    (tmp_path / "train.csv").write_bytes(table("new", 40))
    (pairs,) = read_channel(tmp_path, PairOptions()).values()
    assert online["pairs"]["splits"]["train"]["print"] == pairs.fingerprint()


@pytest.mark.parametrize(
    ("name", "cause", "hint"),
    [
        ("pairs@v9", "shop/pairs has no revision v9", "https://huggingface.co/datasets/shop/pairs/commits"),
        ("pairs?split=nope", "has no split nope; it has train, validation, test", "Choose"),
        ("locales", "has several configurations: us, es", "'hf://datasets/shop/locales?config=us'"),
        ("locales?config=fr", "has no configuration fr, only us, es", "'hf://datasets/shop/locales?config=us'"),
        (
            "gated",
            "denies you access to the data set shop/gated",
            "on https://huggingface.co/datasets/shop/gated, then set HF_TOKEN",
        ),
        (
            "denied",
            "denies you access to the data set shop/denied",
            "on https://huggingface.co/datasets/shop/denied, then set HF_TOKEN",
        ),
        ("expired", "does not accept your token", "set HF_TOKEN, or run `hf auth login`"),
        ("nope", "no data set shop/nope, or it is private", "set HF_TOKEN, or run `hf auth login`"),
        ("badtoken", "does not accept your token", "set HF_TOKEN, or run `hf auth login`"),
        ("busy", "too many requests (429)", "Wait some minutes; for a higher limit, set HF_TOKEN"),
        ("down", "cannot serve shop/down now (503)", "Try again later, or load it where"),
        ("mixed", "cannot load hf://datasets/shop/mixed", "load_dataset"),
        ("script", "scripts are no longer supported", "load_dataset"),
        ("empty", "doesn't contain any data files", "load_dataset"),
        ("a..b", "shop/a..b is not a name that the Hub allows", "Check the name"),
    ],
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(online, name, cause, hint):
    said = online[name]["error"]
    assert cause in said
    assert hint in said
    assert "\n" not in said


def test_offline_the_cache_is_used_but_never_another_revision(online, home):
    channels = {name: uri(name) for name in ("pairs", f"pairs@{MAIN}", f"pairs@{V1}", "pairs@v1", "nope")}
    found = asked(home, "http://127.0.0.1:9", channels, HF_HUB_OFFLINE="1")
    assert [name for name in channels if "splits" in found[name]] == [
        "pairs",
        f"pairs@{V1}",
    ]  # the newest copy is of v1
    assert f"the cache has commit {V1} of shop/pairs, not {MAIN}" in found[f"pairs@{MAIN}"]["error"]
    assert "give the commit, or no revision" in found["pairs@v1"]["error"]
    assert "is not in the cache, and the Hub cannot be reached (HF_HUB_OFFLINE is set)" in found["nope"]["error"]
    assert "save it with save_to_disk, and give that folder" in found["nope"]["error"]


def test_without_a_network_the_error_comes_at_once(tmp_path):
    found = asked(tmp_path, "http://127.0.0.1:9", {"pairs": uri("pairs")})
    assert "the Hugging Face Hub cannot be reached for hf://datasets/shop/pairs" in found["pairs"]["error"]
    assert "HF_HUB_OFFLINE=1 to use a copy in the cache" in found["pairs"]["error"]


def test_what_is_asked_of_load_dataset(tmp_path, monkeypatch):
    """A data set that is really saved and loaded stands in for the Hub's; offline, so nothing is looked up before."""
    rows = {"query": ["a", "a"], "product_title": ["x", "y"], "label": [1, 0]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / MAIN)
    calls = []

    def load_dataset(*arguments, **named):
        calls.append((arguments, named))
        return datasets.load_from_disk(tmp_path / MAIN)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for rest in ("", "?config=us&split=train"):
        assert len(read_channel(f"hf://datasets/shop/pairs{rest}", PairOptions())["all"]) == 2
    with pytest.raises(UserError, match="the cache has commit train of shop/pairs, not refs/pr/3"):
        read_channel("hf://datasets/shop/pairs@refs/pr/3", PairOptions())
    assert calls == [
        (("hf://datasets/shop/pairs",), {"name": None, "revision": None}),
        (("hf://datasets/shop/pairs",), {"name": "us", "revision": None}),
        (("hf://datasets/shop/pairs",), {"name": None, "revision": "refs/pr/3"}),
    ]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("hf://datasets/shop/pairs", HubUri("shop/pairs")),
        ("hf://datasets/shop/pairs/", HubUri("shop/pairs")),
        ("hf://datasets/my-shop/pairs_1.0@v1.2", HubUri("my-shop/pairs_1.0", "v1.2")),
        ("hf://datasets/shop/pairs@refs/pr/3", HubUri("shop/pairs", "refs/pr/3")),
        ("hf://datasets/shop/pairs@refs/convert/parquet", HubUri("shop/pairs", "refs/convert/parquet")),
        ("hf://datasets/shop/pairs@my%2Fbranch?config=us", HubUri("shop/pairs", "my/branch", "us")),
        ("hf://datasets/shop/pairs?config=us&split=test", HubUri("shop/pairs", "", "us", "test")),
        ("hf://datasets/shop/pairs?split=test", HubUri("shop/pairs", "", "", "test")),
    ],
)
def test_the_uri(text, parsed):
    assert parse_hub_uri(text) == parsed
    assert parse_hub_uri(str(parsed).replace("my/branch", "my%2Fbranch")) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "hf://shop/pairs", "hf://models/shop/pairs", "hf://datasets/pairs", "hf://datasets/shop/pairs@",
        "hf://datasets/shop/pairs/train.csv", "hf://datasets/shop/pairs@v1/data", "hf://datasets/shop/pairs?spilt=x",
        "hf://datasets/shop/pairs?split=a&split=b", "hf://datasets/shop/pairs?train",
    ],
)  # fmt: skip
def test_another_uri_is_refused_with_the_form(text):
    with pytest.raises(UserError, match=r"OWNER/NAME\[@REVISION\]\[\?config=CONFIG&split=SPLIT\]") as error:
        read_splits(TrainConfig(train=text))
    assert repr(text) in error.value.cause


@pytest.mark.parametrize("way", ["argument", "variable", "hyperparameter"])
def test_a_job_needs_no_train_channel(tmp_path, way):
    given = "hf://datasets/shop/pairs?config=us"
    if way == "hyperparameter":
        (tmp_path / "input" / "config").mkdir(parents=True)
        (tmp_path / "input" / "config" / "hyperparameters.json").write_text(json.dumps({"train": given}))
    arguments = ["--train", given] if way == "argument" else []
    assert container.read_job(arguments, {"LORRY_TRAIN": given} if way == "variable" else {}, tmp_path).train == given


@pytest.mark.parametrize(
    ("channels", "network", "offline"),
    [({}, True, "1"), ({"train": "hf://datasets/shop/pairs"}, True, None), ({"test": "hf://x"}, True, None),
     ({"train": "hf://datasets/shop/pairs"}, False, "1")],
)  # fmt: skip
def test_a_local_model_does_not_put_the_hub_out_of_reach(monkeypatch, channels, network, offline):
    for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "set, so that it is put back afterwards")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(environment, "has_network", lambda: network)
    environment.set_library_environment(TrainConfig(pretrained_model="bundled", **channels))
    assert os.environ.get("HF_HUB_OFFLINE") == offline


def test_submit_hands_the_uri_to_the_job(cloud, calls):
    train, test = "hf://datasets/shop/pairs@v1?config=us", "hf://datasets/shop/other"
    submit(options(train=train, test=test), {"epochs": "2"})
    (sent,) = calls.of("CreateTrainingJob")
    assert sent["HyperParameters"] == {"epochs": "2", "train": train, "test": test}
    assert "InputDataConfig" not in sent  # SageMaker refuses an empty list
    submit(options(test=test), {})
    assert [channel["ChannelName"] for channel in calls.of("CreateTrainingJob")[1]["InputDataConfig"]] == ["train"]


def test_submit_refuses_what_the_job_could_not_load():
    with pytest.raises(UserError, match="cannot be downloaded under network_isolation"):
        check(options(train="hf://datasets/shop/pairs", network_isolation=True), {"pretrained_model": "bundled"})
    with pytest.raises(UserError, match="--train is 'hf://shop/pairs'"):
        check(options(train="hf://shop/pairs"), {})
