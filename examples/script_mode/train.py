"""What SageMaker runs in the Hugging Face container: the same trainer as in Lorry's own image.

`lorry.container` reads hyperparameters, channels and folders where SageMaker puts them, so nothing is left to say here.
"""

from lorry.container.train import train

if __name__ == "__main__":
    train()
