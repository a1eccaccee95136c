"""The command line: parse, then call.

lorry train --train DIR [--validation DIR] [--test DIR] --model_dir OUT --output_data_dir OUT2 [--epochs 1 ...]
lorry plan --train DIR [--validation DIR] [--test DIR] [--epochs 1 ...]
lorry evaluate --model M [--model M2 ...] --data DIR --output metrics.json
lorry report RUN [RUN2 ...] [--output FILE]
lorry submit --image URI --role ARN --train s3://... --output s3://...
lorry jobs status|logs|stop|fetch NAME
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from lorry.config import CONTAINER_PATHS, JobOptions, PairOptions, ProviderOptions, TrainConfig
from lorry.distributed.place import is_rank
from lorry.errors import UserError, nearest
from lorry.evaluation.gate import read_requirements
from lorry.hardware import keep_freed_memory, let_waiting_threads_sleep
from lorry.launch import start
from lorry.logs import OutputClosedError, configure_logging, give_up_output
from lorry.options import add_options, from_strings
from lorry.signals import stop_on_signals

log = logging.getLogger("lorry")


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    configure_logging()
    let_waiting_threads_sleep()
    keep_freed_memory()
    try:
        arguments, unknown = _parser().parse_known_args()
        if unknown:
            _refuse(unknown[0], arguments)
        if is_rank(os.environ) and arguments.call is not _train:
            raise UserError("torchrun is for `lorry train` alone", "Start this command without it.")
        arguments.call(arguments)
    except UserError as error:
        _fail(str(error))
    except MemoryError:
        _fail("out of memory. Lower --batch_size or --micro_batch_tokens, or take a larger machine.")
    except OSError as error:  # of the disk: a name that is too long, too many open files
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OutputClosedError as error:
        give_up_output(error)
        sys.exit(1)


def _fail(text: str, code: int = 1) -> NoReturn:
    try:
        log.error("%s", text)
    except OutputClosedError as error:
        give_up_output(error)
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Turn argparse's message into ours: one line, exit code 1."""
        raise UserError(message, f"`{self.prog} --help` lists the options.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lorry", description="LoRA training for text-embedding models.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)

    train = command("train", "train on judged pairs and leave a proved, merged model")
    add_options(train, TrainConfig)
    train.set_defaults(call=_train, options=_names(TrainConfig))

    planned = set(_names(TrainConfig)) - {"model_dir", "output_data_dir", "checkpoint_dir", "processes", "host_wait"}
    plan = command("plan", "say how long such a training would take, and what it would cost on rented GPUs")
    add_options(plan, TrainConfig, planned)
    add_options(plan, JobOptions, {"instance_count"})
    plan.set_defaults(call=_plan, options={*planned, "instance_count"})

    pairs = set(_names(PairOptions)) - {"teacher_column"}
    scored = pairs | {"max_length", "precision", "eval_batch_size", "seed", "require", "search_products"}
    evaluate = command("evaluate", "score any models side by side on judged pairs")
    evaluate.add_argument(
        "--model",
        action="append",
        required=True,
        help="Hub id, folder or bundled; bedrock:MODEL or openai:MODEL, with ?dimensions=256 where it has a choice and "
        "?price=0.02 for the dollars per million tokens; may be repeated: --require is about the last, and the first "
        "is its base model",
    )
    evaluate.add_argument("--data", required=True, help="judged pairs, as --train of lorry train")
    evaluate.add_argument("--output", required=True, help="JSON file to write")
    add_options(evaluate, TrainConfig, scored)
    add_options(evaluate, ProviderOptions)
    evaluate.set_defaults(call=_evaluate, options={*scored, *_names(ProviderOptions), "model", "data", "output"})

    report = command("report", "make the page of a finished run again, or compare several runs side by side")
    report.add_argument("run", nargs="+", metavar="RUN", help="output_data_dir of a finished run")
    report.add_argument(
        "--output",
        default="",
        help="HTML file to write (default: report.html in the folder of the run; for several, comparison.html here)",
    )
    report.set_defaults(call=_report, options={"output"})

    hyperparameters = set(_names(TrainConfig)) - set(CONTAINER_PATHS)
    submit = command("submit", "run the same job on Amazon SageMaker")
    add_options(submit.add_argument_group("the job"), JobOptions)
    add_options(submit.add_argument_group("hyperparameters"), TrainConfig, hyperparameters)
    submit.set_defaults(call=_submit, options={*hyperparameters, *_names(JobOptions)})

    _add_jobs(command("jobs", "look after SageMaker jobs"))
    return parser


def _add_jobs(jobs: argparse.ArgumentParser) -> None:
    actions = jobs.add_subparsers(title="actions", required=True, metavar="ACTION", parser_class=_Parser)
    texts = {
        "status": "say how the job stands",
        "logs": "print what the job has printed",
        "stop": "stop the job; it has time for a checkpoint",
        "fetch": "download what the job wrote and unpack it",
    }
    for action, text in texts.items():
        parser = actions.add_parser(action, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        parser.add_argument("name", help="name of the job, as submit printed it")
        parser.add_argument("--region", default="", help="AWS region (default: the AWS configuration's)")
        if action == "fetch":
            parser.add_argument("--folder", default=".", help="where model/ and output/ are unpacked (default: here)")
        options = ("region", "folder") if action == "fetch" else ("region",)
        parser.set_defaults(call=_jobs, action=action, options=options)


def _names(cls: type) -> list[str]:
    return [item.name for item in dataclasses.fields(cls)]


def _refuse(argument: str, arguments: argparse.Namespace) -> NoReturn:
    """Say what is wrong with an argument that the command does not take."""
    if not argument.startswith("-"):
        raise UserError(f"{argument!r} is not an option", "Write options as --name value.")
    name = argument.lstrip("-").split("=")[0].replace("-", "_")
    if name in _names(TrainConfig):
        raise UserError(f"{argument} has no effect in this command", "Leave it out.")
    guess = nearest(name, arguments.options)
    raise UserError(f"unknown option {argument}", f"Did you mean --{guess}?" if guess else "--help lists the options.")


def _given(arguments: argparse.Namespace, cls: type) -> dict[str, str]:
    return {name: getattr(arguments, name) for name in _names(cls) if hasattr(arguments, name)}


def _config(arguments: argparse.Namespace) -> TrainConfig:
    config = from_strings(TrainConfig, _given(arguments, TrainConfig))
    read_requirements(config.require)  # a mistake there is told before anything is loaded
    return config


def _train(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    start(config, stop_on_signals(), shlex.join(["lorry", *sys.argv[1:]]))


def _plan(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    given = {"instance_count": arguments.instance_count} if hasattr(arguments, "instance_count") else {}
    instances = from_strings(JobOptions, given).instance_count
    from lorry.planning.plan import plan

    log.info("%s", plan(config, instances))


def _evaluate(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    providers = from_strings(ProviderOptions, _given(arguments, ProviderOptions))
    from lorry.evaluation.comparison import compare_models

    compare_models(arguments.model, arguments.data, Path(arguments.output), config, providers)


def _report(arguments: argparse.Namespace) -> None:
    from lorry.report.side_by_side import report

    log.info("report: %s", report(arguments.run, arguments.output))


def _submit(arguments: argparse.Namespace) -> None:
    from lorry.aws import jobs
    from lorry.aws.submit import submit

    options = from_strings(JobOptions, _given(arguments, JobOptions))
    own = set(_names(JobOptions))
    hyperparameters = {name: value for name, value in _given(arguments, TrainConfig).items() if name not in own}
    read_requirements(hyperparameters.get("require", ""))
    name = submit(options, hyperparameters)
    if not options.wait:
        log.info("%s started. `lorry jobs status %s` looks at it.", name, name)
        return
    try:
        for line in jobs.follow(name, options.region):
            log.info("%s", line)
    except KeyboardInterrupt:
        log.info("%s", jobs.going_on(name))


def _jobs(arguments: argparse.Namespace) -> None:
    from lorry.aws import jobs

    if arguments.action == "stop":
        log.info("%s", jobs.stop(arguments.name, arguments.region))
    elif arguments.action == "fetch":
        for folder in jobs.fetch(arguments.name, Path(arguments.folder), arguments.region):
            log.info("written: %s", folder)
    else:
        show = {"status": jobs.status, "logs": jobs.logs}[arguments.action]
        for line in show(arguments.name, arguments.region):
            log.info("%s", line)


if __name__ == "__main__":
    main()
