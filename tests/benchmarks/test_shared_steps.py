"""The table of shared steps: every setting in turns, saved after every run, the best of each shown."""

import sys

import ranks
import records


def test_the_best_run_of_every_setting_is_shown_beside_one_process(tmp_path, monkeypatch, capsys):
    speeds = iter(range(100, 200))

    def run(setting, pairs, scratch):
        return {"pairs_per_second": next(speeds) * setting["processes"], "bytes_a_step": 1000 * setting["batch_size"]}

    monkeypatch.setattr(ranks, "_run", run)
    monkeypatch.setattr(ranks.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(ranks.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    words = ["ranks.py", "--batch_size", "96", "--rounds", "2", "--output", str(tmp_path / "ranks.json")]
    monkeypatch.setattr(sys, "argv", words)
    ranks.main()
    printed = capsys.readouterr().out
    assert "| 96 | 1 x 2 | 102 | 100% | none |" in printed
    assert "| 96 | 2 x 1 | 206 | 202% | 96 |" in printed
    assert len(records.load(tmp_path / "ranks.json")["settings"]) == 2
    monkeypatch.setattr(sys, "argv", ["ranks.py", "--show", str(tmp_path / "ranks.json")])
    ranks.main()
    assert capsys.readouterr().out == printed
