"""Smaller rows of the state: what hangs on a device's row, and what is remembered of principals and refusals."""

import msgspec

from leasehold.events.hostdevs import Truth
from leasehold.events.identities import RequestKey
from leasehold.events.refusals import Refusal


class Binding(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """How far the binder of its host is with a device: prepared for a lease, or, behind that one's end, given back."""

    lease: int
    driver: str = ""
    """What it is bound to now."""
    was_driver: str = ""
    """What it was bound to before it was prepared."""
    reset: str = ""
    given_back: bool = False
    position: int
    at_ns: int


class Quarantine(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Why nobody gets a device: its host cannot bring it into order."""

    lease: int = 0
    """Behind whose end; 0: of one that the ledger does not know any more."""
    reason: str
    help: str
    position: int
    at_ns: int


class Differing(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """That the witnesses of a device differ otherwise than was told of it."""

    kind: str
    """How they do; empty: they agree."""
    since_ns: int
    """0: somebody is out of date, so that it does not count."""


class Drift(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How the witnesses differ about a device, as `DriftDetected` has told it at `position`."""

    kind: str
    leased: Truth
    attached: Truth
    bound: Truth
    position: int
    at_ns: int


class PrincipalState(msgspec.Struct, frozen=True, gc=False):
    """How much is remembered of one principal's ended matters: entries `first` to `next` - 1 of `fading`."""

    first: int = 0
    next: int = 0
    horizon_ns: int = 0
    """Requests issued up to here may have been forgotten, so unknown ones are refused as too old."""


class Fading(msgspec.Struct, frozen=True, gc=False):
    """An answer that may be forgotten from `forget_at_ns` on."""

    key: RequestKey
    forget_at_ns: int


class RecentRefusal(msgspec.Struct, frozen=True, gc=False):
    """A refusal told lately: equal ones are counted on it."""

    fingerprint: str
    refusal: Refusal
    verb: str
    about: tuple[str, ...]
    at_ns: int
    count: int
