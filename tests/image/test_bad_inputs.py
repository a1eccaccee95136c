"""Bad inputs of every kind, in the real image: one line in the log, exit code 1, the same line in the failure file."""

import json
import re
import time
from pathlib import Path

import pytest
from bad_jobs import JOBS
from engine import QUIET, docker


@pytest.fixture(scope="module")
def folders(image, tmp_path_factory):
    """Run all jobs in one container; return the folder of each."""
    root = tmp_path_factory.mktemp("jobs")
    folders = {name: root / name.replace(" ", "-") for name in JOBS}
    for name, job in JOBS.items():
        job.write(folders[name] / "ml")
        settings = {"arguments": job.arguments, "environment": job.environment}
        (folders[name] / "settings.json").write_text(json.dumps(settings))
    script = Path(__file__).with_name("many_jobs.py")
    volumes = ["--volume", f"{root}:/jobs", "--volume", f"{script}:/many_jobs.py:ro"]
    began = time.monotonic()
    docker("run", "--rm", *QUIET, "--env", "HF_HUB_OFFLINE=1", *volumes, image, "python", "/many_jobs.py")
    print(f"{len(JOBS)} jobs in {time.monotonic() - began:.0f} s")  # noqa: T201 (seen with pytest -s)
    return folders


@pytest.mark.parametrize("name", JOBS)
def test_a_bad_input_is_one_line(folders, name):
    code, log = (folders[name] / "code").read_text(), (folders[name] / "log").read_text()
    assert code == "1", log
    failure = (folders[name] / "ml" / "output" / "failure").read_text()
    print(f"{name}: {failure}")  # noqa: T201 (the words as users see them: pytest -s)
    assert JOBS[name].said in failure
    assert re.fullmatch(r"[^\n]+\S\. \S[^\n]+", failure), "not one line of cause and hint"
    assert len(failure) <= 1024
    assert log.count(failure) == 1
    assert "Traceback" not in log
