"""SageMaker training jobs once they are submitted: follow, show, stop and fetch (`lorry jobs`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore import exceptions as aws

from lorry.aws.s3 import fetch_archive
from lorry.aws.session import DENIED, THROTTLED, client, code, errors, explain, session
from lorry.errors import UserError

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDED = ("Completed", "Failed", "Stopped")


def follow(name: str, region: str = "", poll_seconds: float = 5.0) -> Iterator[str]:
    """Yield the job's changes of status and its log lines as they come, and at its end what came of it.

    Args:
        name: The job.
        region: AWS region; empty: the AWS configuration's.
        poll_seconds: Seconds between two looks.

    Raises:
        UserError: The job failed (its reason is given), there is none, or AWS refuses.
    """
    made = session(region)
    sagemaker, lines = client(made, "sagemaker"), _LogLines(client(made, "logs"), name)
    shown: set[tuple[Any, ...]] = set()
    failures = 0
    while True:
        try:
            job = sagemaker.describe_training_job(TrainingJobName=name)
            for step in job.get("SecondaryStatusTransitions", []):
                status = (step["StartTime"], step["Status"], step.get("StatusMessage", ""))
                if status not in shown:
                    shown.add(status)
                    yield f"{status[0].astimezone():%H:%M:%S} {status[1]}: {status[2]}"
            yield from lines.fresh()
            failures = 0
        except (aws.BotoCoreError, aws.ClientError) as error:
            failures += 1
            if not _passing(error) or failures > 20:
                raise explain(error, f"following the job {name}") from error
            job = {}
        if job.get("TrainingJobStatus") in ENDED:
            break
        time.sleep(poll_seconds * max(1, failures))
    time.sleep(poll_seconds)  # the last lines reach CloudWatch a little after the end
    with errors(f"reading the log of {name}"):
        yield from lines.fresh()
    yield from _outcome(job)


def going_on(name: str) -> str:
    """Return the message for a user who stops following a job."""
    return f"The job {name} is still running: see `lorry jobs status {name}`; `lorry jobs stop {name}` ends it."


def status(name: str, region: str = "") -> Iterator[str]:
    """Yield lines that say how the job stands."""
    made = session(region)
    job = _describe(made, name)
    where = job["ResourceConfig"]["InstanceType"] + (", spot" if job.get("EnableManagedSpotTraining") else "")
    yield f"{name}: {job['TrainingJobStatus']} ({job['SecondaryStatus']}), {where}"
    yield f"created: {job['CreationTime'].astimezone():%Y-%m-%d %H:%M:%S}"
    if job.get("FailureReason"):
        yield f"reason: {' '.join(job['FailureReason'].split())}"
    for metric in job.get("FinalMetricDataList", []):
        yield f"{metric['MetricName']}={metric['Value']:.4f}"
    yield from _results(job)


def logs(name: str, region: str = "") -> Iterator[str]:
    """Yield every log line of the job so far."""
    made = session(region)
    job = _describe(made, name)
    some = False
    with errors(f"reading the log of {name}"):
        for line in _LogLines(client(made, "logs"), name, must=True).fresh():
            some = True
            yield line
    if not some:
        yield f"{name} has printed nothing yet; it is {job['TrainingJobStatus']} ({job['SecondaryStatus']})"


def stop(name: str, region: str = "") -> str:
    """Ask SageMaker to stop the job and return a message; the job gets 120 seconds to write a checkpoint."""
    made = session(region)
    state = _describe(made, name)["TrainingJobStatus"]
    if state in ENDED:
        return f"{name} has ended already: {state}"
    with errors(f"stopping the job {name}"):
        client(made, "sagemaker").stop_training_job(TrainingJobName=name)
    return f"{name} is stopping; it has 120 seconds to write a checkpoint and, unless on_stop=checkpoint, its model"


def fetch(name: str, folder: Path, region: str = "") -> list[Path]:
    """Unpack what the job wrote: its model as `folder/model`, its metrics and report as `folder/output`.

    Returns:
        The folders written.

    Raises:
        UserError: The job still runs or left nothing, a folder exists, or an archive is unsafe.
    """
    made = session(region)
    job = _describe(made, name)
    if job["TrainingJobStatus"] not in ENDED:
        state = f"{job['TrainingJobStatus']} ({job['SecondaryStatus']})"
        raise UserError(f"the job {name} has not ended: {state}", f"Wait, or `lorry jobs stop {name}`.")
    root = f"{job['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output"
    sources = {
        "model": job.get("ModelArtifacts", {}).get("S3ModelArtifacts") or f"{root}/model.tar.gz",
        "output": f"{root}/output.tar.gz",
    }
    s3 = client(made, "s3")
    for part in sources:  # both or none, as far as can be known beforehand
        if (folder / part).exists():
            raise UserError(f"{folder / part} exists already", "Give another folder, or move that one away.")
    written = [folder / part for part, uri in sources.items() if fetch_archive(s3, uri, folder / part)]
    if not written:
        reason = job.get("FailureReason", f"it ended as {job['SecondaryStatus']}")
        raise UserError(f"the job {name} left nothing: {reason}", f"`lorry jobs logs {name}` shows what it printed.")
    return written


class _LogLines:
    """The log lines of a job, each given once.

    Args:
        cloudwatch: A boto3 client of CloudWatch Logs.
        name: The job.
        must: Whether a user without the right to read logs is an error; else it is said once, in place of the lines.
    """

    def __init__(self, cloudwatch: Any, name: str, *, must: bool = False) -> None:
        self.cloudwatch = cloudwatch
        self.name = name
        self.must = must
        self.denied = False
        self.tokens: dict[str, str] = {}  # how far each stream is read

    def fresh(self) -> Iterator[str]:
        """Yield the lines that came since the last call."""
        if self.denied:
            return
        try:
            for stream in self._streams():
                yield from self._read(stream)
        except aws.ClientError as error:
            if self.must or code(error) not in DENIED:
                raise
            self.denied = True
            yield f"(no log lines: your user may not read {LOG_GROUP}; examples/iam-user-policy.json has the right)"

    def _streams(self) -> list[str]:
        pages = self.cloudwatch.get_paginator("describe_log_streams").paginate(
            logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self.name}/"
        )
        try:
            found = [stream for page in pages for stream in page["logStreams"]]
        except self.cloudwatch.exceptions.ResourceNotFoundException:
            return []  # the account's first job: the log group comes with its first line
        return [s["logStreamName"] for s in sorted(found, key=lambda s: s.get("creationTime", 0))]

    def _read(self, stream: str) -> Iterator[str]:
        while True:
            token = self.tokens.get(stream)
            page = self.cloudwatch.get_log_events(
                logGroupName=LOG_GROUP,
                logStreamName=stream,
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
            self.tokens[stream] = page["nextForwardToken"]
            for event in page["events"]:
                yield event["message"].rstrip()
            if page["nextForwardToken"] == token:
                return


def _describe(made: boto3.Session, name: str) -> dict[str, Any]:
    with errors(f"looking for the job {name} in {made.region_name}"):
        found: dict[str, Any] = client(made, "sagemaker").describe_training_job(TrainingJobName=name)
        return found


def _passing(error: Exception) -> bool:
    """Return whether waiting may help: a throttled call or a network that is away for a moment."""
    if isinstance(error, aws.ClientError):
        return code(error) in THROTTLED
    return isinstance(error, aws.ConnectionError | aws.HTTPClientError)


def _outcome(job: dict[str, Any]) -> Iterator[str]:
    """Yield how the job ended and what it left; raise where it failed."""
    name, state = job["TrainingJobName"], job["SecondaryStatus"]
    if job["TrainingJobStatus"] == "Failed":
        reason = job.get("FailureReason", "AWS gives no reason")
        raise UserError(f"the job {name} failed: {reason}", f"`lorry jobs logs {name}` shows all that it printed.")
    why = {
        "MaxRuntimeExceeded": " (it ran for max_runtime_hours)",
        "MaxWaitTimeExceeded": " (it waited and ran for max_wait_hours)",
    }.get(state, "")
    yield f"job {name}: {job['TrainingJobStatus']}{why}"
    if job["TrainingJobStatus"] == "Stopped" and job.get("CheckpointConfig"):
        yield f"to continue it, submit with --checkpoints {job['CheckpointConfig']['S3Uri']}"
    yield from _results(job)


def _results(job: dict[str, Any]) -> Iterator[str]:
    model = job.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if model and job["TrainingJobStatus"] in ENDED:
        yield f"model: {model}"
    billable, trained = job.get("BillableTimeInSeconds"), job.get("TrainingTimeInSeconds")
    if billable is not None:
        saved = ""
        if job.get("EnableManagedSpotTraining") and trained:
            saved = f" of {trained}, spot savings {100 * (1 - billable / trained):.0f} %"
        yield f"billable seconds: {billable}{saved}"
