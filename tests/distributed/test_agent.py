"""`lorry train --processes` and `torchrun -m lorry`: processes of their own, started, stopped and ended."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lorry"]


@pytest.fixture
def start(tmp_path, tiny_model, shop_pairs):
    """Return `start(launcher, words, …) -> Popen`: `lorry train` on a small shop, its output in `log`."""
    started = []

    def begin(launcher=("-m", "lorry"), command="train", **options):
        given = {
            "train": shop_pairs(tmp_path / "shop", queries=16), "pretrained_model": tiny_model("bert"),
            "batch_size": 24, "precision": "fp32", "log_every": 1, "model_dir": tmp_path / "model",
            "output_data_dir": tmp_path / "output", "checkpoint_dir": tmp_path / "kept",
        }  # fmt: skip
        flags = [f"--{name}={value}" for name, value in (given | options).items()]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *launcher, command, *flags], stdout=log, stderr=log, env=environment
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def ranks(process):
    """The processes of a run by rank."""
    children = psutil.Process(process.pid).children(recursive=True)
    return {int(child.environ()["RANK"]): child for child in children if "RANK" in child.environ()}


def wait_for(log, pattern, seconds=60):
    deadline = time.monotonic() + seconds
    while not re.search(pattern, log.read_text(errors="replace")):
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.05)


def test_a_killed_process_is_one_line_and_exit_code_1(start, tmp_path):
    process = start(epochs=2000, processes=2)
    wait_for(tmp_path / "log", r"step=5/")
    family = ranks(process)
    family[1].kill()
    assert process.wait(30) == 1
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("error: rank 1 on localhost: the process was killed (SIGKILL). ")
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family.values())


@pytest.mark.slow
def test_a_process_that_stands_still_ends_all_within_half_a_minute(start, tmp_path):
    process = start(epochs=2000, processes=2)
    wait_for(tmp_path / "log", r"step=5/")
    ranks(process)[1].suspend()
    assert process.wait(30) == 1
    assert "error: rank 1 on localhost has not answered for 1" in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["", "step=5/"], ids=["at the start", "in training"])
@pytest.mark.parametrize("launcher", [["-m", "lorry"], TORCHRUN], ids=["lorry", "torchrun"])
def test_a_stop_ends_all_well(start, tmp_path, launcher, step):
    process = start(launcher, epochs=2000, **({} if launcher == TORCHRUN else {"processes": 2}))
    if step:
        wait_for(tmp_path / "log", step)
    else:
        while len(ranks(process)) < 2:
            time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, said = process.wait(40), (tmp_path / "log").read_text()
    if launcher == TORCHRUN:  # which ends with a traceback of its own
        assert "stopped at step " in said or not step
        return
    assert code == 0, said
    assert len(list((tmp_path / "kept").glob("*"))) == (1 if step else 0)


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(start, tmp_path):
    process = start(epochs=2000, processes=2)
    wait_for(tmp_path / "log", r"step=5/")
    family = ranks(process).values()
    process.kill()
    assert not psutil.wait_procs(family, timeout=15)[1]


@pytest.mark.slow
def test_torchrun_makes_the_same_model_as_processes(start, tmp_path):
    assert start(TORCHRUN).wait(120) == 0, (tmp_path / "log").read_text()
    first = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert start(processes=2, checkpoint_dir=tmp_path / "other").wait(120) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--train", "x", "--processes", "2"], "torchrun has started the processes"),
        (["plan", "--train", "x"], "torchrun is for `lorry train` alone"),
    ],
)
def test_torchrun_with_what_it_cannot_start_is_refused(words, said):
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "lorry", *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert said in done.stdout
    assert done.stdout.count("\n") == 1
