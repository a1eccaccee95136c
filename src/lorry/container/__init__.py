"""The image's `train` command and SageMaker's contract: only this package knows /opt/ml."""
