"""The same job on Amazon SageMaker: submit it, follow it, fetch what it left."""
