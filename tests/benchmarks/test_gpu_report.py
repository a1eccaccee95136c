"""`make gpu` runs on while its parts fail, says which did, and shows what there is."""

import sys

import pytest

import gpu
import records


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the benchmark with made-up parts; return its exit code, what it wrote and what it printed."""
    output = tmp_path / "gpu.json"

    def run(**parts):
        monkeypatch.setattr(gpu, "PARTS", parts)
        monkeypatch.setattr(gpu, "_job", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--pretend", "--output", str(output)])
        with pytest.raises(SystemExit) as end:
            gpu.main()
        return end.value.code, records.load(output), capsys.readouterr().out

    return run


def profiled(job, record, output):
    record["profile"] = {"short": {"steps": 2, "seconds": 0.1, "busy_seconds": 0.075, "kernels": [["gemm", 0.05]]}}


def measured(job, record, output):
    record["host"] = {"short": {"operations": 1500, "launches": 600, "host_milliseconds": 12.34}}
    record["plan"] = {"planned": "2 min 05 s", "measured_seconds": 130.2}


def failing(job, record, output):
    raise RuntimeError("out of luck")


def test_a_part_that_fails_is_named_and_the_others_count(run):
    code, record, printed = run(first=failing, profile=profiled, plan=measured)
    assert code == 1
    assert record["failed"] == {"first": "RuntimeError: out of luck"}
    assert "FAILED first: RuntimeError: out of luck" in printed
    assert "short: 50.0 ms a step, idle 25% of it." in printed
    assert "| gemm | 67% |" in printed
    assert "Planned: 2 min 05 s; measured: 130 s." in printed
    assert "The CPU's part of a step, short: 12.3 ms for 1,500 operations, 600 of them no views." in printed


def test_where_all_goes_well_the_exit_code_says_so(run):
    assert run(profile=profiled)[0] == 0


def test_without_a_gpu_it_says_what_runs_without_one(monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="PyTorch sees no GPU"):
        gpu.main()
