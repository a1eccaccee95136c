"""The SageMaker training contract: the only room that knows /opt/ml."""
