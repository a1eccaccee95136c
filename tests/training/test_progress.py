"""What a run says: lines that SageMaker's regular expressions find, a bar on a terminal, a line of JSON a step."""

import io
import json
import logging
import re

import pytest

from lorry.aws.submit import METRIC_DEFINITIONS
from lorry.training.progress import TrainingLog

METRICS = {"ndcg@10": 0.9123, "spearman": -0.25}


@pytest.fixture
def said(monkeypatch):
    """The log as text; standard error is no terminal."""
    stream, log = io.StringIO(), logging.getLogger("lorry")
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(log, "handlers", [handler])
    log.setLevel(logging.INFO)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    return stream


class Terminal(io.StringIO):
    """Somewhere that a person watches."""

    def isatty(self):
        return True


def tell(training_log, *, first=0):
    with training_log.running(first):
        for step in range(first + 1, 11):
            training_log.step(24)
            if step % 5 == 0:
                training_log.train(step, step / 10, loss=1.5 / step, lr=1e-6)
        training_log.evaluate(10, 1.0, loss=0.0625, metrics=METRICS)


def test_lines_are_found_by_the_metric_definitions_of_the_post_and_of_a_job(said):
    tell(TrainingLog(10))
    log = said.getvalue()
    assert re.findall(r"training loss ([0-9\.]+)", log) == ["0.3000", "0.1500"]
    assert re.findall(r"eval loss ([0-9\.]+)", log) == ["0.0625"]
    regexes = {item["Name"]: item["Regex"] for item in METRIC_DEFINITIONS}
    assert re.findall(regexes["train:loss"], log) == ["0.3000", "0.1500"]
    assert re.findall(regexes["validation:loss"], log) == ["0.0625"]
    assert [float(rate) for rate in re.findall(regexes["train:lr"], log)] == [1e-6, 1e-6]
    assert all(float(speed) > 0 for speed in re.findall(regexes["train:pairs_per_second"], log))
    assert "validation:ndcg@10=0.9123;" in log
    assert "validation:spearman=-0.2500;" in log
    assert "step=5/10; epoch=0.50;" in log
    assert re.search(r"seconds_left=0;", log)


def test_a_line_of_json_is_kept_for_every_logged_step(said, tmp_path):
    training_log = TrainingLog(10)
    tell(training_log)
    training_log.write(tmp_path / "training.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines] == [
        (5, 0.3, None),
        (10, 0.15, None),
        (10, None, 0.0625),
    ]
    assert lines[0]["lr"] == 1e-6
    assert lines[0]["epoch"] == 0.5
    assert lines[2]["spearman"] == -0.25


def test_a_terminal_gets_a_bar_and_the_same_lines(said, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    tell(TrainingLog(10))
    assert "training: 100%" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()
    assert re.findall(r"^step=\d+/10; .*(training|eval) loss ([0-9.]+);", said.getvalue(), re.MULTILINE) == [
        ("training", "0.3000"),
        ("training", "0.1500"),
        ("eval", "0.0625"),
    ]


def test_a_line_does_not_tear_the_bar(said, monkeypatch):
    """On a terminal both go to one place: the bar is taken away before the line is written, and drawn again after."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr(logging.getLogger("lorry"), "handlers", [logging.StreamHandler(terminal)])
    tell(TrainingLog(10))
    before, _, after = terminal.getvalue().partition("step=5/10;")
    assert re.search(r"\r *\r$", before)
    assert "training: " in before
    assert re.match(r"[^\r\n]*\n\rtraining: ", after)


def test_time_left_and_speed_count_from_where_a_continued_run_began(said, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    training_log = TrainingLog(20)
    with training_log.running(10):
        for _ in range(5):
            now[0] += 2
            training_log.step(30)
        training_log.train(15, 0.75, loss=1.0, lr=0.1)
    assert "pairs_per_second=15.0; seconds_left=10;" in said.getvalue()


def test_what_training_should_take_is_told_once_and_without_the_pauses(said, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    training_log = TrainingLog(100)
    with training_log.running(0):
        for step in range(1, 31):
            now[0] += 5 if step == 1 else 2  # the first step takes longer
            training_log.step(30)
            if step == 15:
                now[0] += 40  # an evaluation
                training_log.pause(40)
            if step % 10 == 0:
                training_log.train(step, step / 100, loss=1.0, lr=0.1)
    expected = [line.get("expected_seconds") for line in training_log.lines]
    assert expected == [None, 203.0, None]
    assert training_log.lines[-1]["pairs_per_second"] == pytest.approx(30 * 30 / 63, abs=0.1)
