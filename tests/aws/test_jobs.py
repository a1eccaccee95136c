"""Jobs against moto's AWS: what is told while they run and at their end."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from botocore import exceptions as aws

from cloud import REGION, fails, job_of, options, refusal
from lorry.aws import jobs
from lorry.aws.submit import submit

pytest_plugins = ("cloud",)
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Scenario:
    """A job whose story goes on a step at each look: statuses, log lines, an end."""

    def __init__(self, monkeypatch, steps, **end):
        submit(options(job_name="j", spot=True), {})
        self.job = job_of("j")
        self.job.training_job_status, self.job.secondary_status = "InProgress", "Starting"
        self.job.secondary_status_transitions = []
        self.steps, self.end, self.slept = list(steps), end, []
        self.stream = ""
        monkeypatch.setattr(jobs.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.slept.append(seconds)
        if self.steps:
            kind, *rest = self.steps.pop(0)
            getattr(self, kind)(*rest)
        elif self.job.training_job_status == "InProgress":
            for name, value in self.end.items():
                setattr(self.job, name, value)

    def status(self, status, message):
        when = START + timedelta(seconds=len(self.slept))
        self.job.secondary_status = status
        self.job.secondary_status_transitions.append({"Status": status, "StartTime": when, "StatusMessage": message})

    def logs(self, stream, *lines):
        cloudwatch = boto3.client("logs")
        if not self.stream:
            cloudwatch.create_log_group(logGroupName=jobs.LOG_GROUP)
        if stream != self.stream:
            cloudwatch.create_log_stream(logGroupName=jobs.LOG_GROUP, logStreamName=stream)
        self.stream = stream
        now = int(datetime.now(UTC).timestamp() * 1000)
        events = [{"timestamp": now, "message": line} for line in lines]
        cloudwatch.put_log_events(logGroupName=jobs.LOG_GROUP, logStreamName=stream, logEvents=events)


DONE = {"training_job_status": "Completed", "secondary_status": "Completed"}
BILL = {"training_time_in_seconds": 400, "billable_time_in_seconds": 124}


def test_follow_tells_each_status_and_each_line_once_and_ends_with_artefact_and_bill(cloud, monkeypatch):
    Scenario(
        monkeypatch,
        [
            ("status", "Starting", "Preparing"),
            ("status", "Downloading", "Downloading the image"),
            ("logs", "j/algo-1-1", "training loss 0.5", "training loss 0.4"),
            ("logs", "j/algo-1-1", "training loss 0.3"),
            ("logs", "j/algo-1-2", "resumed at step 3"),
        ],
        **DONE,
        **BILL,
    )
    told = list(jobs.follow("j", poll_seconds=0))
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in told] == [
        "Starting: Preparing",
        "Downloading: Downloading the image",
        "training loss 0.5",
        "training loss 0.4",
        "training loss 0.3",
        "resumed at step 3",
        "job j: Completed",
        "model: s3://shop/lorry/j/output/model.tar.gz",
        "billable seconds: 124 of 400, spot savings 69 %",
    ]


def test_lines_that_come_after_the_end_are_told(cloud, monkeypatch):
    scenario = Scenario(monkeypatch, [])
    scenario.job.training_job_status = scenario.job.secondary_status = "Completed"
    scenario.steps = [("logs", "j/algo-1-1", "saved")]
    assert next(iter(jobs.follow("j", poll_seconds=0))) == "saved"


def test_a_failed_job_is_an_error_with_its_reason(cloud, monkeypatch):
    reason = "AlgorithmError: no train channel.\nMount one."
    Scenario(monkeypatch, [], training_job_status="Failed", secondary_status="Failed", failure_reason=reason)
    fails(
        lambda: jobs.follow("j", poll_seconds=0), "the job j failed: AlgorithmError: no train channel. Mount", "logs j"
    )


def test_a_stopped_job_says_so_and_how_to_continue(cloud, monkeypatch):
    Scenario(monkeypatch, [], training_job_status="Stopped", secondary_status="MaxRuntimeExceeded", **BILL)
    told = "\n".join(jobs.follow("j", poll_seconds=0))
    assert "job j: Stopped (it ran for max_runtime_hours)" in told
    assert "--checkpoints s3://shop/lorry/checkpoints/j" in told


def test_throttling_and_a_network_that_is_away_are_waited_out(cloud, calls, monkeypatch):
    scenario = Scenario(monkeypatch, [("status", "Starting", "x")], **DONE)
    away = aws.EndpointConnectionError(endpoint_url="https://x")
    calls.answer("DescribeTrainingJob", [refusal("ThrottlingException"), away])
    assert "job j: Completed" in list(jobs.follow("j", poll_seconds=1))
    assert scenario.slept[:3] == [1, 2, 1]


def test_throttling_that_never_ends_is_an_error(cloud, calls, monkeypatch):
    Scenario(monkeypatch, [])
    calls.answer("DescribeTrainingJob", refusal("ThrottlingException"))
    fails(lambda: jobs.follow("j", poll_seconds=0), "throttles", "again")


def test_without_the_right_to_read_logs_the_status_is_still_followed(cloud, calls, monkeypatch):
    Scenario(monkeypatch, [("status", "Starting", "x"), ("status", "Training", "y")], **DONE)
    calls.answer("DescribeLogStreams", refusal("AccessDeniedException"))
    told = list(jobs.follow("j", poll_seconds=0))
    assert sum("no log lines" in line for line in told) == 1
    assert told[-2].startswith("job j: Completed") or "job j: Completed" in told
    fails(lambda: jobs.logs("j"), "AWS denies it", "iam-user-policy.json")


def test_ctrl_c_ends_the_following_and_not_the_job(nobody):
    script = textwrap.dedent(
        """
        import sys
        import boto3
        from moto import mock_aws
        from cloud import job_of, options
        from lorry.aws import jobs
        from lorry.aws.submit import submit
        with mock_aws():
            boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="shop")
            submit(options(job_name="j", region="us-east-1"), {})
            job_of("j", "us-east-1").training_job_status = "InProgress"
            try:
                for line in jobs.follow("j", "us-east-1"):
                    print(line, flush=True)
            except KeyboardInterrupt:
                print(jobs.going_on("j"), *jobs.status("j", "us-east-1"))
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert "Starting" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "The job j is still running" in rest
    assert "lorry jobs stop j" in rest
    assert "InProgress" in rest


def test_status_says_how_it_stands(cloud, monkeypatch):
    scenario = Scenario(monkeypatch, [])
    assert next(jobs.status("j")) == "j: InProgress (Starting), ml.g4dn.xlarge, spot"
    scenario.job.training_job_status = scenario.job.secondary_status = "Failed"
    scenario.job.failure_reason = "AlgorithmError: x"
    assert "reason: AlgorithmError: x" in list(jobs.status("j"))


def test_logs_are_all_lines_so_far_or_say_that_there_are_none(cloud, monkeypatch):
    scenario = Scenario(monkeypatch, [])
    assert list(jobs.logs("j")) == ["j has printed nothing yet; it is InProgress (Starting)"]
    lines = [f"line {n}" for n in range(30)]
    scenario.logs("j/algo-1-1", *lines)
    assert list(jobs.logs("j")) == lines
    scenario.logs("jj/algo-1-1", "another job's")
    assert list(jobs.logs("j")) == lines


def test_stop_asks_once_and_says_what_happens(cloud, calls, monkeypatch):
    scenario = Scenario(monkeypatch, [])
    calls.answer("StopTrainingJob", {})
    assert "120 seconds" in jobs.stop("j")
    assert calls.of("StopTrainingJob") == [{"TrainingJobName": "j"}]
    scenario.job.training_job_status = "Completed"
    assert "ended already: Completed" in jobs.stop("j")
    assert len(calls.of("StopTrainingJob")) == 1


@pytest.mark.parametrize("command", [jobs.status, jobs.logs, jobs.stop, lambda name: jobs.fetch(name, Path("x"))])
def test_a_job_that_is_not_there(cloud, calls, command):
    calls.answer("DescribeTrainingJob", refusal("ValidationException", "Requested resource not found."))
    fails(lambda: command("absent"), f"absent in {REGION}", "list-training-jobs")
