"""Fetching what a job wrote: whole or not at all, and never outside the folder."""

import gzip
import io
import tarfile

import boto3
import pytest

from cloud import fails, job_of, options
from lorry.aws import jobs
from lorry.aws.submit import submit

pytest_plugins = ("cloud",)


def tar_gz(*members):
    """Return an archive of (name, bytes) or TarInfo."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return made.getvalue()


def put(part, body):
    boto3.client("s3").put_object(Bucket="shop", Key=f"lorry/j/output/{part}.tar.gz", Body=body)


@pytest.fixture
def ended(cloud):
    submit(options(job_name="j"), {})  # moto's jobs complete at once


def test_fetch_unpacks_model_and_output(ended, tmp_path):
    put("model", tar_gz(("config.json", b"{}"), ("1_Pooling/config.json", b"{}")))
    put("output", tar_gz(("data/metrics.json", b"{}")))
    folder = tmp_path / "new" / "j"
    assert jobs.fetch("j", folder) == [folder / "model", folder / "output"]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"model/config.json", "model/1_Pooling/config.json", "output/data/metrics.json"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    fails(lambda: jobs.fetch("j", folder), "model exists already", "another folder")


def test_fetch_of_a_model_alone(ended, tmp_path):
    put("model", tar_gz(("config.json", b"{}")))
    assert jobs.fetch("j", tmp_path) == [tmp_path / "model"]


def test_fetch_of_nothing_or_too_early(ended, tmp_path):
    fails(lambda: jobs.fetch("j", tmp_path / "x"), "left nothing", "logs j")
    job = job_of("j")
    job.training_job_status, job.secondary_status = "InProgress", "Training"
    fails(lambda: jobs.fetch("j", tmp_path / "x"), "has not ended", "stop j")
    assert not (tmp_path / "x" / "model").exists()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def huge():
    info = tarfile.TarInfo("huge")
    info.size = 10**15
    return info.tobuf()


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (("/etc/evil", b"x"), "absolute"),
        (("../evil", b"x"), "out of the folder"),
        (("a/../../evil", b"x"), "out of the folder"),
        (("..\\evil", b"x"), "out of the folder"),
        (("C:\\evil", b"x"), "absolute"),
        (special("evil", tarfile.SYMTYPE, "/etc/passwd"), "neither a file nor a folder"),
        (special("evil", tarfile.SYMTYPE, ".."), "neither a file nor a folder"),
        (special("evil", tarfile.LNKTYPE, "/etc/passwd"), "neither a file nor a folder"),
        (special("evil", tarfile.CHRTYPE), "neither a file nor a folder"),
        (special("evil", tarfile.FIFOTYPE), "neither a file nor a folder"),
    ],
)
def test_an_unsafe_archive_writes_nothing_at_all(ended, tmp_path, member, fault):
    put("model", tar_gz(("config.json", b"{}"), member))
    fails(lambda: jobs.fetch("j", tmp_path / "in" / "j"), fault, "Do not use it")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_archive_that_claims_too_much_is_refused(ended, tmp_path, monkeypatch):
    put("model", gzip.compress(huge() + bytes(1024)))
    fails(lambda: jobs.fetch("j", tmp_path / "j"), "more than", "Make room")
    put("model", tar_gz(*[(f"f{n}", b"") for n in range(6)]))
    monkeypatch.setattr("lorry.archives.MAX_MEMBERS", 5)
    fails(lambda: jobs.fetch("j", tmp_path / "j"), "or 5 files", "Make room")
    assert not (tmp_path / "j" / "model").exists()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda _: b"not gzip", lambda b: b[:-8] + bytes(8)])
def test_a_damaged_archive_leaves_nothing(ended, tmp_path, damage):
    put("model", damage(tar_gz(("weights", bytes(range(256)) * 500))))
    fails(lambda: jobs.fetch("j", tmp_path / "j"), "damaged", "again")
    assert list((tmp_path / "j").iterdir()) == []
