"""The speed benchmark survives the death of any contestant at any moment, and keeps what it has measured."""

import json
import signal
import sys
from pathlib import Path

import pytest

import records
import throughput
from speed_tables import tables

FAKE = Path(__file__).with_name("fake_contestant.py")
TRAINED = ("lorry", "st", "post", "peak")
ROUNDS = 2
FULL = dict.fromkeys(TRAINED, ROUNDS)
# Moments at which a contestant can die, and how many rounds it has done by then.
MOMENTS = {"start 1": 0, "turn 1": 0, "after 1": 1, "turn 2": 1}


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results" / "throughput.json"


@pytest.fixture
def bench(tmp_path, results, monkeypatch, capsys):
    """Run a task with fake contestants that fail as told, and return its row and what was printed."""
    lorry = tmp_path / "lorry"
    lorry.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    lorry.chmod(0o755)
    (tmp_path / "starts").mkdir()
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(throughput, "CONTESTANTS", FAKE)
    monkeypatch.setattr(throughput, "LORRY", [str(lorry)])
    monkeypatch.setattr(throughput, "prepare", lambda work, folder: folder / f"{work}.parquet")
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))

    def run(task="train", timeout=60.0, faults=None):
        monkeypatch.setenv("FAULTS", json.dumps(faults or {}))
        options = {"task": task, "work": "short", "batch_size": 120, "rounds": ROUNDS, "seconds": 0, "timeout": timeout}
        options["output"] = results
        words = [str(item) for name, value in options.items() for item in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["throughput.py", *words])
        throughput.main()
        return records.load(results)[task][0], capsys.readouterr().out

    yield run
    signal.signal(signal.SIGTERM, handler)


def counts(row, names=TRAINED):
    return {name: sum(name in done for done in row["rounds"]) for name in names}


def test_all_work_in_every_round(bench):
    row, printed = bench()
    assert counts(row) == FULL
    assert row["failed"] == {}
    assert "| short | 120 | 5 | 5.0 | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) | 100 | 50% | 50% |" in printed
    assert "The blog post's loop, short texts, 120 pairs per batch, pairs/s: 5.0; speed, Lorry / post: 1.00" in printed


@pytest.mark.parametrize("when", MOMENTS)
@pytest.mark.parametrize("name", TRAINED)
def test_a_killed_contestant_ran_out_of_memory_and_the_others_continue(bench, name, when):
    row, printed = bench(faults={name: ("kill", when)})
    assert counts(row) == FULL | {name: MOMENTS[when]}
    assert row["failed"] == {name: "out of memory"}
    assert "out of memory" in printed
    assert "ValueError" not in printed


@pytest.mark.parametrize("when", MOMENTS)
def test_a_crash_is_recorded_with_the_last_line_of_its_error(bench, when):
    row, printed = bench(faults={"st": ("crash", when)})
    assert counts(row) == FULL | {"st": MOMENTS[when]}
    assert row["failed"] == {"st": "ValueError: no such number"}
    assert "Failed (train, short, 120): ST: ValueError: no such number" in printed
    assert ("5.0 (1 round, then failed)" if MOMENTS[when] else "| failed |") in printed


@pytest.mark.parametrize("when", ["start 1", "turn 1"])
def test_a_contestant_that_hangs_is_killed_in_time(bench, when):
    row, printed = bench(timeout=3.0, faults={"st": ("hang", when)})
    assert counts(row) == FULL | {"st": 0}
    assert row["failed"] == {"st": "timed out"}
    assert "| short | 120 | 5 | timed out |" in printed


def test_a_contestant_may_say_itself_that_memory_ran_out(bench):
    row, _ = bench(faults={"st": ("memory", "turn 2")})
    assert row["failed"] == {"st": "out of memory"}
    assert counts(row)["st"] == 1


def test_a_contestant_may_end_without_a_word(bench):
    row, _ = bench(faults={"lorry": ("exit", "turn 1")})
    assert row["failed"] == {"lorry": "ended with exit code 0"}


def test_a_contestant_that_cannot_start_has_failed(bench, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    row, _ = bench()
    assert row["failed"] == dict.fromkeys(TRAINED, "cannot start: No such file or directory")


def test_a_contest_ends_when_nobody_is_left(bench):
    row, printed = bench("tokenize", faults={"lorry": ("kill", "turn 1"), "st": ("crash", "turn 1")})
    assert row["rounds"] == [{}]
    assert "| short (1 of 2 rounds) | 120 | out of memory | failed |  |" in printed


@pytest.mark.parametrize(("how", "reason"), [("kill", "out of memory"), ("crash", "ValueError: no such number")])
@pytest.mark.parametrize(("start", "rounds"), [(1, 0), (2, 0), (3, 1)])
@pytest.mark.parametrize("name", ["lorry", "st"])
def test_the_first_step_is_timed_of_whoever_is_left(bench, name, start, rounds, how, reason):
    row, _ = bench("first_step", faults={name: (how, f"start {start}")})
    assert counts(row, ("lorry", "st")) == {"lorry": 2, "st": 2} | {name: rounds}
    assert row["failed"] == {name: reason}


def test_a_first_step_that_never_ends_is_stopped(bench):
    row, _ = bench("first_step", timeout=3.0, faults={"lorry": ("hang", "start 1")})
    assert row["failed"] == {"lorry": "timed out"}
    assert counts(row, ("st",)) == {"st": 2}


def test_lorry_that_is_not_installed_has_failed(bench, tmp_path):
    (tmp_path / "lorry").unlink()
    row, printed = bench("first_step")
    assert row["failed"] == {"lorry": "cannot start: No such file or directory"}
    assert "| short | 120 | failed |" in printed


def test_an_interrupted_run_keeps_every_finished_round(bench, results, monkeypatch, capsys):
    saved = []

    def interrupt(record, path):
        save(record, path)
        saved.append(len(record["train"][0]["rounds"]))
        if saved == [0, 1]:
            raise KeyboardInterrupt

    save = records.save
    monkeypatch.setattr(records, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench()
    printed = capsys.readouterr().out
    assert "| short (1 of 2 rounds) | 120 | 5 | 5.0 |" in printed
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--show", str(results)])
    throughput.main()
    assert capsys.readouterr().out == printed
    assert [path.name for path in results.parent.iterdir()] == [results.name]


def test_a_row_without_any_round_is_shown_empty():
    row = {"work": "long", "batch_size": 32, "rounds": [], "failed": {}}
    record = {"date": "2026-01-01", "machine": None, "rounds": 5, "train": [row], "encode": [row], "first_step": [row]}
    assert tables(record).count("| long (0 of 5 rounds) | 32 |  |  |") == 3
