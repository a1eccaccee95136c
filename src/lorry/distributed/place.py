"""Which of a run's processes this one is, as torchrun says it in the environment."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from lorry.errors import UserError

NEEDED = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT",
)  # fmt: skip
HOST_NAME = "LORRY_HOST"
"""Variable in which our own agent hands its processes the name of their host."""


@dataclass(frozen=True)
class Place:
    """One process of `size`, and the store at the first host by which they find each other."""

    rank: int
    size: int
    local_rank: int
    """Counted on this host."""
    local_size: int
    host: int
    """Number of this host."""
    hosts: int
    host_name: str
    store_host: str
    store_port: int
    store_runs: bool
    """Whether the agent that started the processes runs the store; else rank 0 does."""

    @property
    def name(self) -> str:
        """What to call this process."""
        return f"rank {self.rank} on {self.host_name}"


def is_rank(environ: Mapping[str, str]) -> bool:
    """Return whether torchrun, or an agent like it, has started this process."""
    return "RANK" in environ and "WORLD_SIZE" in environ


def place_of(environ: Mapping[str, str]) -> Place:
    """Return the place that the environment names.

    Raises:
        UserError: It names only a part of it.
    """
    if missing := [name for name in NEEDED if name not in environ]:
        raise UserError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}",
            "Start several processes with --processes or torchrun, or unset RANK and WORLD_SIZE.",
        )
    return Place(
        rank=int(environ["RANK"]),
        size=int(environ["WORLD_SIZE"]),
        local_rank=int(environ["LOCAL_RANK"]),
        local_size=int(environ["LOCAL_WORLD_SIZE"]),
        host=int(environ["GROUP_RANK"]),
        hosts=int(environ["GROUP_WORLD_SIZE"]),
        host_name=environ.get(HOST_NAME) or socket.gethostname(),
        store_host=environ["MASTER_ADDR"],
        store_port=int(environ["MASTER_PORT"]),
        store_runs=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
