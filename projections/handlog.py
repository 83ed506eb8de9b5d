"""What the log says of a host's leased devices, as its binder knows it: an answer to `sync`, and what is told since.

An answer may be older than what was heard before it came, and what is told may be doubled, late, or of a ledger from
before a restore. So what was heard is kept, and goes on top of each answer again.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import (
    AgentRetired,
    AttachmentGone,
    AttachmentSeen,
    DeviceAppeared,
    DeviceChanged,
    DeviceFreed,
    DeviceMissing,
    DeviceReappeared,
    DeviceReplaced,
    DomainVanished,
    Event,
    LeaseExpired,
    LeaseGranted,
    LeaseOutlived,
    LeaseReleased,
    LedgerRestored,
)
from leasehold.events.hostdev_events import (
    DeviceGivenBack,
    DevicePrepared,
    DeviceQuarantined,
    HostDeclaredDead,
    LeaseRevoked,
    PrepareFailed,
)
from leasehold.events.hostdevs import Handover, Hold
from leasehold.events.identities import DeviceKey, DomainKey, HostName, physical_key, split_device_id
from leasehold.events.position import token_of
from leasehold.events.schedule_events import LeaseSwitched, LeaseTransferred
from leasehold.projections.handnotes import Grant

HEARD_MAX: Final = 4_096
"""So much of what was told is kept, to be put on top of an answer."""
_ANY_WORD: Final = ""
"""An answer says which domains have a device, and not by which words."""

Picture = Mapping[DeviceKey, DeviceDescription]


class _Heard(msgspec.Struct, frozen=True, gc=False):
    position: int
    event: Event
    at_ns: int


class HandLog:
    """The log's side of a host's devices."""

    def __init__(self, host: HostName) -> None:
        self._host = host
        self._heard: deque[_Heard] = deque()
        self._lost = 0
        """Up to which position something that was heard is not kept any more."""
        self.is_synced = False
        """Whether it is known what the log has, of this era."""
        self.era = 0
        self.as_of = 0
        self.wants_sync = False
        """Whether something was heard whose effect only an answer tells."""
        self.holds: dict[DeviceKey, Hold] = {}
        self.picture: dict[DeviceKey, DeviceDescription] = {}
        self.returned: set[DeviceKey] = set()
        """Devices that were away, and are there again: whatever was done to them is undone. Taken out by the reader."""
        self._attached: dict[DeviceKey, set[tuple[DomainKey, str]]] = {}

    # --- what is told -----------------------------------------------------------------------------------------------

    def synced(self, holds: Iterable[Hold], picture: Picture, as_of: int, era: int) -> bool:
        """Take in an answer; false if it is too old to be put together with what was heard."""
        if era < self.era or as_of < self._lost:
            return False
        if era > self.era:
            self._begin(era)
        self.is_synced, self.wants_sync, self.as_of = True, False, as_of
        self.holds = {hold.key: hold for hold in holds}
        self.picture = dict(picture)
        self._attached = {
            hold.key: {(DomainKey(domain), _ANY_WORD) for domain in hold.attached}
            for hold in self.holds.values()
            if hold.attached
        }
        while self._heard and self._heard[0].position <= as_of:
            self._heard.popleft()
        for heard in self._heard:
            self._apply(heard)
        return self.is_synced

    def hear(self, position: int, event: Event, at_ns: int, era: int) -> bool:
        """Take in an event, decided at `at_ns`, of this ledger's `era`; false if it says nothing new."""
        if era < self.era:
            return False
        if era > self.era or isinstance(event, LedgerRestored):
            # Positions are given out again, and each lease has another token.
            self._begin(era)
        if position <= self.as_of or (self._heard and position <= self._heard[-1].position):
            return False
        heard = _Heard(position, event, at_ns)
        self._heard.append(heard)
        if len(self._heard) > HEARD_MAX:
            self._lost = self._heard.popleft().position
        if self.is_synced:
            self._apply(heard)
        return True

    def _begin(self, era: int) -> None:
        self._heard.clear()
        self.era, self.as_of, self._lost, self.is_synced = era, 0, 0, False

    def _apply(self, heard: _Heard) -> None:
        match heard.event:
            case LeaseGranted():
                self._grant(heard.position, heard.event, heard.at_ns)
            case LeaseTransferred(lease=lease, holder=holder):
                self._give(lease, heard.position, holder=holder)
            case LeaseSwitched(lease=lease):
                self._give(lease, heard.position, reserved=False)
            case LeaseReleased() | LeaseExpired() | LeaseOutlived() | PrepareFailed():
                self._end(heard.event.lease, heard.position)
            case LeaseRevoked(lease=lease, force=force):
                self._end(lease, heard.position)
                self._force(lease, is_forced=force)
            case DeviceFreed(device=device, lease=lease):
                self._free(device, lease)
            case DeviceQuarantined(evidence=evidence) if evidence:
                pass  # it has failed too often: that is nothing which its binder could mend
            case DevicePrepared() | DeviceGivenBack() | DeviceQuarantined():
                self._move(heard.event)
            case AttachmentSeen() | AttachmentGone() | DomainVanished():
                self._attach(heard.event)
            case DeviceAppeared() | DeviceChanged() | DeviceReplaced() | DeviceReappeared():
                described = heard.event.device
                self.picture[described.key] = described
                if isinstance(heard.event, DeviceReplaced):
                    self._displace(described.key, heard.position)
                elif not isinstance(heard.event, DeviceChanged):
                    self.returned.add(described.key)
            case DeviceMissing(key=key):
                self.picture.pop(key, None)
            case AgentRetired():
                self.wants_sync = True
            case HostDeclaredDead(host=host) if host == self._host:
                # What ended was freed without us: nothing is done before it is known how things stand.
                self.is_synced = False

    def _grant(self, position: int, event: LeaseGranted, at_ns: int) -> None:
        if event.mode:
            # Shared, or only looked at: nobody is handed anything.
            return
        ours = [key for host, key in map(split_device_id, event.devices) if host == self._host]
        token = token_of(self.era, position)
        bond = event.bond if event.bond is not msgspec.UNSET else None
        handover: Handover | None = event.handover if event.handover is not msgspec.UNSET else None
        for key in ours:
            self.holds[key] = Hold(
                key=key, floor=token, lease=position, token=token, granted_at_ns=at_ns, holder=event.holder,
                domain=bond.uuid if bond is not None else "", keep=bond is not None and bond.keep, handover=handover,
                forced=event.forced, reserved=bool(event.reserved_for),
                mates=tuple(mate for mate in ours if mate != key),
            )  # fmt: skip

    def _give(self, lease: int, position: int, **changes: Any) -> None:
        """A living lease has another token: who knows the one before acts no more."""
        token = token_of(self.era, position)
        for key, hold in self.holds.items():
            if hold.lease == lease and hold.token:
                self.holds[key] = msgspec.structs.replace(hold, token=token, floor=token, **changes)

    def _end(self, lease: int, position: int) -> None:
        floor = token_of(self.era, position)
        for key, hold in self.holds.items():
            if hold.lease == lease and hold.token:
                self.holds[key] = msgspec.structs.replace(hold, token=0, floor=floor)

    def _force(self, lease: int, *, is_forced: bool) -> None:
        """Of a lease that has ended: whether its devices are taken from a domain that has them."""
        for key, hold in self.holds.items():
            if hold.lease == lease:
                self.holds[key] = msgspec.structs.replace(hold, revoked=is_forced)

    def _free(self, device: str, lease: int) -> None:
        host, key = split_device_id(device)  # type: ignore[arg-type]
        hold = self.holds.get(key)
        if host == self._host and hold is not None and hold.lease == lease:
            self.holds[key] = Hold(key=key, floor=hold.floor)

    def _displace(self, key: DeviceKey, position: int) -> None:
        """Another thing sits there than the one that was leased: the lease reaches it no more, whatever comes back."""
        hold = self.holds.get(key)
        if hold is not None and hold.lease:
            self.holds[key] = msgspec.structs.replace(hold, floor=token_of(self.era, position))

    def _move(self, event: DevicePrepared | DeviceGivenBack | DeviceQuarantined) -> None:
        hold = self.holds.get(event.key, Hold(key=event.key, floor=0))
        match event:
            case DevicePrepared():
                now = msgspec.structs.replace(hold, prepared=True) if hold.lease == event.lease else hold
            case DeviceGivenBack():
                is_its = hold.lease == event.lease and not hold.token
                now = msgspec.structs.replace(hold, quarantined=False, given_back=hold.given_back or is_its)
            case _:
                now = msgspec.structs.replace(hold, quarantined=True, given_back=False)
        self.holds[event.key] = now

    def _attach(self, event: AttachmentSeen | AttachmentGone | DomainVanished) -> None:
        if isinstance(event, DomainVanished):
            self._let_go(list(self._attached), event.key, None)
        elif event.use == "attached" and isinstance(event, AttachmentSeen):
            for key in map(physical_key, event.devices):
                self._attached.setdefault(key, set()).add((event.domain, event.device))
        elif event.use == "attached":
            self._let_go([physical_key(key) for key in event.devices], event.domain, event.device)

    def _let_go(self, keys: Iterable[DeviceKey], domain: DomainKey, word: str | None) -> None:
        """The domain does not have these devices by this word (`None`: by none). By which word it had what an answer
        told is not known: it is taken for the first that goes. Whoever takes a device looks at the machine, too.
        """
        for key in keys:
            has = self._attached.get(key, set())
            has -= {each for each in has if each[0] == domain and (word is None or each[1] in (word, _ANY_WORD))}
            if not has:
                self._attached.pop(key, None)

    # --- what follows -----------------------------------------------------------------------------------------------

    def domains_with(self, key: DeviceKey) -> list[DomainKey]:
        """The domains that have a device, as hypervisors say."""
        return sorted({domain for domain, _ in self._attached.get(key, ())})

    def grant_of(self, key: DeviceKey) -> Grant | None:
        """The living lease that holds a device."""
        hold = self.holds.get(key)
        return Grant(hold.lease, hold.granted_at_ns) if hold is not None and hold.token else None

    def is_displaced(self, key: DeviceKey) -> bool:
        """Whether a living lease holds a device, and does not reach it: its token is below the log's own floor."""
        hold = self.holds.get(key)
        return hold is not None and 0 < hold.token < hold.floor

    def grants(self) -> dict[Grant, tuple[DeviceKey, ...]]:
        """The living leases, and what they hold here."""
        found: dict[Grant, list[DeviceKey]] = {}
        for key in sorted(self.holds):
            grant = self.grant_of(key)
            if grant is not None:
                found.setdefault(grant, []).append(key)
        return {grant: tuple(found[grant]) for grant in sorted(found)}

    def protected(self, key: DeviceKey) -> list[str]:
        """What the host itself needs a device for, or what is a part of it."""
        parts: Iterator[DeviceDescription] = (
            device for each, device in self.picture.items() if each == key or each.startswith(f"{key}/")
        )
        return sorted({reason for device in parts for reason in device.protections})
