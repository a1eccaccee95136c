"""Lorry as a SageMaker training job with nothing but boto3.

    python examples/boto3_job.py --image URI --role ARN --train s3://bucket/train --output s3://bucket/lorry

`lorry submit` does the same with more options, checks and help. Spot capacity: the job may pause, and continues from
its checkpoints. Hyperparameters are those of `lorry train`, all of them as strings.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import boto3

HYPERPARAMETERS = {"pretrained_model": "TaylorAI/gte-tiny", "epochs": "1", "batch_size": "96", "lora_rank": "16"}
METRICS = json.loads(Path(__file__).with_name("metric_definitions.json").read_text())


def main(arguments: list[str] | None = None) -> str:
    """Start the job and return its name; it runs on when this script has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="URI of the image in ECR, as ./build_and_push.sh prints it")
    parser.add_argument("--role", required=True, help="ARN of the role that the job runs as")
    parser.add_argument("--train", required=True, help="s3:// URI of the training pairs")
    parser.add_argument("--output", required=True, help="s3:// URI under which the job writes")
    given = parser.parse_args(arguments)

    name = time.strftime("lorry-%Y%m%d-%H%M%S", time.gmtime())
    boto3.client("sagemaker").create_training_job(
        TrainingJobName=name,
        RoleArn=given.role,
        AlgorithmSpecification={
            "TrainingImage": given.image,
            "TrainingInputMode": "File",
            "MetricDefinitions": METRICS,
        },
        HyperParameters=HYPERPARAMETERS,
        InputDataConfig=[
            {
                "ChannelName": "train",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": given.train}},
            }
        ],
        OutputDataConfig={"S3OutputPath": given.output},
        ResourceConfig={"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        EnableManagedSpotTraining=True,
        CheckpointConfig={"S3Uri": f"{given.output.rstrip('/')}/checkpoints/{name}"},
        StoppingCondition={"MaxRuntimeInSeconds": 4 * 3600, "MaxWaitTimeInSeconds": 8 * 3600},
    )
    print(f"{name} started; `aws sagemaker describe-training-job --training-job-name {name}` says how it stands")
    return name


if __name__ == "__main__":
    main()
