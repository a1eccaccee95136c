"""Where this user's caches are: a folder that nobody else can write, whatever the machine offers."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from lorry.errors import UserError


def cache_folder(name: str) -> Path:
    """Return this user's cache folder of that name: in LORRY_CACHE, XDG_CACHE_HOME/lorry or ~/.cache/lorry.

    Where the home cannot be written, it is in the system's temporary folder.

    Raises:
        UserError: LORRY_CACHE cannot be written, or what is in it belongs to somebody else; or there is no other place.
    """
    if given := os.environ.get("LORRY_CACHE"):
        try:
            Path(given).mkdir(parents=True, exist_ok=True)
            return _own(Path(given) / name)
        except OSError as error:
            raise UserError(
                f"LORRY_CACHE {given} cannot be used: {error.strerror}", "Set it to a folder that you can write."
            ) from error
    for place in (_in_home, _in_temporary_folder):
        with suppress(OSError, RuntimeError):
            return place(name)
    raise UserError(
        "neither the home nor the temporary folder can be written", "Set LORRY_CACHE to a folder that you can write."
    )


def _in_home(name: str) -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    caches = given if given.is_absolute() else Path("~/.cache").expanduser()  # RuntimeError where there is no home
    return _own(_own(caches / "lorry") / name)


def _in_temporary_folder(name: str) -> Path:
    try:
        return _own(_own(Path(tempfile.gettempdir()) / f"lorry-{os.getuid()}") / name)
    except OSError:  # somebody else has put a folder, or a link, in its place
        return _folder_of_this_run()


def _own(folder: Path) -> Path:
    """Return a folder that only this user can write; it is made where it does not exist.

    Raises:
        OSError: It cannot be written, or belongs to somebody else. A symbolic link must be this user's own, as must the
            folder that it leads to.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if {folder.lstat().st_uid, folder.stat().st_uid} != {os.geteuid()}:
        raise PermissionError(errno.EPERM, f"{folder} belongs to another user")
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        folder.chmod(0o700)
    with tempfile.TemporaryFile(dir=folder):  # read-only, perhaps
        return folder


@cache
def _folder_of_this_run() -> Path:
    folder = tempfile.mkdtemp(prefix="lorry-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
