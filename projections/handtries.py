"""What a run of a binder remembers of what it tries: of devices, of leases, and of jobs."""

import msgspec

from leasehold.projections.handnotes import Prepare, TakeBack


class Try(msgspec.Struct):
    """A device that is being taken back."""

    since_ms: int | None = None
    """Since when nobody has it, as far as is known."""
    held_since_ms: int | None = None
    next_ms: int = 0
    reason: str = ""
    help: str = ""


class HandoverTry(msgspec.Struct):
    """A living lease on this host that is not prepared yet, or was not long ago."""

    since_ms: int
    next_ms: int = 0
    failed: str = ""
    """Why it cannot be; the log is told, and ends it."""
    is_again: bool = False
    """It was prepared once: what of it comes back is prepared again, and its failing ends nothing."""


class Running(msgspec.Struct, frozen=True):
    """A job that was begun."""

    job: Prepare | TakeBack
    until_ms: int
