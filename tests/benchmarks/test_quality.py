"""The quality benchmark keeps every recipe that it has trained."""

import sys

import pytest

import quality
import records

METRICS = dict.fromkeys(("ndcg@10", "mrr@10", "roc_auc", "average_precision", "spearman", "pair_accuracy"), 0.5)


def test_every_recipe_is_saved_when_it_is_trained(tmp_path, monkeypatch, capsys):
    def measure(recipes):
        assert recipes == list(quality.RECIPES)
        results = {"random": METRICS, "base": {**METRICS, "sts": 0.25}}
        yield {"date": "2026-01-01", "machine": None, "results": results}
        raise MemoryError

    output = tmp_path / "quality.json"
    monkeypatch.setattr(quality, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["quality.py", "--output", str(output)])
    with pytest.raises(MemoryError):
        quality.main()
    assert list(records.load(output)["results"]) == ["random", "base"]
    printed = capsys.readouterr().out
    assert "| base model | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.2500 |" in printed
    assert "| random order | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.5000 |  |" in printed
    monkeypatch.setattr(sys, "argv", ["quality.py", "--show", str(output)])
    quality.main()
    assert capsys.readouterr().out == printed


def test_a_recipe_may_change_options():
    changed = quality._options("cosent:lr=3e-4,batch_size=64")
    assert changed == {"loss": "cosent", "lr": 3e-4, "batch_size": 64}
