"""Submitting against moto's AWS: what is sent, what is uploaded, and every refusal in one line with its mend."""

import json
import re
import runpy

import boto3
import pytest
from botocore import exceptions as aws

from cloud import EXAMPLES, IMAGE, REGION, ROLE, fails, options, refusal
from lorry.aws.submit import METRIC_DEFINITIONS, submit

pytest_plugins = ("cloud",)


def test_the_least_that_is_needed_makes_a_job_and_does_not_wait(cloud, calls):
    name = submit(options(), {"epochs": "2", "lora-rank": "16", "small_version": "true"})
    assert re.fullmatch(r"lorry-\d{8}-\d{6}-\d{3}", name)
    (sent,) = calls.of("CreateTrainingJob")
    assert sent["HyperParameters"] == {"epochs": "2", "lora_rank": "16", "small_version": "true"}
    assert sent["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert sent["AlgorithmSpecification"]["TrainingInputMode"] == "File"
    assert sent["ResourceConfig"] == {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50}
    assert sent["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400}
    assert sent["EnableManagedSpotTraining"] is False
    assert not {"CheckpointConfig", "VpcConfig", "Tags"} & set(sent)
    (channel,) = sent["InputDataConfig"]
    assert channel["ChannelName"] == "train"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == "s3://shop/train"
    assert not calls.of("DescribeTrainingJob")
    assert boto3.client("sagemaker").describe_training_job(TrainingJobName=name)["RoleArn"] == ROLE


def test_every_option_reaches_aws(cloud, calls):
    given = options(
        validation="s3://shop/validation",
        test="s3://shop/test",
        probe="s3://shop/sts",
        model="s3://shop/base",
        instance_type="ml.m5.xlarge",
        instance_count=2,
        volume_gb=80,
        max_runtime_hours=0.5,
        job_name="tuesday",
        tags="team=search, cost=a=b",
        subnets="subnet-1,subnet-2",
        security_groups="sg-1",
        kms_key="key-1",
        network_isolation=True,
        keep_alive_seconds=600,
        input_mode="FastFile",
        checkpoints="s3://shop/ck",
    )
    assert submit(given, {}) == "tuesday"
    (sent,) = calls.of("CreateTrainingJob")
    modes = {channel["ChannelName"]: channel["InputMode"] for channel in sent["InputDataConfig"]}
    assert modes == {
        "train": "FastFile",
        "validation": "FastFile",
        "test": "FastFile",
        "probe": "FastFile",
        "model": "File",
    }
    assert sent["ResourceConfig"] == {
        "InstanceType": "ml.m5.xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 80,
        "VolumeKmsKeyId": "key-1",
        "KeepAlivePeriodInSeconds": 600,
    }
    assert sent["OutputDataConfig"] == {"S3OutputPath": "s3://shop/lorry", "KmsKeyId": "key-1"}
    assert sent["StoppingCondition"] == {"MaxRuntimeInSeconds": 1800}
    assert sent["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert sent["Tags"] == [{"Key": "team", "Value": "search"}, {"Key": "cost", "Value": "a=b"}]
    assert sent["EnableNetworkIsolation"] is True
    assert sent["CheckpointConfig"] == {"S3Uri": "s3://shop/ck"}


def test_spot_gets_a_checkpoint_folder_and_time_to_wait(cloud, calls):
    submit(options(spot=True, max_runtime_hours=2, job_name="a"), {})
    submit(options(spot=True, max_runtime_hours=2, max_wait_hours=3, checkpoints="s3://shop/ck", job_name="b"), {})
    first, second = calls.of("CreateTrainingJob")
    assert first["EnableManagedSpotTraining"] is True
    assert first["CheckpointConfig"] == {"S3Uri": "s3://shop/lorry/checkpoints/a"}
    assert first["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 14400}
    assert second["CheckpointConfig"] == {"S3Uri": "s3://shop/ck"}
    assert second["StoppingCondition"]["MaxWaitTimeInSeconds"] == 10800


@pytest.mark.parametrize(
    ("instance", "asked"), [("ml.g4dn.xlarge", False), ("ml.g5.xlarge", False), ("ml.p3.2xlarge", True)]
)
def test_no_volume_key_for_instances_with_disks_of_their_own(cloud, calls, instance, asked):
    submit(options(kms_key="key-1", instance_type=instance), {})
    assert ("VolumeKmsKeyId" in calls.of("CreateTrainingJob")[0]["ResourceConfig"]) is asked


def test_local_folders_are_uploaded_first(cloud, calls, tmp_path):
    (tmp_path / "pairs" / "more").mkdir(parents=True)
    (tmp_path / "pairs" / "a.csv").write_text("query,text,label\n")
    (tmp_path / "pairs" / "more" / "b.csv").write_text("x")
    (tmp_path / "pairs" / ".DS_Store").write_text("x")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    given = options(
        train=str(tmp_path / "pairs"), model=str(tmp_path / "base"), output="s3://shop/lorry/", job_name="j"
    )
    submit(given, {})
    listed = boto3.client("s3").list_objects_v2(Bucket="shop")["Contents"]
    assert {item["Key"] for item in listed} == {
        "lorry/input/j/train/a.csv",
        "lorry/input/j/train/more/b.csv",
        "lorry/input/j/model/config.json",
    }
    body = boto3.client("s3").get_object(Bucket="shop", Key="lorry/input/j/train/a.csv")["Body"].read()
    assert body == b"query,text,label\n"
    uris = [c["DataSource"]["S3DataSource"]["S3Uri"] for c in calls.of("CreateTrainingJob")[0]["InputDataConfig"]]
    assert uris == ["s3://shop/lorry/input/j/train/", "s3://shop/lorry/input/j/model/"]


def test_an_upload_is_encrypted_with_the_key(cloud, calls, tmp_path):
    (tmp_path / "a.csv").write_text("x")
    submit(options(train=str(tmp_path), kms_key="key-1"), {})
    assert calls.of("PutObject")[0]["SSEKMSKeyId"] == "key-1"


def test_the_metric_definitions_read_our_log_lines():
    lines = [
        "step=120; training loss 0.1234; lr=0.001; pairs_per_second=364.2;",
        "eval loss 0.5;",
        "validation:tuned:ndcg@10=0.9123;",
        "test:base:spearman=-0.0512;",
        "step=121; training loss 1e-05; lr=9.8e-06; pairs_per_second=12;",
        "test:tuned:roc_auc=nan;",
    ]
    read = [
        (definition["Name"], found[1])
        for line in lines
        for definition in METRIC_DEFINITIONS
        if (found := re.search(definition["Regex"], line))
    ]
    assert read == [
        ("train:loss", "0.1234"),
        ("train:lr", "0.001"),
        ("train:pairs_per_second", "364.2"),
        ("validation:loss", "0.5"),
        ("validation:tuned:ndcg@10", "0.9123"),
        ("test:base:spearman", "-0.0512"),
        ("train:loss", "1e-05"),
        ("train:lr", "9.8e-06"),
        ("train:pairs_per_second", "12"),
    ]


def test_the_metric_definitions_keep_to_the_limits_and_are_shipped_as_json():
    assert len(METRIC_DEFINITIONS) <= 40
    assert all(len(d["Name"]) <= 255 and len(d["Regex"]) <= 500 for d in METRIC_DEFINITIONS)
    assert json.loads((EXAMPLES / "metric_definitions.json").read_text()) == METRIC_DEFINITIONS


@pytest.mark.parametrize(
    ("given", "hyperparameters", "cause", "mend"),
    [
        ({}, {"epoch": "2"}, "unknown hyperparameter epoch", "epochs"),
        ({}, {"epochs": "two"}, "epochs is 'two'", "whole number"),
        ({}, {"model_dir": "x"}, "model_dir is SageMaker's", "--output"),
        ({}, {"pretrained_model": "HERE"}, "not in the job", "--model"),
        ({"network_isolation": True}, {}, "cannot be downloaded", "bundled"),
        ({"image": ""}, {}, "no --image", "--role"),
        ({"role": ""}, {}, "no --role", "--role"),
        ({"train": ""}, {}, "no --train", "--train"),
        ({"output": ""}, {}, "no --output", "--output"),
        ({"image": "lorry"}, {}, "--image is 'lorry'", "build_and_push.sh"),
        ({"role": "lorry"}, {}, "--role is 'lorry'", "arn:aws:iam::"),
        ({"output": "out"}, {}, "--output is 'out'", "s3://"),
        ({"checkpoints": "/tmp/x"}, {}, "--checkpoints", "s3://"),
        ({"train": "s3:/shop/train"}, {}, "--train is", "s3://"),
        ({"train": "S3://shop/train"}, {}, "--train is", "s3://"),
        ({"train": "/nowhere"}, {}, "/nowhere does not exist", "folder"),
        ({"validation": __file__}, {}, "is a file", "folder"),
        ({"test": "EMPTY"}, {}, "holds no file", "tables"),
        ({"instance_type": "g4dn.xlarge"}, {}, "g4dn.xlarge", "ml.g4dn.xlarge"),
        ({"job_name": "my job"}, {}, "my job", "hyphens"),
        ({"tags": "team"}, {}, "'team'", "key=value"),
        ({"spot": True, "max_runtime_hours": 2, "max_wait_hours": 1}, {}, "below max_runtime_hours", "more"),
        ({"max_wait_hours": 30}, {}, "for spot", "--spot"),
        ({"spot": True, "keep_alive_seconds": 60}, {}, "no spot instance warm", "--spot"),
        ({"subnets": "subnet-1"}, {}, "both", "--security_groups"),
    ],
)
def test_what_is_wrong_is_said_before_aws_is_asked(calls, tmp_path, given, hyperparameters, cause, mend):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "HERE": str(tmp_path)}
    given = {name: places.get(value, value) for name, value in given.items()}
    hyperparameters = {name: places.get(value, value) for name, value in hyperparameters.items()}
    fails(lambda: submit(options(**given), hyperparameters), cause, mend)
    assert not calls


@pytest.mark.parametrize(
    ("error", "cause", "mend"),
    [
        (
            refusal("AccessDeniedException", "User: u is not authorized to perform: iam:PassRole"),
            "PassRole",
            "iam-user-",
        ),
        (refusal("ExpiredTokenException"), "expired", "aws sso login"),
        (refusal("UnrecognizedClientException"), "does not know these credentials", "aws configure"),
        (
            refusal(
                "ResourceLimitExceeded",
                "The account-level service limit 'ml.g4dn.xlarge for spot training job usage' is 0 Instances, with "
                "current utilization of 0 Instances and a request delta of 1 Instances. Please contact AWS.",
            ),
            "0 Instances",
            '"ml.g4dn.xlarge for spot training job usage" in the console: Service Quotas',
        ),
        (refusal("ResourceInUse", "Training job names must be unique"), "taken", "--job_name"),
        (refusal("ValidationException", "Could not assume role arn:x"), "Could not assume", "iam-role-trust.json"),
        (refusal("ValidationException", "No S3 objects found under S3 URL s3://a"), "No S3 objects", "S3 URI"),
        (refusal("ValidationException", "Cannot find repository: lorry"), "Cannot find repository", "build_and_push"),
        (
            refusal("ValidationException", f"failed to satisfy enum value set: [{'ml.a.b, ' * 200}]"),
            "enum value set: those that AWS documents",
            "Correct",
        ),
        (refusal("ThrottlingException", "Rate exceeded"), "throttles", "again"),
        (refusal("InternalFailure", "oops\n  oops"), "InternalFailure: oops oops", "AWS's own"),
        (aws.EndpointConnectionError(endpoint_url="https://x"), "Could not connect", "network"),
    ],
)
def test_what_aws_refuses_is_one_line_with_the_mend(cloud, calls, error, cause, mend):
    calls.answer("CreateTrainingJob", error)
    fails(lambda: submit(options(), {}), cause, mend)


def test_no_credentials_no_region_and_no_such_profile(nobody, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    fails(lambda: submit(options(), {}), "no AWS region", "--region")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fails(lambda: submit(options(region=REGION), {}), "no AWS credentials", "aws configure")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    fails(lambda: submit(options(region=REGION), {}), "nobody", "list-profiles")


def test_a_bucket_that_is_missing_or_elsewhere_is_found_before_the_upload(cloud, calls, tmp_path):
    (tmp_path / "a.csv").write_text("x")
    fails(lambda: submit(options(train=str(tmp_path), output="s3://absent/x"), {}), "no bucket absent", "aws s3 mb")
    fails(lambda: submit(options(validation="s3://typo/x"), {}), "no bucket typo", "s3://typo/x")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="far")
    fails(lambda: submit(options(train=str(tmp_path), output="s3://far/x"), {}), "far is in us-east-1", "one region")
    assert not calls.of("PutObject")


def test_a_bucket_that_may_not_be_listed_does_not_stop_a_job_but_a_denied_upload_does(cloud, calls, tmp_path):
    calls.answer("HeadBucket", refusal("403", "Forbidden", "HeadBucket"))
    submit(options(), {})
    (tmp_path / "a.csv").write_text("x")
    calls.answer("PutObject", refusal("AccessDenied", "Access Denied", "PutObject"))
    fails(lambda: submit(options(train=str(tmp_path)), {}), "AWS denies it", "iam-user-policy.json")


@pytest.mark.parametrize("name", ["iam-user-policy", "iam-role-policy", "iam-role-trust"])
def test_the_policies_are_such_as_iam_takes(cloud, name):
    text = (EXAMPLES / f"{name}.json").read_text()
    iam = boto3.client("iam")
    if name == "iam-role-trust":
        iam.create_role(RoleName="lorry", AssumeRolePolicyDocument=text)
    else:
        iam.create_policy(PolicyName=name, PolicyDocument=text)
        assert "s3:*" not in text


def test_the_boto3_example_starts_the_job_that_it_says(cloud, calls):
    example = runpy.run_path(str(EXAMPLES / "boto3_job.py"))
    name = example["main"](["--image", IMAGE, "--role", ROLE, "--train", "s3://shop/train", "--output", "s3://shop/o"])
    (sent,) = calls.of("CreateTrainingJob")
    assert sent["TrainingJobName"] == name
    assert sent["AlgorithmSpecification"]["MetricDefinitions"] == METRIC_DEFINITIONS
    assert sent["StoppingCondition"]["MaxWaitTimeInSeconds"] >= sent["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert all(isinstance(value, str) for value in sent["HyperParameters"].values())
    assert "lorry" not in re.findall(r"^(?:import|from) (\w+)", (EXAMPLES / "boto3_job.py").read_text(), re.M)
