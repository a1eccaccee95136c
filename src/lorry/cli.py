"""The command line: parse, then call.

lorry train --train DIR [--validation DIR] [--test DIR] --model_dir OUT --output_data_dir OUT2 [--epochs 1 ...]
lorry plan --train DIR [--validation DIR] [--test DIR] [--epochs 1 ...]
lorry evaluate --model M [--model M2 ...] --data DIR --output metrics.json
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

from lorry.config import CONTAINER_PATHS, JobOptions, PairOptions, TrainConfig, add_options, from_strings
from lorry.errors import UserError, nearest
from lorry.hardware import let_waiting_threads_sleep
from lorry.launch import start
from lorry.logs import configure_logging
from lorry.signals import stop_on_signals

log = logging.getLogger("lorry")


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    configure_logging()
    let_waiting_threads_sleep()
    try:
        arguments, unknown = _parser().parse_known_args()
        if unknown:
            _refuse(unknown[0], arguments)
        arguments.call(arguments)
    except UserError as error:
        log.error("%s", error)
        sys.exit(1)
    except BrokenPipeError:  # `lorry jobs logs NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into ours: one line, exit code 1."""
        raise UserError(message, f"`{self.prog} --help` lists what there is.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lorry", description="LoRA training for text-embedding models.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    train = commands.add_parser(
        "train", help="train on judged pairs and leave a proved, merged model", allow_abbrev=False
    )
    add_options(train, TrainConfig)
    train.set_defaults(call=_train, options=(TrainConfig,))

    plan = commands.add_parser(
        "plan",
        help="say how long such a training would take, and what it would cost on rented GPUs",
        allow_abbrev=False,
    )
    add_options(plan, TrainConfig)
    plan.set_defaults(call=_plan, options=(TrainConfig,))

    evaluate = commands.add_parser("evaluate", help="score any models side by side on judged pairs", allow_abbrev=False)
    evaluate.add_argument("--model", action="append", required=True, help="Hub id, folder or bundled; may be repeated")
    evaluate.add_argument("--data", required=True, help="folder of judged pairs")
    evaluate.add_argument("--output", required=True, help="JSON file to write")
    add_options(evaluate, TrainConfig, {*_names(PairOptions), *_EVALUATION})
    evaluate.set_defaults(call=_evaluate, options=(TrainConfig,))

    submit = commands.add_parser("submit", help="run the same job on Amazon SageMaker", allow_abbrev=False)
    add_options(submit.add_argument_group("the job"), JobOptions)
    add_options(
        submit.add_argument_group("hyperparameters"), TrainConfig, set(_names(TrainConfig)) - set(CONTAINER_PATHS)
    )
    submit.set_defaults(call=_submit, options=(JobOptions, TrainConfig))

    jobs = commands.add_parser("jobs", help="look after SageMaker jobs", allow_abbrev=False)
    jobs.add_argument("action", choices=("status", "logs", "stop", "fetch"))
    jobs.add_argument("name", help="name of the job, as submit printed it")
    jobs.add_argument("--folder", default=".", help="where fetch unpacks model/ and output/ (default: here)")
    jobs.add_argument("--region", default="", help="AWS region (default: the AWS configuration's)")
    jobs.set_defaults(call=_jobs, options=())
    return parser


_EVALUATION = ("max_length", "precision", "eval_batch_size", "seed")


def _names(cls: type) -> list[str]:
    return [item.name for item in dataclasses.fields(cls)]


def _refuse(argument: str, arguments: argparse.Namespace) -> NoReturn:
    name = argument.lstrip("-").split("=")[0].replace("-", "_")
    known = [item for cls in arguments.options for item in _names(cls)]
    guess = nearest(name, known)
    raise UserError(
        f"unknown hyperparameter {argument}", f"Did you mean --{guess}?" if guess else "See `lorry train --help`."
    )


def _given(arguments: argparse.Namespace, cls: type) -> dict[str, str]:
    return {name: getattr(arguments, name) for name in _names(cls) if hasattr(arguments, name)}


def _train(arguments: argparse.Namespace) -> None:
    config = from_strings(TrainConfig, _given(arguments, TrainConfig))
    start(config, stop_on_signals(), shlex.join(["lorry", *sys.argv[1:]]))


def _plan(arguments: argparse.Namespace) -> None:
    config = from_strings(TrainConfig, _given(arguments, TrainConfig))
    from lorry.planning.plan import plan

    log.info("%s", plan(config))


def _evaluate(arguments: argparse.Namespace) -> None:
    config = from_strings(TrainConfig, _given(arguments, TrainConfig))
    from lorry.evaluation.comparison import compare_models

    compare_models(arguments.model, Path(arguments.data), Path(arguments.output), config)


def _submit(arguments: argparse.Namespace) -> None:
    from lorry.aws import jobs
    from lorry.aws.submit import submit

    options = from_strings(JobOptions, _given(arguments, JobOptions))
    own = set(_names(JobOptions))
    hyperparameters = {name: value for name, value in _given(arguments, TrainConfig).items() if name not in own}
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
