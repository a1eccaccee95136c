"""Runs of `lorry train` as processes that can be killed: forked from this one, so that libraries are loaded once."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import torch

from command import lorry

CHANGES = ("rename", "replace", "mkdir", "rmdir", "unlink")  # of the disk, as Python makes them


class Run:
    """One recipe, in folders of its own."""

    def __init__(self, folder, **options):
        self.folder = Path(folder)
        self.model, self.output, self.kept = (self.folder / name for name in ("model", "output", "checkpoints"))
        self.options = options | {
            "model_dir": self.model, "output_data_dir": self.output, "checkpoint_dir": self.kept,
        }  # fmt: skip
        self.log = self.folder.with_name(f"{self.folder.name}.log")

    def start(self, prepare=lambda: None):
        """Start the run in a process of its own and return the process' id."""
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            with self.log.open("ab", buffering=0) as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            torch.set_num_threads(1)
            prepare()
            ended = lorry("train", **self.options)
            sys.__stdout__.write(ended.output)
            sys.__stdout__.flush()
            code = ended.code
        finally:
            os._exit(code)

    def finish(self, prepare=lambda: None):
        """Run to the end and return the exit code."""
        return wait(self.start(prepare))

    @property
    def said(self):
        """Everything that the runs have printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def weights(self):
        """The bytes of the model, None where there is none."""
        path = self.model / "model.safetensors"
        return path.read_bytes() if path.is_file() else None


def wait(process, timeout=120):
    """Return the exit code of a process, -9 where it was killed."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError(f"no end after {timeout} seconds")


def signal_after(process, seconds, number):
    """Send a signal after so many seconds; a process that has ended already gets none."""
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def at_change(number, action):
    """Return what prepares a process to call `action` at its nth change of the disk."""

    def prepare():
        left = iter(range(number))

        def counted(function):
            def call(*arguments, **options):
                if next(left, None) is None:
                    action()
                return function(*arguments, **options)

            return call

        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))

    return prepare


def kill_self():
    """End this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
