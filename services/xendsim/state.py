"""What the stand-in's host has: written into its file at each change, and read again when it is started again."""

from typing import Any, Final

import msgspec

from leasehold.events.errors import InvalidInputError

FORMAT: Final = 1
ZERO_UUID: Final = "00000000-0000-0000-0000-000000000000"
LOG_LINES_MAX: Final = 2_000
DOMAINS_MAX: Final = 5_000
DEVICES_MAX: Final = 64
"""Of one domain."""
SAVED_MAX: Final = 256
"""Files with domains."""
_FIRST_DOMID_REUSED: Final = 0x7FF0
"""Xen numbers its domains up to here, and then looks for free numbers from the beginning."""

Tree = str | int | float | bool | list["Tree"]
"""What xend prints, as it has it: lists, and leaves of Python's types."""
Parsed = str | list["Parsed"]
"""What xend has read: all leaves are text."""


class PciFunction(msgspec.Struct, kw_only=True):
    """A PCI function of a domain. Numbers as they were sent: hexadecimal, of any width, with or without `0x`."""

    domain: str
    bus: str
    slot: str
    func: str
    vdevfn: str = "0x100"
    key: str = ""
    uuid: str = ""
    opts: list[list[str]] = []

    @property
    def address(self) -> str:
        """`0000:03:00.0`.

        Raises:
            ValueError: one of the numbers is none.
        """
        return f"{int(self.domain, 16):04x}:{int(self.bus, 16):02x}:{int(self.slot, 16):02x}.{int(self.func, 16):x}"


class Device(msgspec.Struct, kw_only=True):
    """A device of a domain. `attributes`: as they were sent; `channel`: number of its frontend's event channel, of
    which the ring references follow; `live`: the domain has it, rather than only its configuration.
    """

    kind: str
    uuid: str
    devid: int = 0
    attributes: dict[str, str] = {}
    functions: list[PciFunction] = []
    ports: dict[int, str] = {}
    channel: int = 0
    live: bool = False


class Domain(msgspec.Struct, kw_only=True):
    """A domain. `domid`: -1 while it does not run; `doing`: what comes next, at `due_ms` (0: when it is unpaused);
    `hidden`: between its end and its next start, when xend knows nothing of an unmanaged one.
    """

    uuid: str
    name: str
    domid: int = -1
    managed: bool = False
    hvm: bool = False
    vcpus: int = 1
    online: int = 0
    """How many of them are on; 0: all."""
    memory_mib: int = 128
    maxmem_mib: int = 128
    weight: int = 256
    cap: int = 0
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_crash: str = "restart"
    image: dict[str, Any] = {}
    """What was sent of its image: for each key a `Parsed`, which is deeper than a file's type can say."""
    boot_pci: list[Any] | None = None
    """The PCI functions that it was to start with, as the image lists them; none before the first start was tried."""
    pins: list[list[int]] = []
    devices: list[Device] = []
    paused: bool = False
    crashed: bool = False
    ending: bool = False
    """It crashed, and is being destroyed."""
    suspended: bool = False
    ended: str = ""
    """Why the guest has stopped by itself, while xend has not yet taken note."""
    hidden: bool = False
    ran: bool = False
    start_ms: int = 0
    cpu_ms: int = 0
    """How long it had run unpaused up to `cpu_at_ms`."""
    cpu_at_ms: int = 0
    doing: str = ""
    due_ms: int = 0
    deaf: bool = False
    """The guest does not do what it is asked for."""
    dying_ms: int | None = None
    """How long its devices are held after its end, if not as the timing has it; -1: for ever."""
    vanishing: bool = False
    """It goes right after the next list that names it."""


class Dying(msgspec.Struct, kw_only=True):
    """A domain that xend shows no more and Xen still has, with its PCI functions. `due_ms`: -1: never."""

    domid: int
    uuid: str
    name: str
    functions: list[str]
    due_ms: int


class Timing(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How long things take, in ms."""

    guest_ms: int = 300
    """A guest that was asked to shut down or reboot, until it has."""
    ended_ms: int = 200
    """From there until xend takes note."""
    crash_ms: int = 2_000
    """From a crash until xend has written its notes and begins to destroy or start again."""
    destroy_ms: int = 300
    """From there until the domain is gone."""
    gap_ms: int = 1_000
    """From the end of a domain that is started again until it is."""
    dying_ms: int = 500
    """How long Xen holds what a domain had after xend has forgotten it."""
    restart_after_ms: int = 60_000
    """A domain that ran for less is not started again by xend."""
    hotplug_timeout_ms: int = 100_000
    """How long xend waits for a device that does not come up."""
    linger_ms: int = 60_000
    """How long sockets stay open that xend forgets to close."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not 0 <= value <= 86_400_000:
                raise InvalidInputError(f"{value} is not between 0 and 86,400,000 ms", field=f"timing.{name}")


def _default_pci() -> dict[str, str]:
    return {
        "0000:03:00.0": "pciback",
        "0000:03:00.1": "pciback",
        "0000:06:00.0": "pciback",
        "0000:07:00.0": "pciback",
        "0000:00:1f.2": "ahci",
    }


def _default_directories() -> list[str]:
    return ["/tmp", "/var/lib/xen/save", "/root"]  # noqa: S108 - no file is made there


class State(msgspec.Struct, kw_only=True):
    """All of it."""

    format: int = FORMAT
    seed: int = 0
    """Which uuids and MAC addresses are made up, and, unless it is 0, in which order keys stand."""
    serial: int = 0
    """How many random things were made up."""
    host: str = "vm"
    cpus: int = 4
    memory_mib: int = 16_384
    next_domid: int = 1
    channels: int = 0
    domains: list[Domain] = []
    dying: list[Dying] = []
    pci: dict[str, str] = msgspec.field(default_factory=_default_pci)
    """Address of each PCI function of the host, and its driver."""
    saved: dict[str, Domain] = {}
    """Files with saved domains, by path; no file of the machine is touched."""
    directories: list[str] = msgspec.field(default_factory=_default_directories)
    """Where files can be written."""
    stuck: list[str] = []
    """`uname`s of disks whose hotplug script does not answer."""
    dmesg: str = ""
    log: list[str] = []
    timing: Timing = msgspec.field(default_factory=Timing)
    xend_starts: int = 0


def next_domid(state: State) -> int:
    """A number for a domain that starts: higher than all before, as long as Xen has such numbers."""
    held = {each.domid for each in state.domains} | {each.domid for each in state.dying}
    while state.next_domid in held or state.next_domid >= _FIRST_DOMID_REUSED:
        state.next_domid = 1 if state.next_domid >= _FIRST_DOMID_REUSED else state.next_domid + 1
    state.next_domid += 1
    return state.next_domid - 1
