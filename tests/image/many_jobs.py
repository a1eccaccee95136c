"""Run `train` for every folder in /jobs, in this one container: each in a fork, so that libraries are loaded once."""

import importlib
import json
import os
import sys
from pathlib import Path

LOADED = ("lorry.pipeline", "lorry.container.train", "boto3", "gevent", "werkzeug")


def run(job):
    """Run one job and return its exit code."""
    settings = json.loads((job / "settings.json").read_text())
    os.environ.update(settings["environment"], SAGEMAKER_BASE_DIR=str(job / "ml"))
    sys.argv = ["train", *settings["arguments"]]
    try:
        sys.modules["lorry.container.train"].train()
    except SystemExit as end:
        return end.code
    return 0


for name in LOADED:
    importlib.import_module(name)
for folder in sorted(Path("/jobs").iterdir()):
    child = os.fork()
    if child:
        (folder / "code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        continue
    with (folder / "log").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    code = run(folder)
    sys.stdout.flush()
    os._exit(code)
