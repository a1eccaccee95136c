"""The command `train` and the function for the toolkit, in this process; tests/image runs them in the image."""

import signal
import sys
import threading
import types

import pytest

from lorry.container import train
from lorry.errors import UserError
from lorry.signals import Stop


def raising(error):
    def work(config, stop, command):
        raise error

    return work


def test_the_trainer_gets_config_and_command_and_an_old_failure_goes(root, started):
    seen = {}
    (root / "output").mkdir()
    (root / "output" / "failure").write_text("old")
    code = started(
        lambda config, stop, about: seen.update(config=config, command=about.command), "--label_map", "a=1, b=0"
    )
    assert code == 0
    assert seen["config"].label_map == "a=1, b=0"
    assert seen["command"] == "train --label_map 'a=1, b=0'"
    assert not (root / "output" / "failure").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no such column", "Name one"), "no such column. Name one"),
        (MemoryError(), "out of memory. Lower batch_size or micro_batch_tokens, or take a larger machine."),
        (KeyboardInterrupt(), "interrupted by a second Ctrl-C. Run it again; earlier checkpoints stay as they are."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(root, started, capsys, error, said):
    assert started(raising(error)) == 1
    assert (root / "output" / "failure").read_text() == said
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == f"error: {said}"
    assert "Traceback" not in output


def test_a_crash_leaves_its_traceback_in_the_log(root, started, capsys):
    assert started(raising(IndexError("step 3 of 2"))) == 1
    assert (root / "output" / "failure").read_text().startswith("IndexError: step 3 of 2 (at launch.py:")
    assert "Traceback" in capsys.readouterr().out


def test_a_stop_before_the_run_is_no_failure(root, started, capsys):
    stop = Stop()
    stop.set()
    assert started(raising(AssertionError("the run began")), stop=lambda: stop) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped before the run began")
    assert not (root / "output" / "failure").exists()


@pytest.mark.parametrize("error", [UserError("no such column", "Name one"), KeyboardInterrupt(), OSError("odd")])
def test_the_toolkit_gets_an_error_that_it_shows_in_one_line(root, started, monkeypatch, error):
    class ClientError(Exception):
        pass

    started(raising(IndexError()))  # sets up the process
    errors = types.SimpleNamespace(ClientError=ClientError)
    monkeypatch.setitem(sys.modules, "sagemaker_training", types.SimpleNamespace(errors=errors))
    monkeypatch.setitem(sys.modules, "sagemaker_training.errors", errors)
    monkeypatch.setattr("lorry.pipeline.run", raising(error))
    with pytest.raises(ClientError) as caught:
        train.main()
    assert (root / "output" / "failure").read_text() == str(caught.value)


def test_a_signal_that_came_before_the_handlers_is_not_lost(monkeypatch):
    """docker/train blocks signals until `train` has set its handlers."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    try:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)  # other threads have not blocked it
        train._stop.cache_clear()
        assert train._stop().is_set()
    finally:
        train._stop.cache_clear()
        for number, handler in kept.items():
            signal.signal(number, handler)
