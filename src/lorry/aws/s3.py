"""Files to and from S3."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from tqdm import tqdm

from lorry.archives import unpack
from lorry.aws.session import code, errors
from lorry.errors import UserError


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key (or prefix, without slashes at its ends) of `s3://bucket/key`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def files_in(folder: Path) -> list[Path]:
    """Return the files below `folder`, sorted, without hidden ones.

    Raises:
        UserError: `folder` is not a folder or holds no file.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {kind}", "Give a folder, or an s3:// URI.")
    found = (path for path in folder.rglob("*") if path.is_file())
    files = sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))
    if not files:
        raise UserError(f"the folder {folder} holds no file", "Put the tables of pairs (or the model's files) there.")
    return files


def upload(s3: Any, folder: Path, uri: str, kms_key: str = "") -> None:
    """Copy the files below `folder` to `uri`, with a progress bar on a terminal.

    Args:
        s3: A boto3 client of S3.
        folder: A local folder; hidden files stay behind.
        uri: `s3://bucket/prefix`; the files' names within the folder are added to it.
        kms_key: Id or ARN of the key that encrypts them; empty: the bucket's own default.

    Raises:
        UserError: Nothing to copy, or S3 refuses.
    """
    files = files_in(folder)
    bucket, prefix = split_uri(uri)
    extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    total = sum(path.stat().st_size for path in files)
    with (
        _bar(f"upload {folder.name}", total) as bar,
        errors(f"copying {folder} to {uri}"),
    ):
        for path in files:
            key = "/".join((prefix, *path.relative_to(folder).parts)).lstrip("/")
            s3.upload_file(str(path), bucket, key, ExtraArgs=extra, Callback=bar.update)


def fetch_archive(s3: Any, uri: str, target: Path) -> bool:
    """Download the `.tar.gz` at `uri` and unpack it as the new folder `target`.

    The archive is unpacked next to `target` and then renamed, so that `target` is complete or absent.

    Returns:
        False where S3 has no such object.

    Raises:
        UserError: `target` exists, S3 refuses, the archive is damaged or unsafe, or the disk too small.
    """
    if target.exists():
        raise UserError(f"{target} exists already", "Give another folder, or move that one away.")
    bucket, key = split_uri(uri)
    with errors(f"reading {uri}"):
        try:
            size = s3.head_object(Bucket=bucket, Key=key)["ContentLength"]
        except ClientError as error:
            if code(error) in ("404", "NoSuchKey"):
                return False
            raise
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as temporary:
            archive = Path(temporary) / "archive.tar.gz"
            with errors(f"reading {uri}"), _bar(f"download {key.rpartition('/')[2]}", size) as bar:
                s3.download_file(bucket, key, str(archive), Callback=bar.update)
            unpacked = Path(temporary) / "unpacked"
            unpacked.mkdir()
            unpack(archive, unpacked)
            unpacked.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}", "Give a folder with room.") from error
    return True


def _bar(text: str, total: int) -> tqdm[Any]:
    """Return a progress bar over bytes that shows on a terminal only."""
    return tqdm(total=total, desc=text, unit="B", unit_scale=True, disable=None)
