"""Starts a SageMaker training job through boto3 (`lorry submit`); jobs.py follows it from then on."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from lorry.aws.s3 import files_in, split_uri, upload
from lorry.aws.session import client, code, errors, session
from lorry.config import CONTAINER_PATHS, JobOptions, TrainConfig
from lorry.errors import UserError
from lorry.names import CHANNELS, METRICS, SPLITS
from lorry.options import from_strings

log = logging.getLogger("lorry")

# SageMaker refuses a volume key for instances with disks of their own (g4dn, g5, p4d, ...), which encrypt in hardware.
EBS_ONLY = re.compile(r"ml\.(t3|[mcr][45]|c5n|[mcr][67]i|p[23])\.")

_S3_URI = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?"
_HUB_URI = r"hf://datasets/[^/?@]+/[^/?@]+([@?].+)?"
_NUMBER = r"(-?[0-9.]+(?:e[+-]?[0-9]+)?)"

METRIC_DEFINITIONS: list[dict[str, str]] = [
    {"Name": "train:loss", "Regex": f"training loss {_NUMBER}"},
    {"Name": "validation:loss", "Regex": f"eval loss {_NUMBER}"},
    {"Name": "train:lr", "Regex": rf"\blr={_NUMBER};"},
    {"Name": "train:pairs_per_second", "Regex": rf"\bpairs_per_second={_NUMBER};"},
    *(
        {"Name": f"{split}:{scorer}:{metric}", "Regex": f"{split}:{scorer}:{metric}={_NUMBER};"}
        for split in ("validation", "test")
        for scorer in ("base", "tuned")
        for metric in METRICS
    ),
    *(
        {"Name": f"validation:sample_{metric}", "Regex": f"validation:sample_{metric}={_NUMBER};"}
        for metric in ("ndcg@10_rankable", "pair_accuracy", "roc_auc")
    ),
]
"""What SageMaker reads from the log lines; it allows 40. The same as `examples/metric_definitions.json`."""


def submit(options: JobOptions, hyperparameters: dict[str, str]) -> str:
    """Start a training job and return its name; local folders are uploaded first.

    Args:
        options: The job.
        hyperparameters: Fields of `TrainConfig`, less `CONTAINER_PATHS`, as strings.

    Raises:
        UserError: An option or hyperparameter is wrong (nothing is uploaded then), or AWS refuses.
    """
    check(options, hyperparameters)
    made = session(options.region)
    name = options.job_name or f"lorry-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]
    s3 = client(made, "s3")
    for uri in _buckets(options).values():
        _check_bucket(s3, uri, made.region_name)
    channels = {}
    for channel in CHANNELS:
        source = getattr(options, channel)
        if source.startswith("hf://"):
            hyperparameters = {**hyperparameters, channel: source}  # not a channel: the job downloads it
        elif source and not source.startswith("s3://"):
            channels[channel] = f"{options.output.rstrip('/')}/input/{name}/{channel}/"
            log.info("copying %s to %s", source, channels[channel])
            upload(s3, Path(source), channels[channel], options.kms_key)
        elif source:
            channels[channel] = source
    with errors(f"starting the job {name}"):
        client(made, "sagemaker").create_training_job(**request(options, hyperparameters, name, channels))
    return name


def check(options: JobOptions, hyperparameters: dict[str, str]) -> None:
    """Raise a `UserError` for every mistake that can be seen without asking AWS."""
    _check_hyperparameters(options, hyperparameters)
    for needed in ("image", "role", "train", "output"):
        if not getattr(options, needed):
            raise UserError(f"no --{needed}", "A job needs --image, --role, --train and --output.")
    rules = {
        "image": (r"\d{12}\.dkr\.ecr[-a-z]*\.[^/]+/.+", "Give the URI that ./build_and_push.sh printed."),
        "role": (r"arn:aws[-a-z]*:iam::\d{12}:role/.+", "Give an ARN such as arn:aws:iam::123456789012:role/lorry."),
        "output": (_S3_URI, "Give a URI such as s3://bucket/lorry."),
        "checkpoints": (_S3_URI, "Give a URI such as s3://bucket/lorry/checkpoints."),
        "instance_type": (r"ml\.[-a-z0-9]+\.[-a-z0-9]+", "Give a SageMaker type such as ml.g4dn.xlarge."),
        "job_name": (r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", "Give up to 63 letters, digits and hyphens."),
    }
    for name, (pattern, hint) in rules.items():
        value = getattr(options, name)
        if value and not re.fullmatch(pattern, value):
            raise UserError(f"--{name} is {value!r}", hint)
    for channel in CHANNELS:
        source = getattr(options, channel)
        if source.lower().startswith("s3:"):
            if not re.fullmatch(_S3_URI, source):
                raise UserError(f"--{channel} is {source!r}", "Give a URI such as s3://bucket/pairs, or a folder.")
        elif source.startswith("hf://") and channel in SPLITS:
            if not re.fullmatch(_HUB_URI, source):
                raise UserError(f"--{channel} is {source!r}", "Give hf://datasets/OWNER/NAME, or a folder.")
            if options.network_isolation:
                raise UserError(
                    f"--{channel} {source} cannot be downloaded under network_isolation",
                    "Save it with save_to_disk and give that folder, or leave out --network_isolation.",
                )
        elif source:
            files_in(Path(source))
    _check_combinations(options)
    _tags(options.tags)


def request(
    options: JobOptions, hyperparameters: dict[str, str], name: str, channels: dict[str, str]
) -> dict[str, Any]:
    """Return the arguments of CreateTrainingJob.

    Args:
        options: The job.
        hyperparameters: As the user gave them.
        name: The job's name.
        channels: S3 URI of each channel.
    """
    seconds = round(options.max_runtime_hours * 3600)
    made: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": options.role,
        "AlgorithmSpecification": {
            "TrainingImage": options.image,
            "TrainingInputMode": options.input_mode,
            "MetricDefinitions": METRIC_DEFINITIONS,
        },
        "HyperParameters": {key.replace("-", "_"): str(value) for key, value in hyperparameters.items()},
        "OutputDataConfig": {"S3OutputPath": options.output},
        "ResourceConfig": {
            "InstanceType": options.instance_type,
            "InstanceCount": options.instance_count,
            "VolumeSizeInGB": options.volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": max(1, seconds)},
        "EnableNetworkIsolation": options.network_isolation,
        "EnableManagedSpotTraining": options.spot,
    }
    if channels:  # SageMaker refuses an empty list
        made["InputDataConfig"] = [_channel(options, channel, uri) for channel, uri in channels.items()]
    if options.spot:
        wait = round(options.max_wait_hours * 3600) or 2 * seconds
        made["StoppingCondition"]["MaxWaitTimeInSeconds"] = max(1, wait)
    checkpoints = options.checkpoints or (f"{options.output.rstrip('/')}/checkpoints/{name}" if options.spot else "")
    if checkpoints:
        made["CheckpointConfig"] = {"S3Uri": checkpoints}
    if options.kms_key:
        made["OutputDataConfig"]["KmsKeyId"] = options.kms_key
        if EBS_ONLY.match(options.instance_type):
            made["ResourceConfig"]["VolumeKmsKeyId"] = options.kms_key
    if options.keep_alive_seconds:
        made["ResourceConfig"]["KeepAlivePeriodInSeconds"] = options.keep_alive_seconds
    if options.subnets:
        made["VpcConfig"] = {"Subnets": _list(options.subnets), "SecurityGroupIds": _list(options.security_groups)}
    if options.tags:
        made["Tags"] = _tags(options.tags)
    return made


def _check_hyperparameters(options: JobOptions, hyperparameters: dict[str, str]) -> None:
    config = from_strings(TrainConfig, hyperparameters)
    for given in hyperparameters:
        if given.replace("-", "_") in CONTAINER_PATHS:
            raise UserError(f"{given} is SageMaker's to set", "Leave it out; --output says where results go.")
    base = config.pretrained_model
    if options.model:
        return
    if Path(base).is_dir() and not base.startswith("/opt/"):
        raise UserError(f"pretrained_model {base} is a folder here, not in the job", f"Upload it: --model {base}.")
    if options.network_isolation and base != "bundled" and not base.startswith("/"):
        hint = "Give the model as --model s3://... (or a folder), or take --pretrained_model bundled."
        raise UserError(f"pretrained_model {base} cannot be downloaded under network_isolation", hint)


def _check_combinations(options: JobOptions) -> None:
    if options.spot and 0 < options.max_wait_hours < options.max_runtime_hours:
        raise UserError("max_wait_hours is below max_runtime_hours", "It counts the run as well; give more, or none.")
    if options.max_wait_hours and not options.spot:
        raise UserError("max_wait_hours is for spot jobs", "Add --spot, or leave it out.")
    if options.spot and options.keep_alive_seconds:
        raise UserError("SageMaker keeps no spot instance warm", "Leave out --spot or --keep_alive_seconds.")
    if bool(options.subnets) != bool(options.security_groups):
        raise UserError("a VPC needs both subnets and security groups", "Give --subnets and --security_groups.")


def _check_bucket(s3: Any, uri: str, region: str) -> None:
    """Find a missing bucket, or one of another region, now; the job would find it minutes later."""
    bucket = split_uri(uri)[0]
    with errors(f"looking at the bucket {bucket}"):
        try:
            found = s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if code(error) == "404":
                hint = f"Create it (`aws s3 mb s3://{bucket} --region {region}`) or correct {uri}."
                raise UserError(f"there is no bucket {bucket}", hint) from error
            if code(error) == "403":
                return  # only listing may be denied; the role's rights count, and an upload says what it lacks
            raise
    home = found.get("BucketRegion", region)
    if home != region:
        raise UserError(f"the bucket {bucket} is in {home}, the job in {region}", "SageMaker wants both in one region.")


def _buckets(options: JobOptions) -> dict[str, str]:
    """Return an s3:// URI for each bucket that the job touches."""
    given = [options.output, options.checkpoints, *(getattr(options, channel) for channel in CHANNELS)]
    return {split_uri(uri)[0]: uri for uri in reversed(given) if uri.startswith("s3://")}


def _channel(options: JobOptions, channel: str, uri: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    # A base model is read completely and in no order: streaming it gains nothing.
    mode = "File" if channel == "model" else options.input_mode
    return {"ChannelName": channel, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def _tags(text: str) -> list[dict[str, str]]:
    made = []
    for item in _list(text):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key or not equals:
            raise UserError(f"--tags has {item!r}", "Write key=value,key=value.")
        made.append({"Key": key, "Value": value})
    return made


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
