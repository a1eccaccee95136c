"""The folders that a job writes: whether they can be written, and whether they outlive the container."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.outputs import check_writable

log = logging.getLogger("lorry")

CONTENTS = {"model_dir": "model", "output_data_dir": "report", "checkpoint_dir": "checkpoints"}


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    point: str
    kind: str
    read_only: bool

    @property
    def outlives_container(self) -> bool:
        """Whether its files are neither in the container's own layer nor in memory."""
        return self.point != "/" and self.kind != "tmpfs"


def check_temporary_folder() -> None:
    """Check that temporary files can be written.

    Raises:
        UserError: They cannot, as with `docker run --read-only` alone.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError(
            "no temporary file can be written: /tmp is read-only", "Add --tmpfs /tmp to docker run."
        ) from None


def check_outputs(config: TrainConfig, root: Path, *, warn: bool) -> TrainConfig:
    """Check that the output folders can be written.

    Args:
        config: The job.
        root: /opt/ml.
        warn: Warn of what would be lost with the container.

    Returns:
        The job. Its report goes to a temporary folder if nothing is mounted at /opt/ml/output, and it cannot be made.

    Raises:
        UserError: A folder cannot be written.
    """
    default = root / "output" / "data"
    places = {option: Path(getattr(config, option)) for option in CONTENTS}
    if places["output_data_dir"] == default:
        places["output_data_dir"] = default.parent
        if not _mount(default).outlives_container and not _can_be_made(default):
            config = dataclasses.replace(config, output_data_dir=tempfile.mkdtemp(prefix="lorry-output-"))
    for option, content in CONTENTS.items():
        if not (given := getattr(config, option)):
            continue
        _check_writable(Path(given), option, places[option])
        if warn and not _mount(Path(given)).outlives_container:
            log.warning(
                "the %s will be lost with this container: mount a folder (-v /path/to/%s:%s)",
                content,
                places[option].name,
                places[option],
            )
    return config


def _check_writable(folder: Path, option: str, place: Path) -> None:
    """Check as `outputs.check_writable` does, with hints for a container."""
    try:
        check_writable(folder, f"--{option}")
    except UserError as error:
        if os.access(_nearest(folder), os.W_OK):
            raise
        raise UserError(error.cause, _permission_hint(folder, place)) from None


def _permission_hint(folder: Path, place: Path) -> str:
    mount, owner, user = _mount(folder), _nearest(folder).stat().st_uid, os.geteuid()
    if not mount.outlives_container:
        return f"Mount a folder there: -v /path/to/{place.name}:{place}."
    if mount.read_only:
        return f"Mount it without :ro (-v /path/to/{place.name}:{place})."
    if owner == user:
        return "Make the mounted folder writable: chmod u+rwx on the host."
    remedy = "leave out --user" if owner == 0 else 'start the container as its owner: --user "$(id -u):$(id -g)"'
    return (
        f"The mounted folder belongs to user {owner} and the container runs as user {user}: give it to that user "
        f"(on the host: sudo chown -R {user} /path/to/{place.name}), or {remedy}."
    )


def _can_be_made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _mount(folder: Path) -> Mount:
    """Return the file system that the folder is on, or will be."""
    resolved = _nearest(folder).resolve()
    found = Mount("/", "", read_only=False)
    for line in Path("/proc/mounts").read_text("utf-8").splitlines():
        _, point, kind, options, *_ = line.split()
        point = point.replace("\\040", " ")
        if resolved.is_relative_to(point) and len(point) >= len(found.point):
            found = Mount(point, kind, "ro" in options.split(","))
    return found
