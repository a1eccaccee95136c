"""Train in AWS's Hugging Face container, in script mode: no image of your own to build and push.

    pip install "sagemaker>=2,<3" build
    python examples/script_mode/launch.py --train s3://bucket/pairs --output s3://bucket/runs --role ARN

puts train.py, requirements.txt and Lorry's wheel together, starts one ml.g4dn.xlarge and does not wait. The container
installs the requirements first, some minutes each time, and hands no SIGTERM to the script, so a stopped job leaves no
checkpoint. For more than a trial use the image (../sagemaker_v2.py, ../sagemaker_v3.py).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sagemaker.huggingface import HuggingFace

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
    """Start the job that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="training pairs: s3:// URI")
    parser.add_argument("--output", required=True, help="where source and results go: s3:// URI")
    parser.add_argument("--role", required=True, help="ARN of the role the job runs as")
    parser.add_argument("--pretrained_model", default="bundled", help="base model")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        write_source(Path(folder))
        estimator = HuggingFace(
            entry_point="train.py",
            source_dir=folder,
            role=options.role,
            output_path=options.output,
            code_location=options.output,
            instance_count=1,
            instance_type="ml.g4dn.xlarge",
            transformers_version="4.56.2",
            pytorch_version="2.8.0",
            py_version="py312",
            base_job_name="lorry",
            hyperparameters={"pretrained_model": options.pretrained_model, "epochs": options.epochs, "lora_rank": 16},
            metric_definitions=json.loads((HERE.parent / "metric_definitions.json").read_text()),
        )
        estimator.fit({"train": options.train}, wait=False)


def write_source(folder: Path) -> None:
    """Put into `folder` what the container unpacks and runs."""
    for name in ("train.py", "requirements.txt"):
        shutil.copy(HERE / name, folder)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True)


if __name__ == "__main__":
    main()
