"""The hosts of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hosts:
    """The hosts of a run, in an order that all of them know."""

    names: tuple[str, ...] = ("localhost",)
    name: str = "localhost"
    """This one."""
    interface: str = ""
    """Network interface by which they reach each other; empty: the libraries choose."""
    port: int = 0
    """Of the store on the first host; 0: any that is free, where there is one host."""
    instance: str = ""
    """SageMaker instance type of each; empty where it is not known."""
    wait: float = 300.0
    """Seconds for which they wait for each other at the start."""

    @property
    def number(self) -> int:
        """Place of this host among them."""
        return self.names.index(self.name)

    @property
    def several(self) -> bool:
        """Whether there are more than one."""
        return len(self.names) > 1
