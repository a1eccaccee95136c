"""Unpack a `.tar.gz` with bounds: on where its files go, how many they are, and how large."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path

from lorry.errors import UserError

MAX_MEMBERS = 10_000
MAX_RATIO = 100  # bytes unpacked per byte of archive; weights hardly shrink, and logs by about 10
SMALL_BYTES = 100_000_000  # an archive that unpacks to less is never too large
UNSAFE = "Do not use it; find out where it comes from."


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a `.tar.gz` of plain files and folders into the existing `folder`.

    Nothing is written before every member has been checked: names must stay below `folder`; links, devices and the
    like, which a model does not have, are refused.

    Raises:
        UserError: The archive is unsafe or damaged, or the disk too small.
    """
    limit = min(shutil.disk_usage(folder).free, max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size))
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream) as tar:
            total = 0
            members = []
            for member in tar:
                fault = _fault(member)
                if fault:
                    raise UserError(f"unsafe archive {archive}: {member.name!r} {fault}", UNSAFE)
                members.append(member)
                total += member.size
                if total > limit or len(members) > MAX_MEMBERS:
                    raise UserError(
                        f"the archive {archive} unpacks to more than {limit:,} bytes or {MAX_MEMBERS:,} files",
                        f"Make room on the disk if it is full; otherwise: {UNSAFE}",
                    )
            while stream.read(1 << 20):
                pass  # up to the checksum, which tarfile would leave unread
            for member in members:
                tar.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"unsafe archive {archive}: {error}", UNSAFE) from error
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"the archive {archive} cannot be unpacked: {error}", "Fetch it or pack it again.") from error


def _fault(member: tarfile.TarInfo) -> str:
    name = member.name.replace("\\", "/")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        return "has an absolute path"
    if ".." in name.split("/"):
        return "leads out of the folder"
    if not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    return ""
