"""One training job inside the container: the only file that knows /opt/ml, SageMaker's files and the `train` command.

Hyperparameters come, first found first taken, from the command line, the environment (`LORRY_EPOCHS=3`) and
`/opt/ml/input/config/hyperparameters.json`. None of SageMaker's files has to be there: `docker run` needs a folder of
pairs at /opt/ml/input/data/train and nothing else.

The contract: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorry.archives import unpack
from lorry.config import TrainConfig, add_options, from_strings
from lorry.data.hub_uri import is_hub_uri
from lorry.errors import UserError
from lorry.hardware import has_network, let_waiting_threads_sleep
from lorry.launch import start
from lorry.logs import configure_logging
from lorry.names import CHANNELS
from lorry.signals import Stop, stop_on_signals

log = logging.getLogger("lorry")

ROOT = "/opt/ml"
CONFIG_FILES = ("hyperparameters.json", "inputdataconfig.json", "resourceconfig.json")
OTHER_NAMES = {"training": "train"}
# Variables of this name that other parts of the project read.
NOT_HYPERPARAMETERS = {"LORRY_CACHE", "LORRY_DATA", "LORRY_REGISTRY", "LORRY_REVISION"}
NOT_OURS = ("sagemaker_", "_tuning_")  # hyperparameters that the SDK and the tuner add for the platform
FAILURE_LIMIT = 1024  # characters of the failure file that SageMaker shows

USAGE = """Train on the judged pairs of a folder or of a SageMaker job.

  docker run --rm --gpus all -v /path/to/pairs:/opt/ml/input/data/train -v /path/to/model:/opt/ml/model IMAGE train

More folders may be mounted: /opt/ml/input/data/{validation,test,model}, /opt/ml/output (report, failure) and
/opt/ml/checkpoints (to continue after a stop). Every option is also an environment variable (LORRY_EPOCHS=3) and a
key of hyperparameters.json."""


def train() -> None:
    """Run the command `train`, and exit: 0 when trained or stopped on request, 1 otherwise."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        _parser().print_help()
        return
    _stop()
    if _is_sagemaker():
        from sagemaker_training import trainer

        trainer.train()  # calls main() in this process, and exits
    try:
        run_job()
    except UserError as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception:
        log.exception("training failed")
        sys.exit(1)


def main() -> None:
    """Run the job for SageMaker's toolkit, which finds this function in SAGEMAKER_TRAINING_MODULE.

    Raises:
        ClientError: The user can fix it; the toolkit shows it in one line. Whatever else is raised it shows in full.
    """
    from sagemaker_training.errors import ClientError

    logging.getLogger().setLevel(logging.WARNING)  # the toolkit lets every library log what it does
    try:
        run_job()
    except UserError as error:
        raise ClientError(str(error)) from None


def run_job() -> None:
    """Read the job, train, and leave the reason in the failure file where that fails.

    Raises:
        UserError: Something that the user can fix.
    """
    configure_logging()
    root = _root()
    stop = _stop()
    try:
        _forget_failure(root)
        config = read_job(sys.argv[1:], os.environ, root)
        config = _make_room(config, root)
        _set_environment(config)
        start(config, stop, shlex.join(["train", *sys.argv[1:]]))
    except UserError as error:
        _write_failure(root, user_failure(error))
        raise
    except Exception as error:
        _write_failure(root, crash_failure(error))
        raise


def read_job(arguments: Sequence[str], environ: Mapping[str, str], root: Path) -> TrainConfig:
    """Return the job's hyperparameters, with the folders of its channels and outputs filled in.

    Args:
        arguments: The command line after `train`.
        environ: The environment.
        root: /opt/ml.

    Raises:
        UserError: A hyperparameter or a channel is wrong, there are no training pairs, or several machines are asked.
    """
    _check_hosts(root)
    config_files = root / "input" / "config"
    folders = read_channels(root / "input" / "data", _read_object(config_files / "inputdataconfig.json"))
    outputs = {"model_dir": root / "model", "output_data_dir": root / "output" / "data"}
    if (root / "checkpoints").is_dir():
        outputs["checkpoint_dir"] = root / "checkpoints"
    base = folders.pop("model", None)
    values = {name: str(path) for name, path in (folders | outputs).items()}
    values |= _from_file(_read_object(config_files / "hyperparameters.json"))
    values |= _from_environment(environ)
    values |= _from_arguments(arguments)
    if base is not None:
        if "pretrained_model" in values:
            log.info(
                "the base model comes from the channel model, not from pretrained_model=%s", values["pretrained_model"]
            )
        values["pretrained_model"] = str(find_model(base))
    config = from_strings(TrainConfig, values)
    if not config.train:
        raise UserError(
            f"no training pairs: there is no folder {root}/input/data/train",
            "Mount one (docker run -v /path/to/pairs:/opt/ml/input/data/train …); on SageMaker name a channel train; "
            "or give a data set on the Hub (--train hf://datasets/OWNER/NAME).",
        )
    return config


def read_channels(data: Path, declared: Mapping[str, Any]) -> dict[str, Path]:
    """Return the folder of each channel that Lorry knows.

    Args:
        data: /opt/ml/input/data.
        declared: inputdataconfig.json.

    Raises:
        UserError: A channel comes as a pipe, or under two names.
    """
    folders: dict[str, Path] = {}
    there = {path.name for path in data.iterdir() if path.is_dir()} if data.is_dir() else set()
    pipes = {path.name.rpartition("_")[0] for path in data.iterdir() if path.is_fifo()} if data.is_dir() else set()
    for name in sorted(there | pipes | set(declared)):
        channel = OTHER_NAMES.get(name, name)
        if channel not in CHANNELS:
            log.warning("channel %s is not used: Lorry knows %s", name, ", ".join((*CHANNELS, *OTHER_NAMES)))
            continue
        mode = (declared.get(name) or {}).get("TrainingInputMode")
        if name in pipes or mode == "Pipe":
            raise UserError(f"channel {name} comes in Pipe mode", "Use input mode File or FastFile.")
        if channel in folders:
            raise UserError(f"channel {channel} is there twice: as {folders[channel].name} and as {name}", "Give one.")
        folders[channel] = data / name
    return folders


def find_model(channel: Path) -> Path:
    """Return the folder of the base model in a channel that holds one, as files or as model.tar.gz.

    Raises:
        UserError: There is none, or the archive cannot be unpacked.
    """
    archives = sorted(channel.glob("*.tar.gz"))
    folder = channel
    if archives and not (channel / "config.json").is_file():
        # The same name in every run, since the path is recorded with the model.
        folder = Path(tempfile.gettempdir()) / "lorry-base-model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        unpack(archives[0], folder)
    found = sorted(folder.glob("config.json")) or sorted(folder.glob("*/config.json"))
    if not found:
        raise UserError(
            f"the channel model has no config.json: {channel}",
            "Give the folder, or model.tar.gz, of a Hugging Face model.",
        )
    return found[0].parent


def user_failure(error: UserError) -> str:
    """Return what the failure file says of a user's mistake: the cause cut short before the hint is lost."""
    text = str(error)
    return text if len(text) <= FAILURE_LIMIT else f"{error.cause[: FAILURE_LIMIT - len(error.hint) - 3]}… {error.hint}"


def crash_failure(error: Exception) -> str:
    """Return what the failure file says of a crash: the exception, and the place in Lorry that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    frame = next((frame for frame in reversed(frames) if Path(frame.filename).is_relative_to(package)), frames[-1])
    file = Path(frame.filename)
    name = file.relative_to(package) if file.is_relative_to(package) else file.name
    place = f" (at {name}:{frame.lineno} in {frame.name}; the log has the whole traceback)"
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return said[: FAILURE_LIMIT - len(place)] + place


def _make_room(config: TrainConfig, root: Path) -> TrainConfig:
    """See where the outputs go, and say so where they would be lost with the container."""
    if not _is_kept(Path(config.model_dir)):
        log.warning(
            "the model will be lost with this container: mount a folder (-v /path/to/model:%s)", config.model_dir
        )
    output = root / "output" / "data"
    if Path(config.output_data_dir) != output:
        return config
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError:
        spare = tempfile.mkdtemp(prefix="lorry-output-")
        log.warning("%s cannot be written: the report goes to %s; mount a folder at %s/output", output, spare, root)
        return dataclasses.replace(config, output_data_dir=spare)
    return config


def _is_kept(folder: Path) -> bool:
    """Tell whether `folder`, or the nearest above it that exists, lies on another disk than the container's own."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return nearest.stat().st_dev != Path("/").stat().st_dev


def _set_environment(config: TrainConfig) -> None:
    """Set what the libraries read when they are imported."""
    local_model = config.pretrained_model == "bundled" or Path(config.pretrained_model).is_dir()
    local_pairs = not any(is_hub_uri(location) for location in (config.train, config.validation, config.test))
    if (local_model and local_pairs) or not has_network():
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing to fetch, or no way to: do not wait for a name server
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    let_waiting_threads_sleep()
    if _in_script_mode():  # AWS's framework images allow one thread, which starves the tokenizer and the CPU
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.environ.pop("OMP_NUM_THREADS", None)


def _forget_failure(root: Path) -> None:
    with contextlib.suppress(OSError):
        (root / "output" / "failure").unlink(missing_ok=True)


def _write_failure(root: Path, text: str) -> None:
    try:
        (root / "output").mkdir(parents=True, exist_ok=True)
        (root / "output" / "failure").write_text(text, "utf-8")
    except OSError as error:
        log.info("the reason of the failure cannot be written to %s/output: %s", root, error.strerror)


@functools.cache
def _stop() -> Stop:
    """Return this process's one event that asks it to stop; process 1 gets no signal that it has not asked for."""
    return stop_on_signals()


def _root() -> Path:
    return Path(os.environ.get("SAGEMAKER_BASE_DIR", ROOT))  # the toolkit's own name for another place


def _is_sagemaker() -> bool:
    """Tell whether SageMaker (or its local mode) started this, and not the toolkit itself, for a user's script."""
    config_files = _root() / "input" / "config"
    complete = all((config_files / name).is_file() for name in CONFIG_FILES)
    return complete and os.access(_root(), os.W_OK) and not _in_script_mode()


def _in_script_mode() -> bool:
    """Tell whether the toolkit of another image called a user's script, which called us."""
    return "SM_HPS" in os.environ


def _check_hosts(root: Path) -> None:
    hosts = _read_object(root / "input" / "config" / "resourceconfig.json").get("hosts") or []
    if len(hosts) > 1:
        raise UserError(
            f"the job has {len(hosts)} instances", "Lorry trains on one for now: set the instance count to 1."
        )


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty where there is no such file."""
    try:
        value = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "It must be a JSON object.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", 'Write {"name": "value", …}.')
    return value


def _from_file(given: Mapping[str, Any]) -> dict[str, str]:
    """Read hyperparameters as the SDKs write them: strings, some of them JSON once more."""
    values = {}
    for name, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        with contextlib.suppress(ValueError):
            if isinstance(decoded := json.loads(text), str):
                text = decoded
        if text == "null":
            continue
        if not name.startswith(NOT_OURS):
            values[name] = text
        elif name == "sagemaker_program" and not _in_script_mode():
            log.warning("the entry point %s is not run: this image has its own trainer", text)
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    given = {name: value for name, value in environ.items() if name.startswith("LORRY_")}
    return {name[6:].lower(): value for name, value in given.items() if name not in NOT_HYPERPARAMETERS}


def _from_arguments(arguments: Sequence[str]) -> dict[str, str]:
    try:
        known, unknown = _parser().parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}", "`train --help` lists the options.") from None
    for word in unknown:
        if not word.startswith("--"):
            raise UserError(f"{word!r} is no option", "Write options as --name value; `train --help` lists them.")
        from_strings(TrainConfig, {word[2:].partition("=")[0]: ""})  # says which is unknown, and what is near
    return vars(known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add_options(parser, TrainConfig)
    return parser
