"""What the judge writes down of leases, devices, agents and orders."""

from dataclasses import dataclass


@dataclass
class Lease:
    """A lease, living or ended."""

    principal: str
    holder: str
    devices: list[str]
    expires_at_ns: int
    domain: str = ""
    """The uuid of the domain that it is for."""
    ended: int = 0
    """The record in which it ended."""


@dataclass
class Device:
    """A device, as it was told last."""

    lease: int = 0
    users: tuple[str, ...] = ()
    is_missing: bool = False
    is_bare: bool = True
    """Neither bridge, root hub nor protected."""
    usb_id: tuple[str, str] = ("", "")
    replaced_under: int = 0
    """The last lease under which another thing came to sit here: it does not reach that."""


@dataclass
class Source:
    """An agent of a host."""

    run: int
    counter: int = 0
    stale: bool = True
    blind: bool = False

    @property
    def is_fresh(self) -> bool:
        """Whether it can be relied on."""
        return not self.stale and not self.blind


@dataclass
class Order:
    """What a host was told to do."""

    host: str
    agent: str
    parent: str
    device: str
    uuid: str
    principal: str
    deadline_ns: int
    state: str = "waiting"

    @property
    def is_open(self) -> bool:
        """Whether its end is awaited."""
        return self.state == "waiting"
