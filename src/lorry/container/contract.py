"""Where SageMaker keeps a job's files, and who started this process.

The contract: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lorry.errors import UserError

CONFIG_FILES = ("hyperparameters.json", "inputdataconfig.json", "resourceconfig.json")


def ml_folder() -> Path:
    """Return /opt/ml, or the folder that stands in for it."""
    return Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))  # the toolkit reads this variable too


def is_sagemaker() -> bool:
    """Return whether SageMaker or its local mode started the image."""
    config = ml_folder() / "input" / "config"
    complete = all((config / name).is_file() for name in CONFIG_FILES)
    return complete and os.access(ml_folder(), os.W_OK) and not in_script_mode()


def in_script_mode() -> bool:
    """Return whether the toolkit of another image called a user's script, which called this package."""
    return "SM_HPS" in os.environ


def read_config(root: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in one of `CONFIG_FILES` below /opt/ml, empty where there is no such file.

    Raises:
        UserError: The file holds something else.
    """
    path = root / "input" / "config" / name
    try:
        value = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", "It must be a JSON object.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", 'Write {"name": "value", …}.')
    return value
