"""What services answer: JSON objects with an `outcome` first of all. Readers tolerate fields that they do not know."""

import msgspec

from leasehold.events.capabilities import Order
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.scheduling import Search


class NotRenewed(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A lease that was not renewed, and why."""

    lease: int
    code: RefusalCode
    message: str


class Answer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """The answer to a request.

    `outcome`: `granted`, `renewed`, `released`, `freed`, `ordered`, `retired`, `revoked`, `declared_dead`, `refused`,
    `queued` (it waits: ask again, with the same id, how it stands), `withdrawn`, `transferred`, `switched`, `set` (what
    operators say of classes, quotas, devices and hosts);
    or, with nothing in the log, `invalid` (the request cannot be read: `field`, `message`), `unavailable` (not decided,
    nothing done) or `outcome_unknown` (the append has no answer yet: ask again with the same id).
    """

    outcome: str
    request_id: str = ""
    position: int = 0
    """Of the event that decided it; of a renewal that changes nothing, of the one that keeps the lease already."""
    as_of: int = 0
    """How far the answering service has read the log."""
    era: int = 0
    """Of the log that `as_of` is a place in: behind a restore the same place may be another's."""
    lease: int = 0
    token: int = 0
    """0: the lease was given to another since it was asked."""
    holder: str = ""
    devices: tuple[str, ...] = ()
    state: str = ""
    """Of the lease now: `living`, `ending` (ended, not all its devices are free), `ended`. Of an order: `waiting`,
    `done`, `failed`, `timed_out` (`message` says why)."""
    order: int = 0
    """Which order a host was given."""
    what: Order | None = None
    """What that order says, with the names that were made up for it; for as long as the order is remembered."""
    ended: str = ""
    """How it ended: `released`, `expired`, `outlived` (its domain was there, and has gone), `failed` (a device could
    not be prepared: `message` says why) or `revoked`."""
    prepared: str = ""
    """Of the lease: `preparing`, `prepared`, `taking_back`; empty: nobody hands over on its hosts, or it is over."""
    leases: tuple[int, ...] = ()
    """Which were released, where it was asked for all of a domain; which of many were renewed."""
    ttl_ms: int = 0
    expires_at_ns: int = 0
    queued: int = 0
    """Its place in the queue: an id."""
    ahead: int = 0
    """How many of those that wait come before it and could want the same."""
    until_ns: int = 0
    """Until when it waits."""
    kept: tuple[str, ...] = ()
    """Devices that are kept for it."""
    reserved_for: int = 0
    """The lease that it is to stand in for; until the switch its token opens nothing."""
    not_renewed: tuple[NotRenewed, ...] = ()
    """Of many, those that were not; the others are in `leases`."""
    search: Search | None = None
    """How its devices were found, where none were named."""
    refusal: Refusal | None = None
    """Why not; of what waits, why not yet."""
    field: str = ""
    message: str = ""
    retry_after_ms: int = 0


class Heartbeat(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An agent says that its run lives, and which counter it has used last."""

    run: int
    counter: int


class Heard(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the log has of an agent, as the answer to its heartbeat."""

    run: int
    counter: int
    complete: bool
    wants_report: bool
    stale: str = ""
    as_of: int = 0
    order: int = 0
    """The newest of the orders that it was given and that are open: who does not know it asks for them."""
