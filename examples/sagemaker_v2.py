"""Train with the SageMaker Python SDK, version 2: on this machine (local mode), or as a training job.

    pip install "sagemaker>=2,<3"
    python examples/sagemaker_v2.py --image lorry --train pairs --output runs/v2
    python examples/sagemaker_v2.py --image URI --train s3://bucket/pairs --output s3://bucket/runs --role ARN

The first needs Docker and no AWS account; it leaves runs/v2/model.tar.gz. The second asks for one ml.g4dn.xlarge and
does not wait. URI is what ./build_and_push.sh printed. With --instances 2 two hosts share every step, here too.
"""

import argparse
from pathlib import Path

import boto3
from sagemaker.estimator import Estimator
from sagemaker.local import LocalSession


def main() -> None:
    """Start the job that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="image: a local tag, or the URI in ECR")
    parser.add_argument("--train", required=True, help="training pairs: folder, or s3:// URI")
    parser.add_argument("--output", required=True, help="where results go: folder, or s3:// URI")
    parser.add_argument("--role", help="ARN of the role the job runs as; none: local mode")
    parser.add_argument("--pretrained_model", default="bundled", help="base model")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--instances", type=int, default=1, help="hosts that share every step")
    options = parser.parse_args()

    settings = {
        "image_uri": options.image,
        "instance_count": options.instances,
        "hyperparameters": {"pretrained_model": options.pretrained_model, "epochs": options.epochs, "lora_rank": 16},
    }
    if options.role:
        estimator = Estimator(
            **settings,
            role=options.role,
            instance_type="ml.g4dn.xlarge",
            volume_size=50,
            output_path=options.output,
            base_job_name="lorry",
        )
        estimator.fit({"train": options.train}, wait=False)
        return
    # With folders in and out, local mode calls nothing in AWS but telemetry; it wants region, keys and role by name.
    quiet = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
    account = boto3.Session(region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")
    Path(options.output).mkdir(parents=True, exist_ok=True)
    estimator = Estimator(
        **settings,
        role="arn:aws:iam::000000000000:role/none",
        instance_type="local",  # local_gpu where there is one
        sagemaker_session=LocalSession(account, sagemaker_config=quiet),
        output_path=Path(options.output).resolve().as_uri(),
    )
    estimator.fit({"train": Path(options.train).resolve().as_uri()})


if __name__ == "__main__":
    main()
