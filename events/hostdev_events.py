"""What happened to devices that are handed out, taken back, or not as they should be. See `event_types` for all others.

Only on managed hosts is anything handed out: there a *binder* takes a leased device from its host driver, binds it to a
stub driver, and takes it back behind the lease's end.
"""

import msgspec

from leasehold.events.hostdevs import Truth
from leasehold.events.identities import DeviceId, DeviceKey, HostName, RequestRef


class DevicePrepared(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="device_prepared.v1"):
    """The device is ready for the lease's holder: bound to the stub and reset, or, of USB, off its host drivers; and it
    was looked whether that is so.
    """

    host: HostName
    key: DeviceKey
    lease: int
    driver: str
    """The stub that it is bound to; empty: to none, as USB devices are."""
    was_driver: str = ""
    """What it was bound to before, and will be again; empty: to nothing."""
    reset: str = ""
    """How it was reset: one of `hostdevs.RESETS`; empty: it cannot be, or need not."""


class PrepareFailed(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="prepare_failed.v1"):
    """A device of the lease could not be prepared. That ends the lease: none of its devices is handed over, and those
    that were prepared already are taken back. They are free when that is done, as behind any other end.
    """

    host: HostName
    key: DeviceKey
    lease: int
    reason: str


class DeviceGivenBack(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="device_given_back.v1"
):
    """The device of an ended lease is the host's again, and it was looked whether that is so. It ends a quarantine."""

    host: HostName
    key: DeviceKey
    lease: int
    """0: of one that the ledger does not know any more."""
    driver: str
    """What it is bound to now; empty: to nothing, as before."""


class DeviceQuarantined(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="device_quarantined.v1"
):
    """The host's binder cannot bring the device into the state that it should have. Nobody gets it until the binder
    has given it back after all, or an operator has confirmed that it is free. Or (`evidence`) it has failed its holders
    too often: nobody gets it until an operator has said that it works again.
    """

    host: HostName
    key: DeviceKey
    lease: int
    """Of whose end it is; 0: of one that the ledger does not know any more."""
    reason: str
    help: str
    """The way out."""
    evidence: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    """Positions of the events that show how often it failed; written only where that is the reason."""


class LeaseRevoked(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="lease_revoked.v1"):
    """An operator took the lease away; by force, perhaps one that has ended and whose devices are not free yet: how it
    ended stays.
    """

    request: RequestRef
    lease: int
    reason: str
    force: bool = False
    """Its devices are taken even from a domain that still has them."""


class HostDeclaredDead(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="host_declared_dead.v1"
):
    """An operator said that this host is off, and will not act before it has reported anew. Until then nothing of it is
    granted, and what its ended leases held is free.
    """

    request: RequestRef
    host: HostName
    reason: str


class DriftDetected(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="drift_detected.v1"):
    """The ledger, the hypervisors and the host itself do not agree about a device, and have not for some time."""

    device: DeviceId
    kind: str
    """One of `hostdevs.DRIFTS`."""
    leased: Truth
    """What the ledger says."""
    attached: Truth
    """What hypervisors say."""
    bound: Truth
    """What the host's own files say: whether it is there, and its driver."""


class DriftResolved(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="drift_resolved.v1"):
    """They agree again, or disagree in another way, which is then told."""

    device: DeviceId
    kind: str
    since_position: int
    """Of the `DriftDetected`."""


HostdevEvent = (
    DevicePrepared
    | PrepareFailed
    | DeviceGivenBack
    | DeviceQuarantined
    | LeaseRevoked
    | HostDeclaredDead
    | DriftDetected
    | DriftResolved
)
