"""The hosts of a job, as SageMaker names them in resourceconfig.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorry.container.contract import read_config
from lorry.distributed.hosts import Hosts
from lorry.errors import UserError

PORT = 7777  # as in SageMaker's toolkit


def read_hosts(root: Path) -> Hosts:
    """Return the job's hosts: this one alone where there is no resourceconfig.json.

    Args:
        root: /opt/ml.

    Raises:
        UserError: The file does not name them, or a channel is divided among them.
    """
    resources = read_config(root, "resourceconfig.json")
    if not resources:
        return Hosts()
    names, name = resources.get("hosts"), resources.get("current_host")
    if not isinstance(names, list) or not isinstance(name, str):
        raise UserError(
            "resourceconfig.json lacks hosts or current_host",
            'Write {"current_host": "algo-1", "hosts": ["algo-1"]}, or leave the file out.',
        )
    if name not in names:
        raise UserError(
            f"resourceconfig.json: the current host {name} is not among the hosts {', '.join(map(str, names))}",
            "Write the same name in both.",
        )
    instance = str(resources.get("current_instance_type") or "")
    if len(names) == 1:
        return Hosts((name,), name, instance=instance)
    _check_channels(read_config(root, "inputdataconfig.json"))
    interface = str(resources.get("network_interface_name") or "")
    return Hosts(tuple(sorted(map(str, names))), name, interface, PORT, instance)


def _check_channels(declared: Mapping[str, Any]) -> None:
    """Refuse channels of which every host gets a part."""
    for channel, settings in declared.items():
        if isinstance(settings, dict) and settings.get("S3DistributionType") == "ShardedByS3Key":
            raise UserError(
                f"channel {channel} is ShardedByS3Key, and every host must have all pairs: a query's products are "
                "compared with each other",
                "Set its S3DataDistributionType to FullyReplicated.",
            )
