"""Train with the SageMaker Python SDK, version 3: on this machine (local mode), or as a training job.

    pip install "sagemaker>=3,<4"
    python examples/sagemaker_v3.py --image lorry --train pairs --output runs/v3
    python examples/sagemaker_v3.py --image URI --train s3://bucket/pairs --output s3://bucket/runs --role ARN

The first needs Docker and no AWS account; it leaves runs/v3/compressed_artifacts/model.tar.gz. The second asks for one
ml.g4dn.xlarge and does not wait. URI is what ./build_and_push.sh printed.
"""

import argparse
from pathlib import Path

from sagemaker.core.shapes import OutputDataConfig
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData
from sagemaker.train.model_trainer import Mode


def main() -> None:
    """Start the job that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="image: a local tag, or the URI in ECR")
    parser.add_argument("--train", required=True, help="training pairs: folder, or s3:// URI")
    parser.add_argument("--output", required=True, help="where results go: folder, or s3:// URI")
    parser.add_argument("--role", help="ARN of the role the job runs as; none: local mode")
    parser.add_argument("--pretrained_model", default="bundled", help="base model")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()

    settings = {
        "training_image": options.image,
        "base_job_name": "lorry",
        "hyperparameters": {"pretrained_model": options.pretrained_model, "epochs": options.epochs, "lora_rank": 16},
    }
    if options.role:
        trainer = ModelTrainer(
            **settings,
            role=options.role,
            compute=Compute(instance_type="ml.g4dn.xlarge", instance_count=1, volume_size_in_gb=50),
            output_data_config=OutputDataConfig(s3_output_path=options.output),
        )
    else:
        Path(options.output).mkdir(parents=True, exist_ok=True)
        trainer = ModelTrainer(
            **settings,
            training_mode=Mode.LOCAL_CONTAINER,
            compute=Compute(instance_type="local_cpu", instance_count=1),  # local_gpu where there is one
            local_container_root=str(Path(options.output).resolve()),
        )
    source = options.train if options.role else str(Path(options.train).resolve())
    trainer.train(input_data_config=[InputData(channel_name="train", data_source=source)], wait=not options.role)


if __name__ == "__main__":
    main()
