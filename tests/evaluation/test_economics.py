"""Smaller vectors and standardised ones: what they are, and what is said of them."""

import numpy as np
import pytest
import torch
from sentence_transformers.util.quantization import quantize_embeddings
from test_search import SPLITS

from lorry.evaluation.catalogue import make_catalogue
from lorry.evaluation.economics import economics, forms
from lorry.evaluation.metrics import evaluate
from lorry.model.standardizing import fit_standardizer

GENERATOR = torch.Generator().manual_seed(0)
PRODUCTS = torch.nn.functional.normalize(torch.randn(400, 32, generator=GENERATOR) + 0.3, dim=-1)


def form(name, dims=32):
    return next(item for item in forms(PRODUCTS, ()) if (item.name, item.dims) == (name, dims))


def test_int8_is_that_of_sentence_transformers():
    codes = quantize_embeddings(PRODUCTS.numpy(), "int8", calibration_embeddings=PRODUCTS.numpy())
    low, high = PRODUCTS.amin(0).numpy(), PRODUCTS.amax(0).numpy()
    read_back = (codes.astype(np.float32) + 128) * (high - low) / 255 + low
    assert np.abs(form("int8").product(PRODUCTS).numpy() - read_back).max() < 1.01 * (high - low).max() / 255
    agree = np.isclose(form("int8").product(PRODUCTS).numpy(), read_back, atol=1e-5).mean()
    assert agree > 0.99  # the rest lies on the edge of two codes


def test_binary_is_that_of_sentence_transformers():
    bits = np.unpackbits(quantize_embeddings(PRODUCTS.numpy(), "ubinary"), axis=1)
    sign = form("binary").product(PRODUCTS)
    assert (sign.numpy() == bits * 2.0 - 1).all()
    hamming = (bits[:1] != bits).sum(1)
    assert ((32 - (sign[:1] @ sign.T)[0].numpy()) / 2 == hamming).all()


def test_shorter_vectors_have_a_length_of_1():
    assert [item.dims for item in forms(PRODUCTS, ()) if item.name == "float32"] == [32, 16, 8]
    assert [item.dims for item in forms(PRODUCTS, (24,)) if item.name == "float32"] == [32, 24]
    assert form("float32", 8).product(PRODUCTS).norm(dim=1).numpy() == pytest.approx(np.ones(400), abs=1e-6)


def test_every_form_has_its_bytes_and_what_they_buy():
    catalogue = make_catalogue(SPLITS, 1000, 0, but="train")
    pairs, asked = SPLITS["test"], catalogue.queries["test"]
    product_CD = torch.nn.functional.normalize(torch.randn(len(catalogue), 32, generator=GENERATOR), dim=-1)
    text_TD = product_CD[[catalogue.texts.to_pylist().index(text) for text in pairs.texts.to_pylist()]]
    query_QD = torch.zeros(len(pairs.queries), 32)
    for query, product, relevant in zip(asked.query, asked.products, asked.relevant, strict=True):
        query_QD[int(asked.rows[query])] += product_CD[product] * (1 if relevant else -1)  # near what it asks for
    query_QD = torch.nn.functional.normalize(query_QD, dim=-1)
    rows = economics(pairs, (query_QD, text_TD), asked, product_CD, ())
    assert {(row["form"], row["dims"]): row["bytes_per_million"] for row in rows} == {
        ("float32", 32): 128_000_000, ("float16", 32): 64_000_000, ("int8", 32): 32_000_000,
        ("float32", 16): 64_000_000, ("float32", 8): 32_000_000,
        ("binary, rescored", 32): 4_000_000, ("binary", 32): 4_000_000,
    }  # fmt: skip
    by_form = {row["form"]: row for row in reversed(rows)}
    assert by_form["float32"]["recall@10"] == by_form["float32"]["ndcg@10_rankable"] == 1
    assert by_form["int8"]["recall@10"] == 1
    sign_TD = (text_TD > 0).float() * 2 - 1
    for name, sent_QD in (("binary", (query_QD > 0).float() * 2 - 1), ("binary, rescored", query_QD)):
        score = (sent_QD[pairs.query.astype(int)] * sign_TD[pairs.text.astype(int)]).sum(1).numpy()
        figures = evaluate(pairs.query, pairs.gain, pairs.relevant, score)
        assert by_form[name]["ndcg@10"] == pytest.approx(figures["ndcg@10"])


def test_centred_products_have_no_mean_and_whitened_ones_all_directions_alike():
    centred = fit_standardizer("center", PRODUCTS)(PRODUCTS)
    assert centred.mean(0).abs().max() < 1e-6
    white = fit_standardizer("whiten", PRODUCTS)(PRODUCTS)
    assert white.mean(0).abs().max() < 1e-5
    assert torch.cov(white.T).numpy() == pytest.approx(np.eye(32), abs=1e-3)


def test_whitening_does_not_make_noise_longer():
    flat = PRODUCTS.clone()
    flat[:, 0] = 0.25  # a direction without any variance
    for products in (flat, flat[:1], flat[:0], torch.ones(3, 32)):
        assert fit_standardizer("whiten", products)(flat).isfinite().all()
