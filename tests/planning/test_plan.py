"""`lorry plan`: counts that a real run agrees with, work counted by hand, prices, mistakes, and nothing left behind."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from command import lorry
from lorry.hardware import choose_precision
from lorry.instances import INSTANCES, PRICES_FROM
from lorry.logs import duration
from lorry.model import shared_embedding
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import find_pretrained
from lorry.planning import cost
from lorry.planning.cost import Tokens
from lorry.planning.plan import prices
from test_cli import assert_one_line, rows


def number(pattern, text):
    """Return the number that the one group of `pattern` finds."""
    found = re.search(pattern, text)
    assert found, text
    return float(found[1].replace(",", ""))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, shop_pairs):
    """Return (folder, options of a short run of two epochs)."""
    folder = tmp_path_factory.mktemp("plan")
    options = {"train": shop_pairs(folder / "train"), "test": shop_pairs(folder / "test", queries=20, seed=1)}
    return folder, options | {"pretrained_model": tiny_model("bert"), "batch_size": 25, "epochs": 2}


@pytest.fixture(scope="module")
def planned(place):
    folder, options = place
    before = sorted(folder.rglob("*"))
    ended = lorry("plan", **options)
    assert ended.code == 0, ended.output
    assert sorted(folder.rglob("*")) == before  # no model, no report, no folder for them
    return ended.output


def test_steps_and_tokens_are_those_of_the_real_run(place, planned):
    folder, options = place
    ended = lorry("train", **options, model_dir=folder / "model", output_data_dir=folder / "output")
    assert ended.code == 0, ended.output
    training = json.loads((folder / "output" / "metrics.json").read_text())["training"]
    assert number(r"steps +([\d,]+)", planned) == training["steps"]
    assert number(r"tokens +([\d,]+) in training", planned) == training["tokens"]


RECIPES = {
    "default": {},
    "a share that is given": {"interpolation": 1},
    "mined negatives": {"hard_negatives": 6},
    "queries alone": {"train_side": "query"},
    "standardised": {"standardize": "center", "search_products": 0},
    "both": {"train_side": "query", "hard_negatives": 6, "interpolation": 1},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_tokens_of_evaluation_are_what_a_real_run_encodes_beside_its_steps(place, recipe, monkeypatch):
    folder, options = place
    changes = RECIPES[recipe]
    encoded = []

    def counting(encoder, texts, *rest, side="both"):
        lengths = {"both": texts.lengths, "query": texts.lengths[: texts.queries]}.get(
            side, texts.lengths[texts.queries :]
        )
        encoded.append(int(lengths.sum()))
        return embed_all(encoder, texts, *rest, side=side)

    monkeypatch.setattr(shared_embedding, "embed_all", counting)
    ended = lorry("train", **options | changes, model_dir=folder / recipe, output_data_dir=folder / "output")
    assert ended.code == 0, ended.output
    monkeypatch.undo()
    planned = lorry("plan", **options | changes).output
    assert number(r"([\d,]+) in evaluation", planned) == sum(encoded)


def test_the_plan_names_memory_time_here_and_a_price_for_every_instance(planned):
    assert 0.1 < number(r"memory +([\d.]+) GB", planned) < 100
    precision = choose_precision("auto", torch.device("cpu"))
    assert re.search(rf"time here +\d.*: training \d.*, evaluation \d.* \(CPU, 1 threads, {precision}\)", planned)
    for instance in INSTANCES:
        assert number(rf"{re.escape(instance.name)} .*\$([\d.]+)", planned) > 0
    assert "Lorry was not timed on these GPUs" in planned
    assert PRICES_FROM in planned


@pytest.mark.parametrize("batch_size", [1000, 3])
def test_any_number_of_steps_can_be_planned(batch_size, place):
    _, options = place
    ended = lorry("plan", **options | {"batch_size": batch_size})
    assert ended.code == 0, ended.output
    assert number(r"steps +([\d,]+)", ended.output) % 2 == 0


def test_a_model_that_cannot_be_packed_is_planned_too(place, tiny_model):
    _, options = place
    ended = lorry("plan", **options | {"pretrained_model": tiny_model("deberta-v2"), "lora_dropout": 0.1})
    assert ended.code == 0, ended.output


def encoder_of(folder, rank=0):
    encoder = Encoder(find_pretrained(str(folder)), "fp32", torch.device("cpu"))
    if rank:
        encoder.add_lora(rank=rank, alpha=16, dropout=0, targets="", seed=0)
    return encoder


def test_the_products_of_a_known_model_counted_by_hand(tiny_model):
    products = cost.cost_of(encoder_of(tiny_model("bert"), rank=8).model)
    # two layers of query, key, value, output (32 x 32) and the two of the feed-forward network (32 x 64)
    assert products.frozen == 2 * (4 * 32 * 32 + 2 * 32 * 64)
    # of rank 8, on all of them: as many rows of the input's width and columns of the output's
    assert products.adapters == 2 * 8 * (4 * (32 + 32) + 2 * (32 + 64))
    assert products.attention == 2 * 32
    ten_twice = Tokens(10, 100) * 2
    assert products.encoding(ten_twice) == 20 * 2 * (16384 + 7168) + 2 * 4 * 64 * 100
    assert products.training(ten_twice) == 20 * (4 * 16384 + 6 * 7168) + 2 * 12 * 64 * 100


def test_the_products_are_those_that_torch_counts(kind, tiny_model):
    """One text at a time, so that nothing is padded; torch's counter sees what really runs."""
    encoder = encoder_of(tiny_model(kind))
    for length in (16, 32):
        text = TokenSequences(np.arange(5, 5 + length), np.array([length]))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder.embed(text)
        expected = cost.cost_of(encoder.model).encoding(Tokens(length, length**2))
        assert expected == pytest.approx(counter.get_total_flops(), rel=0.1)


T4 = next(each for each in INSTANCES if each.gpu == "T4")
MODEL = cost.ModelCost(frozen=1_000_000, adapters=0, attention=0, layers=10, width=100)


def test_a_step_takes_what_its_products_and_its_memory_traffic_take():
    step = Tokens(1_000_000, 0)
    products = 4e12 / (T4.peak * cost.PRODUCTS_REACH)
    traffic = cost.STEP_BYTES * 10 * 100 * 1_000_000 / (T4.bandwidth * cost.MEMORY_REACH)
    assert cost.seconds(T4, MODEL, [step], Tokens(0, 0)) == pytest.approx(products + traffic)
    assert cost.seconds(T4, MODEL, [step] * 3, Tokens(0, 0)) == pytest.approx(3 * (products + traffic))
    evaluation = 2e12 / (T4.peak * cost.PRODUCTS_REACH) + traffic * cost.ENCODING_BYTES / cost.STEP_BYTES
    assert cost.seconds(T4, MODEL, [], step) == pytest.approx(evaluation)


def test_a_small_step_takes_what_the_host_takes():
    host = (cost.STEP_MILLISECONDS + 10 * cost.LAYER_MILLISECONDS) / 1000
    assert cost.seconds(T4, MODEL, [Tokens(10, 100)] * 7, Tokens(0, 0)) == pytest.approx(7 * host)


def test_several_instances_share_what_the_gpu_does_and_exchange_gradients(place):
    model, step = dataclasses.replace(MODEL, adapters=1_000_000), Tokens(1_000_000, 0)
    alone = cost.seconds(T4, model, [step] * 3, step)
    assert cost.seconds(T4, model, [step] * 3, step, 2) == pytest.approx(alone / 2 + 3 * 8e6 / cost.NETWORK)
    four = dataclasses.replace(T4, gpus=4)
    assert cost.seconds(four, model, [step] * 3, step) == pytest.approx(alone / 4)
    assert cost.seconds(four, model, [step] * 3, step, 2) == pytest.approx(alone / 8 + 3 * 8e6 / cost.NETWORK)
    assert cost.dollars(T4, 3600, 2) == 2 * cost.dollars(T4, 3600)
    planned = lorry("plan", **place[1], instance_count=2)
    assert "2 instances share every step" in planned.output
    assert re.search(r"^2 x ml\.g4dn\.xlarge +2 x T4", planned.output, re.MULTILINE)
    assert re.search(r"^2 x ml\.g4dn\.12xlarge +8 x T4", planned.output, re.MULTILINE)


def test_the_price_is_hours_times_the_hourly_price():
    dear = dataclasses.replace(T4, price=100.0)
    assert cost.dollars(dear, 7200) == pytest.approx(200 + 100 * cost.STARTUP_MINUTES / 60)
    [row] = [line for line in prices({T4: 7200.0}, 7200 * 6.5e12, []).splitlines() if line.startswith("ml.g4dn.xlarge")]
    assert row.split() == ["ml.g4dn.xlarge", "T4", "2", "h", "05", "min", "10%", "of", "65", "TFLOP/s", "fp16", "$1.53"]


def test_where_the_gpu_is_here_its_instance_takes_the_time_seen_here(place, monkeypatch):
    _, options = place
    monkeypatch.setattr("lorry.planning.plan.environment", lambda *_: {"device": "Tesla T4", "precision": "fp16"})
    planned = lorry("plan", **options).output
    assert "but the time on the T4 is what was seen here" in planned
    [row] = [line for line in planned.splitlines() if line.startswith("ml.g4dn.xlarge")]
    seen = number(r"time here +(\d+) s", planned)
    assert number(r"T4 +5 min (\d+) s", row) == pytest.approx(seen, abs=1)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "1 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (7380, "2 h 03 min")],
)
def test_times_are_shown_in_two_units(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], ["no training pairs", "--train"]),
        (["--train", "nowhere"], ["nowhere does not exist"]),
        (["--lora_rnk", "8"], ["unknown option --lora_rnk", "Did you mean --lora_rank?"]),
        (["--epochs", "0"], ["epochs is 0", "1 or more"]),
    ],
)
def test_a_mistake_is_one_line_as_in_training(words, says, tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(lorry("plan", *words, pretrained_model=tiny_model("bert")), says)
    assert not list(tmp_path.iterdir())


def test_the_bundled_model_is_planned_without_network(tmp_path):
    ended = lorry("plan", train=rows(tmp_path / "train"), pretrained_model="bundled", precision="fp32")
    assert ended.code == 0, ended.output
    # Six layers 384 wide, 1536 between: the products themselves, and adapters of rank 16 on all of them.
    weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536) + 6 * 16 * (4 * (384 + 384) + 2 * (384 + 1536))
    assert number(r"work +([\d.]+) MFLOP", ended.output) == pytest.approx(2 * weights / 1e6, abs=0.05)
