"""The rows of the read models that tell of leases, whose they are, and who shares a device or looks on: a part of the
fold in `intervals`.
"""

from collections import Counter
from collections.abc import Iterable

from leasehold.events import codec
from leasehold.events.event_types import DomainBond, LeaseGranted
from leasehold.events.identities import DeviceId, Principal
from leasehold.events.schedule_events import LeaseTransferred
from leasehold.projections.modelrows import Changes, LeaseRow, SharingRow, TenureRow


class TenureRows:
    """Of each open lease whose it is, and what is shared or looked at under it."""

    def __init__(self) -> None:
        self._tenures: dict[int, TenureRow] = {}
        self._sharings: dict[int, list[SharingRow]] = {}
        self._sharers: Counter[DeviceId] = Counter()

    def resume(self, tenures: Iterable[TenureRow], sharings: Iterable[SharingRow]) -> None:
        """Go on from the last tenures of open leases, and what is shared or looked at."""
        self._tenures = {row.lease: row for row in tenures}
        self._sharings, self._sharers = {}, Counter()
        for row in sharings:
            self._sharings.setdefault(row.from_position, []).append(row)
            self._sharers[row.device] += row.mode == "shared"

    def tenant_of(self, lease: int) -> Principal:
        """Whose matter an open lease is."""
        return self._tenures[lease].tenant

    def is_shared(self, device: DeviceId) -> bool:
        """Whether living leases share it."""
        return self._sharers[device] > 0

    def granted(self, changes: Changes, position: int, at_ns: int, event: LeaseGranted) -> None:
        """A lease begins."""
        self._put(changes, TenureRow(
            lease=position, from_position=position, from_ns=at_ns, principal=event.request.principal,
            tenant=event.tenant, holder=event.holder,
        ))  # fmt: skip
        for device in event.devices if event.mode else ():
            row = SharingRow(device, position, at_ns, event.mode or "")
            self._sharings.setdefault(position, []).append(row)
            self._sharers[device] += row.mode == "shared"
            changes.sharings[device, position] = row

    def transferred(self, changes: Changes, position: int, at_ns: int, event: LeaseTransferred) -> None:
        """It is another's. Raises KeyError if it is not open."""
        before = self._tenures[event.lease]
        before.until_position, before.until_ns = position, at_ns
        changes.tenures[event.lease, before.from_position] = before
        self._put(changes, TenureRow(
            lease=event.lease, from_position=position, from_ns=at_ns, principal=event.principal, tenant=event.tenant,
            holder=event.holder,
        ))  # fmt: skip

    def _put(self, changes: Changes, row: TenureRow) -> None:
        self._tenures[row.lease] = changes.tenures[row.lease, row.from_position] = row

    def ended(self, changes: Changes, position: int, at_ns: int, lease: int) -> None:
        """Nobody shares or looks at anything under it any more."""
        for row in self._sharings.pop(lease, ()):
            row.ended_position, row.ended_ns = position, at_ns
            self._sharers[row.device] -= row.mode == "shared"
            changes.sharings[row.device, lease] = row

    def forget(self, lease: int) -> None:
        """It is not open any more."""
        del self._tenures[lease]


def lease_row(position: int, at_ns: int, event: LeaseGranted) -> LeaseRow:
    """A lease as it begins."""
    ref, bond = event.request, event.bond
    row = LeaseRow(
        lease=position,
        granted_at_ns=at_ns,
        principal=ref.principal,
        tenant=event.tenant,
        holder=event.holder,
        request_id=ref.request_id,
        devices=codec.encode(event.devices),
        forced=event.forced,
        ttl_ms=event.ttl_ms,
        expires_at_ns=event.expires_at_ns,
        mode=event.mode or "",
        tolerates=codec.encode(event.tolerates) if event.tolerates else b"",
        queued=event.queued or 0,
        reserved_for=event.reserved_for or 0,
    )
    if isinstance(bond, DomainBond):
        row.domain, row.bond = bond.uuid, codec.encode(bond)
    return row
