"""The command line from outside: help, every user error in one line, and a real process that is told to stop."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from command import lorry
from lorry.config import JobOptions, TrainConfig

COMMAND = [sys.executable, "-m", "lorry.cli"]


def files(*folders):
    """Every file under these folders."""
    return [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if not path.is_dir()]


def csv(folder, text):
    folder.mkdir()
    (folder / "pairs.csv").write_text(text)
    return folder


def rows(folder, labels=("E", "I"), texts=None):
    """A channel of one pair a line, two queries a label."""
    texts = texts or [f"text {number}" for number in range(20)]
    body = "".join(f"query {row // 4},{text},{labels[row % len(labels)]}\n" for row, text in enumerate(texts))
    return csv(folder, "query,product_title,label\n" + body)


def missing_folder(where, model):
    return {"train": where / "nowhere"}, ["nowhere does not exist"]


def no_folder_named(where, model):
    return {}, ["no training pairs", "--train"]


def empty_channel(where, model):
    (where / "train").mkdir()
    return {"train": where / "train"}, ["train"]


def header_only(where, model):
    return {"train": csv(where / "train", "query,product_title,label\n")}, ["no rows"]


def no_such_column(where, model):
    options = {"train": rows(where / "train"), "label_column": "stars"}
    return options, ["stars", "label_column", "query, product_title, label"]


def unrecognised_column(where, model):
    return {"train": csv(where / "train", "query,product_title,stars\na,b,1\n")}, [
        "label",
        "query, product_title, stars",
    ]


def unknown_labels(where, model):
    return {"train": rows(where / "train", ("good", "bad"))}, ["'good'", "'bad'", "--label_map"]


def one_unknown_label(where, model):
    return {"train": rows(where / "train", ("E", "I", "S", "Q"))}, ["unknown label", "'Q'", "pairs.csv"]


def nothing_relevant(where, model):
    return {"train": rows(where / "train", ("0",))}, ["none of", "relevant", "--positive_threshold"]


def everything_relevant(where, model):
    return {"train": rows(where / "train", ("E", "S"))}, ["every one", "relevant", "--positive_threshold"]


def empty_texts(where, model):
    texts = ["<br>&nbsp;" if row % 5 == 0 else f"text {row}" for row in range(20)]
    return {"train": rows(where / "train", texts=texts)}, ["4 of 20 rows", "missing text", "row"]


def truncated(where, model):
    (where / "train").mkdir()
    path = where / "train" / "pairs.parquet"
    pq.write_table(
        pa.table({"query": ["a"] * 500, "product_title": list(map(str, range(500))), "label": [1] * 500}), path
    )
    path.write_bytes(path.read_bytes()[:-100])
    return {"train": where / "train"}, ["pairs.parquet", "complete"]


def not_utf8(where, model):
    folder = rows(where / "train")
    path = folder / "pairs.csv"
    path.write_bytes(path.read_bytes().replace(b"text 3", b"caf\xe9"))
    return {"train": folder}, ["pairs.csv", "not UTF-8", "line 5", "0xe9"]


def bad_validation(where, model):
    return {"train": rows(where / "train"), "validation": where / "nowhere"}, ["nowhere"]


def unknown_model(where, model):
    return {"train": rows(where / "train"), "pretrained_model": "nobody/nothing"}, ["nobody/nothing", "bundled"]


def missing_model(where, model):
    return {"train": rows(where / "train"), "pretrained_model": where / "base"}, ["base", "--pretrained_model"]


def pickled_model(where, model):
    base = shutil.copytree(model, where / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    return {"train": rows(where / "train"), "pretrained_model": base}, ["no safetensors weights", "save_pretrained"]


def truncated_model(where, model):
    base = shutil.copytree(model, where / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return {"train": rows(where / "train"), "pretrained_model": base}, ["cannot be loaded", "base"]


def not_a_model(where, model):
    (where / "base").mkdir()
    return {"train": rows(where / "train"), "pretrained_model": where / "base"}, ["config.json"]


def too_long(where, model):
    return {"train": rows(where / "train"), "max_length": 9999}, ["max_length is 9999", "64"]


def too_short(where, model):
    return {"train": rows(where / "train"), "max_length": 1}, ["max_length is 1,", "take 2 tokens", "--max_length 3"]


def no_such_module(where, model):
    options = {"train": rows(where / "train"), "lora_targets": "query,kwery"}
    return options, ["kwery", "encoder.layer.*.attention.self.query"]


def model_under_a_file(where, model):
    (where / "file").touch()
    return {"train": rows(where / "train"), "model_dir": where / "file" / "model"}, ["file/model", "--model_dir"]


def output_in_proc(where, model):
    options = {"train": rows(where / "train"), "output_data_dir": "/proc/nothing"}
    return options, ["/proc/nothing", "--output_data_dir"]


def checkpoints_under_a_file(where, model):
    (where / "file").touch()
    return {"train": rows(where / "train"), "checkpoint_dir": where / "file" / "x"}, ["file/x", "--checkpoint_dir"]


def somebody_elses_folder(where, model):
    (where / "work").mkdir()
    (where / "work" / "thesis.tex").touch()
    return {"train": rows(where / "train"), "model_dir": where / "work"}, ["work is not empty", "--model_dir"]


def results_inside_the_model(where, model):
    """The model's folder is replaced whole: results inside would be lost."""
    options = {"train": rows(where / "train"), "output_data_dir": where / "model" / "results"}
    return options, ["model/results", "--output_data_dir"]


def results_and_model_in_one_folder(where, model):
    return {"train": rows(where / "train"), "output_data_dir": where / "model"}, ["model", "--output_data_dir"]


def pairs_inside_the_model(where, model):
    (where / "model").mkdir()
    return {"train": rows(where / "model" / "train")}, ["model/train", "--train"]


def checkpoints_inside_the_model(where, model):
    return {"train": rows(where / "train"), "checkpoint_dir": where / "model" / "ck"}, ["model/ck", "--checkpoint_dir"]


def pairs_named_as_a_result(where, model):
    folder = where / "shop"
    folder.mkdir()
    (folder / "training.jsonl").write_text('{"query": "lamp", "product_title": "lamp", "label": 1}\n')
    options = {"train": folder / "training.jsonl", "output_data_dir": folder}
    return options, ["output_data_dir is the folder of the train pairs", "--output_data_dir"]


def somebody_elses_report(where, model):
    (where / "output").mkdir()
    (where / "output" / "report.html").write_text("<h1>Sales in May</h1>")
    return {"train": rows(where / "train")}, ["report.html exists and was not written by Lorry", "--output_data_dir"]


def results_and_checkpoints_in_one_folder(where, model):
    options = {"train": rows(where / "train"), "checkpoint_dir": where / "output"}
    return options, ["output_data_dir and checkpoint_dir are the same folder", "--checkpoint_dir"]


def link_to_nowhere(where, model):
    (where / "link").symlink_to("nowhere")
    options = {"train": rows(where / "train"), "model_dir": where / "link"}
    return options, ["link is a symbolic link to nowhere, which does not exist", "--model_dir"]


def folder_behind_a_link_to_nowhere(where, model):
    (where / "link").symlink_to("nowhere")
    options = {"train": rows(where / "train"), "checkpoint_dir": where / "link" / "inside"}
    return options, ["link is a symbolic link to nowhere, which does not exist", "--checkpoint_dir"]


def output_not_utf8(where, model):
    options = {"train": rows(where / "train"), "output_data_dir": where / os.fsdecode(b"caf\xe9")}
    return options, ["output_data_dir is not UTF-8: ", r"/caf\udce9'"]


def model_dir_not_utf8(where, model):
    options = {"train": rows(where / "train"), "model_dir": where / os.fsdecode(b"caf\xe9")}
    return options, ["model_dir is not UTF-8: ", r"/caf\udce9'"]


def label_map_not_utf8(where, model):
    options = {"train": rows(where / "train"), "label_map": os.fsdecode(b"caf\xe9=1,E=1,I=0")}
    return options, [r"label_map is not UTF-8: 'caf\udce9=1,E=1,I=0'"]


def no_scores_of_a_teacher(where, model):
    options = {"train": rows(where / "train"), "loss": "infonce+margin_mse"}
    return options, ["the loss infonce+margin_mse needs a teacher's scores", "--teacher_column NAME"]


def a_teachers_score_in_words(where, model):
    text = "query,product_title,label,teacher_score\nq,a,1,0.5\nq,b,0,good\n"
    return {"train": csv(where / "train", text), "loss": "kl"}, [
        "pairs.csv line 3: the teacher's score 'good'",
        "leave the cell empty",
    ]


def too_many_dimensions(where, model):
    return {"train": rows(where / "train"), "matryoshka_dims": "16,64"}, ["matryoshka_dims has 64", "have 32 numbers"]


def required_of_no_split(where, model):
    options = {"train": rows(where / "train"), "require": "roc_auc>=0.5,test:roc_auc>=0.5"}
    return options, ["require has 'test:roc_auc>=0.5'", "there are no test pairs"]


def required_of_labels_that_do_not_say(where, model):
    test = csv(where / "test", "query,product_title,label\nq,a,E\nq,b,E\n")
    options = {"train": rows(where / "train"), "test": test, "require": "roc_auc>=0.5"}
    return options, ["the labels of the test pairs do not define roc_auc", "Require another metric"]


MISTAKES = [
    missing_folder, no_folder_named, empty_channel, header_only, no_such_column, unrecognised_column, unknown_labels,
    one_unknown_label, nothing_relevant, everything_relevant, empty_texts, truncated, not_utf8, bad_validation,
    unknown_model, missing_model, pickled_model, truncated_model, not_a_model, too_long, too_short, no_such_module,
    model_under_a_file, output_in_proc, checkpoints_under_a_file, somebody_elses_folder, results_inside_the_model,
    results_and_model_in_one_folder, pairs_inside_the_model, checkpoints_inside_the_model, pairs_named_as_a_result,
    somebody_elses_report, results_and_checkpoints_in_one_folder, link_to_nowhere, folder_behind_a_link_to_nowhere,
    output_not_utf8, model_dir_not_utf8, label_map_not_utf8, no_scores_of_a_teacher, a_teachers_score_in_words,
    too_many_dimensions, required_of_no_split, required_of_labels_that_do_not_say,
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_training_is_one_line_that_says_what_and_where_and_leaves_nothing(tmp_path, tiny_model, mistake):
    options, says = mistake(tmp_path, tiny_model("bert"))
    folders = {"model_dir": tmp_path / "model", "output_data_dir": tmp_path / "output"}
    before = files(tmp_path)
    ended = lorry("train", **{"pretrained_model": tiny_model("bert")} | folders | options)
    assert_one_line(ended, says)
    assert files(tmp_path) == before
    assert not list(tmp_path.rglob(".lorry-*"))


def assert_one_line(ended, says=()):
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    errors = [line for line in ended.lines if line.startswith("error: ")]
    assert errors == ended.lines[-1:], ended.output
    missing = [text for text in says if text not in errors[0]]
    assert not missing, errors[0]
    assert errors[0].endswith((".", "?")) or "--" in errors[0].split(". ")[-1]  # a mend closes it


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lora_rnk", "8"], ["unknown option --lora_rnk", "Did you mean --lora_rank?"]),
        (["--lora-rnk=8"], ["Did you mean --lora_rank?"]),
        (["--learning"], ["unknown option --learning", "--help"]),
        (["pairs.csv"], ["'pairs.csv' is not an option", "--name value"]),
        (["--loss", "cosent", "--temperature", "0.1"], ["temperature is 0.1", "cosent has no infonce", "Leave out"]),
        (["--loss", "infonce", "--scale", "9"], ["scale is 9.0", "infonce has no ranknet or lambda or"]),
        (["--loss", "cosent", "--hard-negatives", "2"], ["hard_negatives is 2", "cosent has no infonce"]),
        (["--teacher_column", "gpt"], ["teacher_column is gpt", "has no margin_mse or kl", "Leave out teacher_column"]),
        (["--lora_rank", "0", "--lora_alpha", "64"], ["lora_alpha is 64.0, but lora_rank 0 trains all weights"]),
        (["--epochs", "two"], ["epochs is 'two'", "whole number"]),
        (["--epochs", "0"], ["epochs is 0", "1 or more"]),
        (["--lora_rank", "x"], ["lora_rank is 'x'"]),
        (["--lora-rank", "x"], ["lora_rank is 'x'"]),
        (["--lr", "9" * 400], [f"lr is {'9' * 59}…"]),
        (["--lora_alpha", "1e308"], ["lora_alpha is 1e308", "1000000.0 or less"]),
        (["--temperature", "1e-320"], ["temperature is 1e-320", "0.0001 or more"]),
        (["--lr", "fast"], ["lr is 'fast'", "a number"]),
        (["--lr", "nan"], ["lr is nan"]),
        (["--lr", "inf"], ["lr is inf"]),
        (["--lr"], ["--lr", "expected one argument"]),
        (["--loss", "triplet"], ["loss is 'triplet'", "no part of a loss", "infonce, ranknet, lambda"]),
        (["--small_version", "maybe"], ["small_version is 'maybe'", "true or false"]),
        (["--small_version"], ["--small_version", "expected one argument"]),
        (["--small-version", "--epochs", "1"], ["small", "expected one argument"]),
    ],
)
def test_a_mistake_in_a_hyperparameter_is_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the defaults of the folders to write are relative
    assert_one_line(lorry("train", *words), says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "plan", "evaluate", "submit"])
def test_a_requirement_that_cannot_be_read_is_told_before_anything_is(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    required = ["--model", "m", "--data", "d", "--output", "o/m.json"] if command == "evaluate" else []
    ended = lorry(command, *required, "--require", "roc_auc>=0.7", "--require", "ndcg>=+0.005")
    assert_one_line(ended, ["require has 'ndcg>=+0.005': there is no such metric", "Did you mean ndcg@10?"])
    assert len(ended.lines) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["trian"], ["jobs"], ["jobs", "start", "x"], ["evaluate", "--model", "bundled"]])
def test_a_mistake_in_the_command_is_one_line_that_points_at_help(words):
    assert_one_line(lorry(*words), ["--help"])


@pytest.mark.parametrize(
    ("command", "option"),
    [("plan", "--model_dir"), ("plan", "--output-data-dir"), ("plan", "--checkpoint_dir"), ("evaluate", "--lora_rank"),
     ("evaluate", "--loss"), ("submit", "--model_dir"), ("jobs status j", "--epochs")],
)  # fmt: skip
def test_an_option_without_effect_is_refused(command, option):
    required = ["--model", "m", "--data", "d", "--output", "o"] if command == "evaluate" else []
    assert_one_line(lorry(*command.split(), *required, option, "8"), [f"{option} has no effect in this command"])


def test_only_fetch_takes_a_folder():
    assert_one_line(lorry("jobs", "status", "j", "--folder", "x"), ["unknown option --folder"])


@pytest.mark.parametrize("command", ["evaluate", "submit"])
def test_every_command_names_the_nearest_hyperparameter(command):
    required = {"evaluate": ["--model", "m", "--data", "d", "--output", "o"], "submit": []}[command]
    assert_one_line(lorry(command, *required, "--max_lenght", "8"), ["Did you mean --max_length?"])


def test_mistakes_in_evaluation_are_one_line_each(tmp_path, tiny_model):
    data, model, output = rows(tmp_path / "data"), tiny_model("bert"), tmp_path / "metrics.json"
    mistakes = [
        ({"data": tmp_path / "nowhere"}, ["nowhere"]),
        ({"model": "nobody/nothing"}, ["nobody/nothing"]),
        ({"output": tmp_path}, ["--output"]),
        ({"output": data / "pairs.csv"}, ["pairs.csv exists and was not written by Lorry", "--output"]),
        ({"output": model / "config.json"}, ["config.json exists and was not written by Lorry", "--output"]),
        ({"output": data / "pairs.csv" / "metrics.json"}, ["cannot be written", "--output"]),
        *(
            ({"output": path}, [f"{path.name} exists and was not written by Lorry", "--output"])
            for path in saved(tmp_path)
        ),
    ]
    before = {path: path.read_bytes() for path in files(tmp_path)}
    for options, says in mistakes:
        assert_one_line(lorry("evaluate", **{"data": data, "model": model, "output": output} | options), says)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    assert not output.exists()


def saved(where):
    """Return the files of a saved data set that name its splits."""
    table = Dataset.from_dict({"query": ["a", "b"], "product_title": ["c", "d"], "label": [0, 1]})
    DatasetDict({"train": table, "test": table}).save_to_disk(where / "saved")
    info = where / "saved" / "train" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"splits": {"train": {"name": "train", "num_bytes": 9}}}))
    return where / "saved" / "dataset_dict.json", info


def run(*words):
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)


def test_help_lists_the_commands():
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in done.stdout for command in ("train", "plan", "evaluate", "submit", "jobs"))


@pytest.mark.parametrize(
    ("command", "options"), [("train", TrainConfig), ("plan", TrainConfig), ("submit", JobOptions)]
)
def test_help_of_a_command_lists_every_field_with_its_default(command, options):
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    blocks = re.split(r"\n  (?=--)", done.stdout)  # one an option
    shown = {re.match(r"--(\w+)", block)[1]: " ".join(block.split()) for block in blocks[1:]}
    no_plan = {"model_dir", "output_data_dir", "checkpoint_dir", "processes", "host_wait"}
    refused = no_plan if command == "plan" else set()
    assert not refused & shown.keys()
    for item in dataclasses.fields(options):
        if item.name in refused:
            continue
        default = str(item.default).lower() if isinstance(item.default, bool) else item.default
        assert f"(default: {'none' if default in ('', None) else default})" in shown[item.name], item.name
        if "_" in item.name:
            assert f"--{item.name.replace('_', '-')}" in shown[item.name]


def test_a_process_ends_in_one_line_and_exit_code_1_on_a_users_mistake():
    done = run("train", "--lora_rnk", "8")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "error: unknown option --lora_rnk. Did you mean --lora_rank?\n"


@pytest.mark.parametrize("command", ["plan", "evaluate"])
def test_ctrl_c_is_one_line_and_exit_code_130(command, tmp_path, tiny_model, shop_pairs):
    """Where nothing is to be saved the first one ends the command."""
    words = {
        "plan": ["--train", shop_pairs(tmp_path / "pairs"), "--pretrained_model", tiny_model("bert")],
        "evaluate": [
            "--data",
            shop_pairs(tmp_path / "data"),
            "--model",
            tiny_model("bert"),
            "--output",
            tmp_path / "m",
        ],
    }
    process = subprocess.Popen(
        [*COMMAND, command, *map(str, words[command])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(1.5)  # while the libraries load
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (output.splitlines()[-1:], errors) == (["error: interrupted"], "")
    assert process.returncode in (130, -signal.SIGINT)  # the same to a shell; Python chooses


def test_a_second_ctrl_c_ends_training_at_once(tmp_path, tiny_model, shop_pairs):
    options = {"train": shop_pairs(tmp_path / "train"), "pretrained_model": tiny_model("bert"), "epochs": 100_000,
               "log_every": 1, "model_dir": tmp_path / "model", "output_data_dir": tmp_path / "output"}  # fmt: skip
    words = [str(item) for name, value in options.items() for item in (f"--{name}", value)]
    with subprocess.Popen(
        [*COMMAND, "train", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        seen = [next(process.stdout)]
        while "training loss" not in seen[-1]:
            seen.append(next(process.stdout))
        process.send_signal(signal.SIGINT)
        while "SIGINT received" not in seen[-1]:
            seen.append(next(process.stdout))
        process.send_signal(signal.SIGINT)
        seen += process.stdout
    assert process.returncode in (0, 130), "".join(seen)  # 0: it was quicker
    assert "Traceback" not in "".join(seen)
    assert process.returncode == 0 or seen[-1] == "error: interrupted\n"


TOO_LONG = "x" * 300


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--train", TOO_LONG, "--pretrained_model", "bundled"], "File name too long"),
        (["train", "--train", "p", "--model_dir", TOO_LONG], "File name too long"),
        (["train", "--train", "p", "--pretrained_model", f"./{TOO_LONG}"], "error: "),
        (["evaluate", "--model", "bundled", "--data", "d", "--output", TOO_LONG], "File name too long"),
        (["train", "--epochs", "1e30"], "Give 1000000 or less"),
        (["train", "--epochs", "1e400"], "Give a whole number"),
        (["train", "--batch_size", "9" * 400], "epochs|batch_size"),
        (["train", "--lora_rank", "1e9"], "Give 4096 or less"),
        (["train", "--lr", "1e999"], "lr is 1e999"),
        (["jobs", "status", "j", "--region", "us east 1"], "'us east 1' is not an AWS region"),
        (["submit", "--region", "x y", "--image", "1" * 12 + ".dkr.ecr.us-east-1.amazonaws.com/lorry", "--train", "s3://bucket/a",
          "--output", "s3://bucket/b", "--role", "arn:aws:iam::123456789012:role/lorry"], "is not an AWS region"),
    ],
)  # fmt: skip
def test_whatever_is_given_the_answer_is_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = lorry(*words)
    assert ended.code == 1
    assert re.search(says, ended.lines[-1]), ended.output
    assert "Traceback" not in ended.output
    assert len(ended.lines[-1]) < 700


def test_a_reader_that_has_gone_ends_the_command_without_a_word():
    command = f"{sys.executable} -m lorry.cli train --help; {sys.executable} -m lorry.cli train --lora_rnk 8"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "1"
    assert done.stderr == ""


def test_a_full_disk_behind_standard_output_is_said_on_standard_error():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*COMMAND, "train", "--lora_rnk", "8"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: [Errno 28] No space left on device\n"


def test_training_ends_when_nobody_reads_its_log(tmp_path, tiny_model, shop_pairs):
    options = {"train": shop_pairs(tmp_path / "train"), "pretrained_model": tiny_model("bert"), "epochs": 100_000,
               "log_every": 1, "model_dir": tmp_path / "model", "output_data_dir": tmp_path / "output"}  # fmt: skip
    words = " ".join(f"--{name} {value}" for name, value in options.items())
    command = f"{sys.executable} -m lorry.cli train {words} | head -5 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_ascii_terminal_gets_question_marks(tmp_path):
    folder = csv(tmp_path / "train", "query,product_title,label\n" + "kühl,größe,sehr gut\n" * 3)
    done = subprocess.run(
        [*COMMAND, "train", "--train", str(folder), "--pretrained_model", "bundled"],
        capture_output=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(b"error: unknown label")
    assert b"Traceback" not in done.stdout + done.stderr


def test_waiting_threads_do_not_spin_for_long(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "set, so that it is put back afterwards")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    lorry("train")
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_sigterm_ends_training_with_a_checkpoint_exit_code_0_and_word_of_how_to_resume(
    tmp_path, tiny_model, shop_pairs
):
    folders = {name: tmp_path / name for name in ("model_dir", "output_data_dir", "checkpoint_dir")}
    options = {"train": shop_pairs(tmp_path / "train"), "pretrained_model": tiny_model("bert"), **folders}
    options |= {"epochs": 100_000, "batch_size": 24, "log_every": 1, "on_stop": "checkpoint", "precision": "fp32"}
    words = [str(item) for name, value in options.items() for item in (f"--{name}", value)]
    seen = []
    with subprocess.Popen(
        [*COMMAND, "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            for line in process.stdout:
                seen.append(line)
                if "training loss" in line and process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    break
            asked = time.monotonic()
            seen.extend(process.stdout)
            assert process.wait(timeout=60) == 0, "".join(seen)
        finally:
            process.kill()
    assert time.monotonic() - asked < 60
    stopped = re.search(r"^stopped at step (\d+), resume with the same checkpoint folder$", "".join(seen), re.MULTILINE)
    assert stopped, "".join(seen)
    assert [path.name for path in folders["checkpoint_dir"].iterdir()][-1:] == [f"step-{int(stopped[1]):08d}"]
    assert not files(folders["model_dir"])
