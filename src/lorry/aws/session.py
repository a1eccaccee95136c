"""AWS from here: clients that retry, and AWS's errors in words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import boto3
from botocore import exceptions as aws
from botocore.config import Config

from lorry.errors import UserError

LOG_IN = "Run `aws configure` or `aws sso login`, or set AWS_PROFILE."
THROTTLED = {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"}
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}
NO_CREDENTIALS = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.SSOError,
    aws.TokenRetrievalError,
)


def session(region: str = "") -> boto3.Session:
    """Return a session with credentials and a region.

    Args:
        region: AWS region; empty: the AWS configuration's.

    Raises:
        UserError: There are no credentials, no region, or no profile of the name that AWS_PROFILE gives.
    """
    with errors("reading the AWS configuration"):
        if region and not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", region):
            raise UserError(f"{region!r} is not an AWS region", "Give one such as us-east-1.")
        made = boto3.Session(region_name=region or None)
        if made.get_credentials() is None:
            raise aws.NoCredentialsError
        if not made.region_name:
            raise aws.NoRegionError
        return made


def client(
    made: boto3.Session,
    service: Literal["bedrock-runtime", "logs", "s3", "sagemaker"],
    retries: Literal["standard", "adaptive"] = "standard",
) -> Any:
    """Return a client of `service` that waits and tries again when AWS throttles or the network fails.

    With "adaptive" retries it also sends fewer requests a second where it is throttled: for thousands of them.
    """
    return made.client(service, config=Config(retries={"mode": retries, "max_attempts": 8}))


@contextmanager
def errors(doing: str) -> Iterator[None]:
    """Turn what AWS raises within the block into a `UserError`; `doing` says what was tried."""
    try:
        yield
    except (aws.BotoCoreError, aws.ClientError, boto3.exceptions.Boto3Error) as error:
        raise explain(error, doing) from error


def explain(error: Exception, doing: str) -> UserError:
    """Return `error`, raised by boto3 while `doing` something, as one line with the hint."""
    if isinstance(error, boto3.exceptions.Boto3Error):  # a transfer's error wraps the client's
        error = error.__context__ if isinstance(error.__context__, aws.ClientError) else error
    if isinstance(error, aws.ClientError):
        return _explain_answer(error, doing)
    if isinstance(error, NO_CREDENTIALS):
        return UserError(f"no AWS credentials ({error})", LOG_IN)
    if isinstance(error, aws.NoRegionError):
        return UserError(
            "no AWS region", "Set AWS_REGION, run `aws configure`, or give --region to a command that has it."
        )
    if isinstance(error, aws.ProfileNotFound):
        return UserError(str(error), "Set AWS_PROFILE to a profile that `aws configure list-profiles` shows.")
    if isinstance(error, aws.ConnectionError | aws.HTTPClientError):
        return UserError(f"{doing}: {error}", "Check the network, the proxy and the region's name.")
    return UserError(f"{doing}: {error}", "Correct the option that it names.")


def code(error: aws.ClientError) -> str:
    """Return AWS's code of the error, such as `AccessDenied` or `404`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _explain_answer(error: aws.ClientError, doing: str) -> UserError:
    name = code(error)
    message = _shorten(str(error.response.get("Error", {}).get("Message", name)))
    for names, write in _ANSWERS:
        if name in names:
            return write(doing, message)
    return UserError(f"{doing}: {name}: {message}", "The message is AWS's own; correct what it names, or try again.")


def _shorten(message: str) -> str:
    """Cut AWS's list of every allowed value, which runs to pages."""
    message = re.sub(r"(enum value set: )\[.*\]", r"\1those that AWS documents", " ".join(message.split()))
    return message if len(message) <= 500 else message[:497] + "..."


def _quota(_doing: str, message: str) -> UserError:
    found = re.search(r"service limit '([^']+)'", message)
    asked = f'"{found[1]}"' if found else "the one it names"
    hint = f"Ask for more of {asked} in the console: Service Quotas, Amazon SageMaker; or give another --instance_type."
    return UserError(f"quota exceeded: {message}", hint)


def _invalid(doing: str, message: str) -> UserError:
    hint = "Correct the option that it names."
    if "resource not found" in message.lower():
        hint = "Check the name and --region; `aws sagemaker list-training-jobs` lists the jobs."
    elif "assume" in message.lower():
        hint = "Let sagemaker.amazonaws.com assume the role: examples/iam-role-trust.json is the trust policy."
    elif "s3" in message.lower():
        hint = "Check the S3 URI, and that the role may read it (examples/iam-role-policy.json)."
    elif "image" in message.lower() or "repository" in message.lower():
        hint = "Give --image the URI that ./build_and_push.sh printed, from the job's own region."
    return UserError(f"{doing}: {message}", hint)


_ANSWERS: tuple[tuple[set[str], Callable[[str, str], UserError]], ...] = (
    (
        DENIED,
        lambda doing, message: UserError(
            f"{doing}: AWS denies it: {message}",
            "Give your user the rights in examples/iam-user-policy.json.",
        ),
    ),
    (
        {"ExpiredToken", "ExpiredTokenException", "RequestExpired"},
        lambda _, message: UserError(f"the AWS credentials have expired ({message})", LOG_IN),
    ),
    (
        {"InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch"},
        lambda _, message: UserError(f"AWS does not know these credentials ({message})", LOG_IN),
    ),
    ({"ResourceLimitExceeded"}, _quota),
    ({"ValidationException", "ValidationError"}, _invalid),
    (
        {"ResourceInUse"},
        lambda _, message: UserError(f"the job's name is taken ({message})", "Give another --job_name, or none."),
    ),
    (
        {"NoSuchBucket"},
        lambda doing, message: UserError(
            f"{doing}: {message}", "Create the bucket (`aws s3 mb s3://NAME`) or correct its name."
        ),
    ),
    (
        THROTTLED,
        lambda doing, message: UserError(f"{doing}: AWS throttles ({message})", "Try again in a minute."),
    ),
)
