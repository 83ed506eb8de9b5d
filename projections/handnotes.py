"""What a binder notes on disk, what it is to do, and what may come of that."""

from typing import Final

import msgspec

from leasehold.events.capabilities import OrderToBinder
from leasehold.events.devices import DeviceDescription
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import Back, Before, Busy, Done, Failed, NotBack, PreparedDevice, Ready

PREPARING: Final = "preparing"
PREPARED: Final = "prepared"
TAKING_BACK: Final = "taking_back"


class Grant(msgspec.Struct, frozen=True, order=True, gc=False):
    """One lease. A restored ledger may give its number again, but not at the same time."""

    lease: int
    granted_at_ns: int


class Note(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is known on disk of a device, whatever becomes of this run."""

    key: DeviceKey
    floor: int = 0
    """Tokens below act no more. It never goes back."""
    step: str = ""
    """What was begun for `lease`: `preparing`, `prepared`, `taking_back`; empty: nothing of any lease is left."""
    lease: int = 0
    granted_at_ns: int = 0
    token: int = 0
    boot: str = ""
    """Of which boot of the host the step is."""
    before: Before | None = None
    """What it was before anything was written; `None`: nothing was written yet."""
    prepared: PreparedDevice | None = None
    """What came of it."""
    detached: Before | None = None
    """What it was before an administrator had it detached; it stays so behind leases."""

    @property
    def grant(self) -> Grant:
        """For which lease something was begun."""
        return Grant(self.lease, self.granted_at_ns)


class Prepare(msgspec.Struct, frozen=True, kw_only=True):
    """Hand over these devices of a lease, all or none."""

    number: int
    grant: Grant
    token: int
    keys: tuple[DeviceKey, ...]
    """Those that are still to be handed over; sorted."""
    all_keys: tuple[DeviceKey, ...]
    """All of the lease on this host."""
    handover: Handover | None
    forced: bool
    """The lease was granted although the host itself needs some of it."""
    descriptions: tuple[DeviceDescription, ...]
    """Of `keys`, as the log has them."""
    notes: tuple[Note, ...]
    """Of `keys`: what an earlier run noted for this lease, if any (`before`)."""
    until_ms: int
    """Then it has failed."""


class TakeBack(msgspec.Struct, frozen=True, kw_only=True):
    """Give this device to the host again; where the note has no `before`, only look whether somebody uses it."""

    number: int
    key: DeviceKey
    note: Note
    ours: tuple[DeviceKey, ...]
    """The other devices of the same lease, that nobody has any more: a reset may hit them."""
    forced: bool
    """Even from a domain that has it."""

    @property
    def keys(self) -> tuple[DeviceKey, ...]:
        """What it is about."""
        return (self.key,)


class Operate(msgspec.Struct, frozen=True, kw_only=True):
    """Do what an administrator has ordered."""

    order: int
    ordered_at_ns: int
    what: OrderToBinder
    note: Note
    description: DeviceDescription | None

    @property
    def keys(self) -> tuple[DeviceKey, ...]:
        """What it is about."""
        return (self.what.device,)


Job = Prepare | TakeBack | Operate
Outcome = Ready | Failed | Back | Busy | NotBack | Done | None
"""`None`: the agent ends before it is known; the notes say what was begun."""
