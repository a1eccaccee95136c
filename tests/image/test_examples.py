"""The examples for SageMaker: both SDKs in local mode with the real image and no AWS account, and script mode.

The SDKs exclude each other and are large, so each gets an environment of its own, kept for the whole session.
"""

import io
import json
import os
import subprocess
import sys
import tarfile

import boto3
import numpy as np
import pytest
from engine import ROOT, docker
from moto.server import ThreadedMotoServer

SDKS = {"v2": "sagemaker>=2.257,<3", "v3": "sagemaker==3.27.0"}
RESULT = {"v2": "model.tar.gz", "v3": "compressed_artifacts/model.tar.gz"}
# No account, no configuration, no region: what local mode asks of a machine must be nothing.
FOREIGN = ("AWS_", "SAGEMAKER_", "LORRY_")


def call(*command, **more):
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module", params=SDKS)
def sdk(request, tmp_path_factory):
    """Name of an SDK, and a Python that has it."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    call(sys.executable, "-m", "venv", folder)
    call(
        folder / "bin" / "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", SDKS[request.param]
    )
    return request.param, folder / "bin" / "python"


@pytest.mark.parametrize("instances", [1, 2])
def test_local_mode_ends_with_a_model_that_loads(image, pairs, sdk, instances, tmp_path):
    version, python = sdk
    if instances > 1 and version != "v2":
        pytest.skip("the example of SDK v2 alone has several hosts")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    script = ROOT / "examples" / f"sagemaker_{version}.py"
    log = call(
        python, script, "--image", image, "--train", pairs, "--output", tmp_path / "out",
        *(["--instances", instances] if instances > 1 else []), env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert ("2 processes on algo-1" in log) == (instances > 1)
    assert "eval loss " in log
    assert "training loss " in log
    left = docker("ps", "--all", "--quiet", "--filter", f"ancestor={image}", "--filter", "name=algo-").stdout.split()
    docker("rm", *left)  # the SDKs leave their containers behind
    with tarfile.open(tmp_path / "out" / RESULT[version]) as archive:
        archive.extractall(tmp_path / "model", filter="data")
    from sentence_transformers import SentenceTransformer

    embeddings = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["grey sofa", "gray couch"])
    assert embeddings.shape == (2, 384)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-4)


def test_script_mode_asks_for_the_hugging_face_container_with_the_trainer_in_its_source(sdk, tmp_path):
    version, python = sdk
    if version != "v2":
        pytest.skip("the example is for SDK v2, as the blog post was")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "eu-west-1"}
        environment = os.environ | {name.upper(): value for name, value in keys.items() if name != "region_name"}
        environment |= {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL": endpoint, "HOME": str(tmp_path)}
        call(python.with_name("pip"), "install", "--quiet", "build")
        script = ROOT / "examples" / "script_mode" / "launch.py"
        role = "arn:aws:iam::123456789012:role/lorry"
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(
            Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
        )
        places = ["--train", "s3://bucket/pairs", "--output", "s3://bucket/runs"]
        call(python, script, *places, "--role", role, env=environment, cwd=tmp_path)
        sagemaker = boto3.client("sagemaker", endpoint_url=endpoint, **keys)
        (summary,) = sagemaker.list_training_jobs()["TrainingJobSummaries"]
        job = sagemaker.describe_training_job(TrainingJobName=summary["TrainingJobName"])
        asked = job["AlgorithmSpecification"]
        assert "/huggingface-pytorch-training:2.8.0-transformers4.56.2-gpu-py312-" in asked["TrainingImage"]
        bucket, _, key = json.loads(job["HyperParameters"]["sagemaker_submit_directory"])[5:].partition("/")
        source = boto3.client("s3", endpoint_url=endpoint, **keys).get_object(Bucket=bucket, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(source)) as archive:
            names = set(archive.getnames())
            lines = archive.extractfile("requirements.txt").read().decode().splitlines()
            (wanted,) = [line for line in lines if "whl" in line]
        assert "train.py" in names
        assert wanted.removeprefix("./").removesuffix("[bundled]") in names
    finally:
        server.stop()
