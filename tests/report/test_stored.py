"""`report.json`, and the pages that `lorry report` makes of it."""

import json
import re

import pytest
from report_facts import make_facts, with_evidence

from command import lorry
from lorry.report.page import write_report
from lorry.report.stored import load_facts, store_facts


def leave_run(folder, facts):
    """Write what a finished run leaves."""
    folder.mkdir(parents=True)
    changes = {
        split: {name: vars(change) for name, change in facts.differences.get(split, {}).items()}
        for split in facts.metrics["splits"]
    }
    splits = {name: block | {"change": changes[name]} for name, block in facts.metrics["splits"].items()}
    (folder / "metrics.json").write_text(json.dumps({**facts.metrics, "splits": splits}), "utf-8")
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in facts.log), "utf-8")
    store_facts(folder, facts)
    return folder


def test_the_page_made_again_is_the_page_of_the_run(tmp_path):
    facts = with_evidence()
    folder = leave_run(tmp_path / "output", facts)
    write_report(tmp_path / "first.html", facts)
    write_report(tmp_path / "again.html", load_facts(folder))
    assert (tmp_path / "again.html").read_text("utf-8") == (tmp_path / "first.html").read_text("utf-8")
    ended = lorry("report", folder)
    assert ended.code == 0
    assert (folder / "report.html").read_text("utf-8") == (tmp_path / "first.html").read_text("utf-8")


def test_several_runs_stand_side_by_side(tmp_path):
    one, other = with_evidence(), make_facts()
    other = make_facts(config={**other.config, "lr": 0.5, "pretrained_model": "<script>"}, fingerprints={"base": "x"})
    folders = [leave_run(tmp_path / name / "output", facts) for name, facts in (("a", one), ("b", other))]
    ended = lorry("report", *folders, output=tmp_path / "both.html")
    assert ended.code == 0
    html = (tmp_path / "both.html").read_text("utf-8")
    text = " ".join(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", html, flags=re.DOTALL).split())
    for words in (
        "2 runs side by side",
        "started from different base models",
        "a/output b/output nDCG@10 0.7500 0.7500",
        "0.7500 +0.0500 +0.0400 to +0.0600",
        "whole run 1 h 06 min –",
        "cost $0.82 –",
        "pretrained_model TaylorAI/gte-tiny &lt;script&gt;",
        "lr 0.00123 0.5",
    ):
        assert words in text, words
    assert "measured on different pairs" not in text
    assert "batch_size" not in text


@pytest.mark.parametrize("missing", ["metrics.json", "report.json", "training.jsonl"])
def test_a_folder_without_a_finished_run_is_refused_in_one_line(tmp_path, missing):
    folder = leave_run(tmp_path / "output", make_facts())
    (folder / missing).unlink()
    ended = lorry("report", folder)
    assert ended.code == 1
    assert ended.lines[-1].startswith(f"error: {folder} holds no finished run: there is no {missing}.")
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text):
    folder = leave_run(tmp_path / "output", make_facts())
    (folder / "report.json").write_text(text)
    ended = lorry("report", folder)
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert str(folder) in ended.lines[0]


def test_no_file_of_somebody_elses_is_written_over(tmp_path):
    folder = leave_run(tmp_path / "output", make_facts())
    (tmp_path / "notes.txt").write_text("mine")
    assert lorry("report", folder, output=tmp_path / "notes.txt").code == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "given twice" in lorry("report", folder, folder).lines[-1]
