"""Scoring pairs with a model, and models side by side, against sentence-transformers."""

import json
import threading

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from lorry.config import PairOptions, TrainConfig
from lorry.data.pairs import read_channel
from lorry.data.synthetic import generate
from lorry.errors import UserError
from lorry.evaluation.comparison import compare_models
from lorry.evaluation.metrics import evaluate
from lorry.evaluation.scoring import OFFICIAL_SCORER_GAIN, baselines, measure, score
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize
from lorry.names import METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG
from lorry.signals import StopRequestedError
from lorry.training.objective import PairLabels, batch_loss

CPU = torch.device("cpu")
CONFIG = TrainConfig(precision="fp32")


@pytest.fixture(scope="module")
def pairs(shop_pairs, tmp_path_factory):
    return read_channel(shop_pairs(tmp_path_factory.mktemp("pairs"), queries=15), PairOptions())["all"]


@pytest.fixture
def tiny(tiny_model, pairs):
    """A tiny encoder and the tokenised pairs; of RoBERTa, whose tokenizer cuts words: texts of many lengths."""
    base = find_pretrained(str(tiny_model("roberta", normalize=False)))
    texts = tokenize(pairs, base)
    assert (np.diff(texts.lengths) < 0).any()
    return Encoder(base, "fp32", CPU), texts


def sentence_scores(folder, pairs):
    """The cosine of every pair as sentence-transformers has it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    queries = model.encode_query(pairs.queries.to_pylist(), normalize_embeddings=True)
    texts = model.encode_document(pairs.texts.to_pylist(), normalize_embeddings=True)
    return (queries[pairs.query] * texts[pairs.text]).sum(-1)


def test_texts_are_embedded_in_their_own_order(tiny):
    encoder, texts = tiny
    found = embed_all(encoder, texts, 7)
    assert found.shape == (len(texts), 32)
    with torch.inference_mode():
        for index in (0, 3, len(texts) - 1):
            expected = encoder.embed(texts.take(np.array([index])))[0]
            torch.testing.assert_close(found[index], expected, atol=1e-5, rtol=1e-5)


def test_one_side_may_be_embedded_alone(tiny):
    encoder, texts = tiny
    whole = embed_all(encoder, texts, 7)
    for side, expected in (("query", whole[: texts.queries]), ("document", whole[texts.queries :])):
        torch.testing.assert_close(embed_all(encoder, texts, 5, side=side), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 8, 10_000])
def test_the_batch_size_changes_nothing(tiny, batch_size):
    torch.testing.assert_close(embed_all(*tiny, batch_size), embed_all(*tiny, 32), atol=1e-5, rtol=1e-5)


def test_a_stop_ends_it(tiny):
    stop = threading.Event()
    stop.set()
    with pytest.raises(StopRequestedError):
        embed_all(*tiny, 8, stop)


def test_dropout_is_off_when_a_model_is_scored(tiny_model, pairs):
    base = find_pretrained(str(tiny_model("bert")))
    found = []
    for dropout in (0.0, 0.5):
        encoder = Encoder(base, "fp32", CPU)
        encoder.add_lora(rank=4, alpha=8.0, dropout=dropout, targets="", seed=0)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in encoder.trainable().values():
                weight.copy_(torch.randn(weight.shape, generator=random) * 0.3)
        found.append(embed_all(encoder, tokenize(pairs, base), 64))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompts", [{}, {"query": "query: ", "document": "passage: "}], ids=["no prompts", "prompts"])
def test_scores_are_those_of_sentence_transformers(tiny_model, kind, pairs, prompts):
    folder = tiny_model(kind, prompts=prompts)
    base = find_pretrained(str(folder))
    found = score(Encoder(base, "fp32", CPU), tokenize(pairs, base), pairs, CONFIG)
    expected = sentence_scores(folder, pairs)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert found.scores.std() > 0.01
    assert found.metrics == pytest.approx(measure(pairs, expected), abs=1e-3)


@pytest.mark.parametrize(
    "name", ["cosine", "infonce", "cosent", "lambda+listnet+bce+contrastive", "infonce+5*ranknet+0.2*cosent"]
)
def test_the_loss_of_a_split_is_the_training_loss(tiny, pairs, name):
    """One batch of all pairs, so that the order of batches cannot matter."""
    encoder, texts = tiny
    config = TrainConfig(loss=name, batch_size=len(pairs), precision="fp32")
    found = score(encoder, texts, pairs, config)
    everything = torch.nn.functional.normalize(embed_all(encoder, texts, 64), dim=-1)
    grade = pairs.gain / pairs.gain.max()
    order = np.nonzero((pairs.query[:, None] == pairs.query) & (pairs.gain[:, None] > pairs.gain))
    labels = PairLabels(
        *(torch.from_numpy(item) for item in (pairs.query, pairs.text, pairs.gain, grade, pairs.relevant, *order))
    )
    expected = batch_loss(config, everything[: texts.queries], everything[texts.queries :], labels)
    assert found.loss == pytest.approx(expected.item(), rel=1e-4)


def test_products_may_come_with_embeddings_of_another_model(tiny, pairs):
    encoder, texts = tiny
    config = TrainConfig(loss="cosine", batch_size=len(pairs), precision="fp32")
    products = torch.randn(len(pairs.texts), 32, generator=torch.Generator().manual_seed(1))
    found = score(encoder, texts, pairs, config, documents_TD=products)
    queries = embed_all(encoder, texts, 64)[: texts.queries]
    cosine = torch.cosine_similarity(queries[pairs.query], products[pairs.text])
    np.testing.assert_allclose(found.scores, cosine.numpy(), atol=1e-5)
    assert found.metrics == measure(pairs, found.scores)
    expected = torch.where(torch.from_numpy(pairs.relevant), 1 - cosine, cosine.clamp(min=1e-6)).mean()
    assert found.loss == pytest.approx(expected.item(), rel=1e-4)


def test_the_loss_of_a_split_is_the_mean_over_its_pairs(tiny, pairs):
    """The cosine loss is a mean over pairs: it must not depend on how they are cut into batches."""
    encoder, texts = tiny
    losses = [
        score(encoder, texts, pairs, TrainConfig(loss="cosine", batch_size=size)).loss for size in (len(pairs), 7, 1)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_esci_is_also_measured_as_its_official_scorer_does(pairs):
    scores = np.linspace(0, 1, len(pairs))
    found = measure(pairs, scores)
    assert list(found) == [*METRICS, OFFICIAL_NDCG, OFFICIAL_WHOLE_NDCG]
    gains = np.array([OFFICIAL_SCORER_GAIN[pairs.label_names[label]] for label in pairs.label])
    assert (gains[pairs.gain == np.float32(0.1)] == 0.01).all()  # a substitute gets what a complement should
    assert (gains[pairs.gain == np.float32(0.01)] == 0.1).all()
    expected = evaluate(pairs.query, pairs.gain, pairs.relevant, scores, official_gain=gains)
    assert found == expected
    whole = [  # not the first ten products alone
        ndcg_score([gains[pairs.query == query]], [scores[pairs.query == query]]) for query in np.unique(pairs.query)
    ]
    assert found[OFFICIAL_WHOLE_NDCG] == pytest.approx(np.mean(whole))


def test_labels_that_are_not_escis_have_no_official_scorer(tmp_path):
    (tmp_path / "pairs.csv").write_text("query,text,label\nred lamp,lamp red,1\nred lamp,sofa,0\n")
    pairs = read_channel(tmp_path, PairOptions())["all"]
    assert measure(pairs, np.array([0.9, 0.1])) == dict.fromkeys(METRICS, 1.0) | {"spearman": pytest.approx(1.0)}


def test_baselines_stand_beside(pairs):
    found = baselines(pairs, seed=1)
    assert list(found) == ["random", "bm25"]
    assert found == baselines(pairs, seed=1)
    assert found["random"] != baselines(pairs, seed=2)["random"]
    assert found["bm25"] == baselines(pairs, seed=2)["bm25"]
    assert found["bm25"]["roc_auc"] > 0.8 > found["random"]["roc_auc"]  # these titles name what is searched


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    generate(folder, queries=40)
    return folder / "train"


def test_the_bundled_model_scores_as_in_sentence_transformers(sample, tmp_path):
    output = tmp_path / "new" / "metrics.json"
    compare_models(["bundled"], sample, output, CONFIG)
    splits = json.loads(output.read_text())["splits"]
    assert set(splits) == {"train", "test"}
    for split, pairs in read_channel(sample, PairOptions()).items():
        block = splits[split]
        assert (block["pairs"], block["queries"]) == (len(pairs), len(pairs.queries))
        expected = measure(pairs, sentence_scores(find_pretrained("bundled").folder, pairs))
        assert block["models"]["bundled"] == pytest.approx(expected, abs=1e-3)
        assert block["random"].keys() == block["bm25"].keys() == expected.keys()
        assert expected["ndcg@10"] > block["random"]["ndcg@10"]


def test_models_stand_side_by_side(tiny_model, shop_pairs, tmp_path, caplog):
    data = shop_pairs(tmp_path / "data", queries=10)
    pairs = read_channel(data, PairOptions())["all"]
    models = [str(tiny_model("bert")), str(tiny_model("qwen3"))]
    with caplog.at_level("INFO", "lorry"):
        compare_models(models, data, tmp_path / "metrics.json", CONFIG)
    block = json.loads((tmp_path / "metrics.json").read_text())["splits"]["all"]
    for model in models:
        expected = measure(pairs, sentence_scores(model, pairs))
        assert block["models"][model] == pytest.approx(expected, abs=1e-3)
    assert block["models"][models[0]] != block["models"][models[1]]
    table = next(record.getMessage() for record in caplog.records if "BM25" in record.getMessage())
    for name in ("random", *models, *METRICS):
        assert name in table


def test_metrics_that_the_labels_leave_undefined_are_named(tiny_model, tmp_path, caplog):
    (tmp_path / "pairs.csv").write_text("query,text,label\nred lamp,lamp red,1\nblue lamp,sofa,0\n")
    with caplog.at_level("WARNING", "lorry"):
        compare_models([str(tiny_model("bert"))], tmp_path, tmp_path / "metrics.json", CONFIG)
    said = [record.getMessage() for record in caplog.records if "not defined" in record.getMessage()]
    assert said == ["all: not defined by these labels: ndcg@10, ndcg@10_rankable, mrr@10, pair_accuracy"]


def test_an_earlier_result_is_replaced(tiny_model, shop_pairs, tmp_path):
    data, output = shop_pairs(tmp_path / "data", queries=10), tmp_path / "metrics.json"
    for kind in ("bert", "distilbert"):
        compare_models([str(tiny_model(kind))], data, output, CONFIG)
        assert list(json.loads(output.read_text())["splits"]["all"]["models"]) == [str(tiny_model(kind))]


def test_a_folder_for_a_file_is_refused_before_anything_is_done(tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"is a folder.*--output"):
        compare_models([str(tiny_model("bert"))], tmp_path / "no such", tmp_path, CONFIG)


def test_products_may_have_embeddings_of_their_own(tiny, pairs):
    """Where queries alone are trained: products are those of another model, here turned around."""
    encoder, texts = tiny
    turned = -embed_all(encoder, texts, side="document")
    found = score(encoder, texts, pairs, CONFIG, documents_TD=turned)
    np.testing.assert_allclose(found.scores, -score(encoder, texts, pairs, CONFIG).scores, atol=1e-5)


def test_a_side_alone_is_that_part_of_all(tiny):
    encoder, texts = tiny
    sides = [embed_all(encoder, texts, side=side) for side in ("query", "document")]
    torch.testing.assert_close(torch.cat(sides), embed_all(encoder, texts), atol=1e-5, rtol=1e-5)
