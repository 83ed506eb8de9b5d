"""What the judge writes down of leases, devices, agents and orders."""

from dataclasses import dataclass, field


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
    tenant: str = ""
    mode: str = ""
    token: int = 0
    """The position that its token is made of: of the grant, or of what gave it to another since."""
    ttl_ms: int = 0
    tolerates: tuple[str, ...] = ()
    reserved_for: int = 0
    """The lease that it is to stand in for: until then its token opens nothing."""
    charges: dict[str, set[str]] = field(default_factory=dict)
    """By device: against which quotas it counts."""

    @property
    def acts(self) -> bool:
        """Whether its token opens anything."""
        return not self.ended and not self.mode and not self.reserved_for


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
