"""Read a job: hyperparameters and channels become one `TrainConfig`.

Hyperparameters are taken from the command line, then from the environment (`LORRY_EPOCHS=3`), then from
hyperparameters.json. None of SageMaker's files has to exist: `docker run` needs only pairs at /opt/ml/input/data/train.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorry.config import TrainConfig
from lorry.container.channels import find_model, missing_pairs, read_channels
from lorry.container.contract import in_script_mode, read_config
from lorry.errors import UserError
from lorry.options import add_options, from_strings

log = logging.getLogger("lorry")

# Variables with our prefix that are no hyperparameters.
OTHER_VARIABLES = {"LORRY_CACHE", "LORRY_DATA", "LORRY_REGISTRY", "LORRY_REVISION"}
PLATFORM_PREFIXES = ("sagemaker_", "_tuning_")  # hyperparameters that the SDK and the tuner add for the platform

USAGE = """Train on the judged pairs of a folder or of a SageMaker job.

  docker run --rm --gpus all -v /path/to/pairs:/opt/ml/input/data/train -v /path/to/model:/opt/ml/model \\
    -v /path/to/output:/opt/ml/output IMAGE train

More folders can be mounted: /opt/ml/input/data/{validation,test,probe,model}, and /opt/ml/checkpoints (to continue
after a stop). The report is in /opt/ml/output/data, the reason of a failure in /opt/ml/output/failure. Every option is
also an environment variable (LORRY_EPOCHS=3) and a key of hyperparameters.json."""


def read_job(arguments: Sequence[str], environ: Mapping[str, str], root: Path) -> TrainConfig:
    """Return the job's hyperparameters, with the folders of its channels and outputs.

    Args:
        arguments: The command line after `train`.
        environ: The environment.
        root: /opt/ml.

    Raises:
        UserError: A file of SageMaker's, a hyperparameter or a channel is wrong, or there are no training pairs.
    """
    _check_log_level(environ)
    folders = read_channels(root / "input" / "data", read_config(root, "inputdataconfig.json"))
    outputs = {"model_dir": root / "model", "output_data_dir": root / "output" / "data"}
    if (root / "checkpoints").is_dir():
        outputs["checkpoint_dir"] = root / "checkpoints"
    base = folders.pop("model", None)
    values = {name: str(path) for name, path in (folders | outputs).items()}
    values |= _from_file(read_config(root, "hyperparameters.json"))
    values |= _from_environment(environ)
    values |= _from_arguments(arguments)
    config = from_strings(TrainConfig, values)
    if not config.train:
        raise missing_pairs(root)
    if base is None:
        return config
    if "pretrained_model" in values:
        log.info("the base model comes from the channel model, not from pretrained_model=%s", config.pretrained_model)
    return from_strings(TrainConfig, values | {"pretrained_model": str(find_model(base))})


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command `train`."""
    made = argparse.ArgumentParser(
        prog="train",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add_options(made, TrainConfig)
    return made


def _check_log_level(environ: Mapping[str, str]) -> None:
    """Refuse a level on which SageMaker's toolkit would end with a traceback."""
    level = environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", "20")
    try:
        int(level)
    except ValueError:
        raise UserError(
            f"SAGEMAKER_CONTAINER_LOG_LEVEL is {level[:40]!r}", "Give a number: 10 logs most, 20 as usual, 40 errors."
        ) from None


def _from_file(given: Mapping[str, Any]) -> dict[str, str]:
    """Read hyperparameters as the SDKs write them: strings, some of them encoded as JSON twice."""
    values = {}
    for name, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(decoded := json.loads(text), str):
                text = decoded
        if text == "null":
            continue
        if not name.startswith(PLATFORM_PREFIXES):
            values[name] = text
        elif name == "sagemaker_program" and not in_script_mode():
            log.warning("the entry point %s is not run: this image has its own trainer", text)
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    given = {name: value for name, value in environ.items() if name.startswith("LORRY_")}
    return {name[6:].lower(): value for name, value in given.items() if name not in OTHER_VARIABLES}


def _from_arguments(arguments: Sequence[str]) -> dict[str, str]:
    try:
        known, unknown = parser().parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}", "`train --help` lists the options.") from None
    for word in unknown:
        if not word.startswith("--"):
            raise UserError(f"{word!r} is not an option", "Write options as --name value; `train --help` lists them.")
        from_strings(TrainConfig, {word[2:].partition("=")[0]: ""})  # says which is unknown, and which is nearest
    return vars(known)
