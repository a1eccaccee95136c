"""Takes the place of benchmarks/contestants.py and of `lorry train`: works at once, fails as and when FAULTS says.

FAULTS is JSON, {contestant: [how, when]}. How: kill, crash, hang, exit or memory. When: `start N`, while the process of
that number gets ready; `turn N`, instead of answering (turn 0 warms up); `after N`, between that turn and the next.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

FIGURES = {"steps": 1, "pairs": 10, "tokens": 200, "flop": 1e9, "seconds": 2.0, "peak_memory_bytes": 10**9}
task, name = sys.argv[1:3]
if Path(sys.argv[0]).name == "lorry":
    task, name = "first_step", "lorry"
elif task == "peak":
    name = "peak"
how, when = json.loads(os.environ["FAULTS"]).get(name, ("", ""))


def tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def fail_at(moment):
    if moment != when:
        return
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crash":
        sys.stderr.write("a warning\n" * 20_000)  # more than a pipe holds
        raise ValueError("no such number")
    if how == "hang":
        time.sleep(600)
    if how == "memory":
        tell('{"error": "out of memory"}')
    sys.exit(0)


def starts():
    """Return how many processes of this contestant were started, this one included."""
    with Path(os.environ["STARTS"], name).open("a+") as file:
        file.write("x")
        return file.tell()


fail_at(f"start {starts()}")
if task == "first_step":
    tell("step=1/9 training loss 0.5")
    time.sleep(600)
tell('{"ready": true}')
for turn, _ in enumerate(sys.stdin):
    fail_at(f"turn {turn}")
    tell(json.dumps(FIGURES))
    fail_at(f"after {turn}")
