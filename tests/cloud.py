"""A pretended AWS for the tests of what talks to it: moto's, with answers of our own where a test wants one.

PYTEST_DONT_REWRITE: the tests import it by hand and use it as a plug-in.
"""

import functools
from pathlib import Path

import boto3
import pytest
from botocore import exceptions as aws
from botocore.client import BaseClient
from botocore.loaders import JSONFileLoader
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID
from moto.sagemaker.models import sagemaker_backends

from lorry.config import JobOptions
from lorry.errors import UserError

REGION = "eu-west-1"
IMAGE = f"123456789012.dkr.ecr.{REGION}.amazonaws.com/lorry:0.1.0-abc1234"
ROLE = "arn:aws:iam::123456789012:role/lorry"
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="session")
def models_parsed_once():
    """Every client parses megabytes of service models anew; nothing changes them."""
    real = JSONFileLoader.load_file
    read = functools.cache(lambda path: real(JSONFileLoader(), path))
    JSONFileLoader.load_file = lambda _, path: read(path)
    yield
    JSONFileLoader.load_file = real


@pytest.fixture
def nobody(monkeypatch, tmp_path, models_parsed_once):
    """No trace of this machine's own AWS configuration."""
    for name in (
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_SESSION_TOKEN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.fixture
def cloud(nobody):
    """An AWS account with one bucket."""
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="shop", CreateBucketConfiguration={"LocationConstraint": REGION})
        yield


@pytest.fixture
def calls(monkeypatch, nobody):
    """Record every call; `calls.answer` makes AWS answer one as told, moto answers the rest."""
    return Calls(monkeypatch)


class Calls(list):
    def __init__(self, monkeypatch):
        super().__init__()
        self.answers = {}
        real = BaseClient._make_api_call

        def call(client, operation, arguments):
            self.append((operation, arguments))
            answer = self.answers.get(operation)
            if isinstance(answer, list):
                answer = answer.pop(0) if answer else None
            if isinstance(answer, Exception):
                raise answer
            return real(client, operation, arguments) if answer is None else answer

        monkeypatch.setattr(BaseClient, "_make_api_call", call)

    def answer(self, operation, answer):
        self.answers[operation] = answer

    def of(self, operation):
        return [arguments for name, arguments in self if name == operation]


def refusal(code, message="no", operation="CreateTrainingJob"):
    return aws.ClientError({"Error": {"Code": code, "Message": message}}, operation)


def options(**given):
    fields = {"image": IMAGE, "role": ROLE, "train": "s3://shop/train", "output": "s3://shop/lorry"}
    return JobOptions(**(fields | given))


def fails(call, cause, mend):
    """Assert that `call` is refused in one line with `cause` and `mend` in it."""
    with pytest.raises(UserError) as caught:
        list(call())
    assert cause in caught.value.cause
    assert mend in caught.value.hint
    assert "\n" not in str(caught.value)


def job_of(name, region=REGION):
    """Return moto's record of the job, to change what becomes of it."""
    return sagemaker_backends[DEFAULT_ACCOUNT_ID][region].training_jobs[name]
