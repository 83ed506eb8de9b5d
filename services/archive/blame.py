"""Why a request was decided as it was: the event that decided it, what led to that, and so on.

| decided | because of |
|---|---|
| granted | for each device what made it free, why the lease before had ended, and who had that; where it waited |
| refused, waits | each lease in the way and its last renewal, or what was reported of the device or its host |
| renewed, released, given to another, switched | the grant |
| withdrawn, waited in vain | where it waited |
| ended with its domain | what made that domain go, and the grant |
| failed, revoked | the grant; of who was kept away, the word by which that was |
| handed over; given back, or in quarantine | the grant; the end of the lease; each of the failures |
| freed | the end of the lease, and what showed that: its being given back, or its host's being declared dead |
| ordered of a host | since when the device, or what it is made of, is known |

Where a lease was granted and has ended since, its end stands beside the grant, with its own causes; so does what became
of an order beside it. A device that was made by an order is known by that.
"""

from typing import Any, Final

import msgspec

from leasehold.events import event_types, hostdev_events, inputs, schedule_events, schedule_inputs
from leasehold.events.capabilities import (
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    NewMdev,
    NewVirtualFunctions,
    NewVport,
    keys_of,
)
from leasehold.events.errors import InvalidInputError
from leasehold.events.event_types import DomainBond, Event
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import (
    DeviceId,
    Principal,
    device_id,
    physical_key,
    request_key,
    split_device_id,
)
from leasehold.events.inputs import Asked
from leasehold.events.position import lease_id_text, parse_lease_id
from leasehold.events.questions import Blame, Moment, Reading
from leasehold.events.refusals import Blocker, RefusalCode
from leasehold.events.views import CauseView
from leasehold.projections.handedrows import Handed, handed_in
from leasehold.projections.hostdevtelling import handover_text
from leasehold.projections.modelrows import LeaseRow
from leasehold.projections.rows import LeaseState
from leasehold.projections.scheduletelling import wanted_text
from leasehold.projections.state import State
from leasehold.projections.telling import bond_text, tell
from leasehold.projections.wording import span_text
from leasehold.services.archive.lookup import Lookup

CAUSES_MAX: Final = 256
DECISIONS_MAX: Final = 8
"""An id may have been used again: so many of its decisions are told."""
PRINCIPALS_NAMED_MAX: Final = 8
_LEASE: Final = f"SELECT {', '.join(LeaseRow.__struct_fields__)} FROM lease WHERE lease = :lease"  # noqa: S608
_BEFORE: Final = """
SELECT freed_position FROM ownership WHERE device = :device AND from_position < :at ORDER BY from_position DESC LIMIT 1
"""
_OUTCOMES: Final = "SELECT ended_position, late_position FROM host_order WHERE ordered = :ordered"
_ORDERED: Final = """
SELECT max(ordered) FROM host_order WHERE device = :name AND ordered < :at AND ordered >
    ifnull((SELECT max(from_position) FROM version WHERE device = :name AND from_position < :at), 0)
"""
_OPEN_ORDERS: Final = """
SELECT ordered FROM host_order WHERE host = :host AND ordered < :at AND (ended_position = 0 OR ended_position > :at)
"""
_GONE: Final = """
SELECT min(d.from_position) AS gone FROM domain_name n CROSS JOIN domain d ON d.domain = n.domain
WHERE n.text = :name AND d.host IN (SELECT value FROM json_each(:hosts)) AND d.from_position < :at AND d.from_position >
    (SELECT max(x.from_position) FROM domain x WHERE x.domain = d.domain AND x.there AND x.from_position < :at)
GROUP BY d.domain ORDER BY gone DESC LIMIT 1
"""
_HANDED: Final = """
SELECT handed FROM version WHERE device = :name AND from_position < :at ORDER BY from_position DESC LIMIT 1
"""
_DEAD: Final = """
SELECT min(from_position) FROM host WHERE host = :name AND dead = :said AND from_position < :at AND from_position >
    (SELECT max(from_position) FROM host WHERE host = :name AND dead != :said AND from_position < :at)
"""
_REPORTED: Final = "SELECT max(from_position) FROM version WHERE device = :name AND from_position < :at"
_KNOWN: Final = "SELECT first_position FROM device WHERE device = :name"
_MAKING: Final[dict[str, tuple[type, ...]]] = {
    "made by": (CreateVport, CreateMdev),
    "taken away by": (DestroyVport, DestroyMdev),
}
_Links = list[tuple[str, int]]
"""How an event bears on the one above, and its position."""


async def blame(look: Lookup, question: Blame, asker: Principal) -> Reading:
    """The chain of causes of a request's decision."""
    place = await look.place(Moment())
    principals = [row[0] for row in await look.rows(
        "SELECT DISTINCT principal FROM request WHERE request_id = :id AND :principal IN ('', principal) LIMIT :limit",
        id=question.request_id, principal=question.principal, limit=PRINCIPALS_NAMED_MAX,
    )]  # fmt: skip
    own = await look.rows(
        "SELECT 1 FROM request WHERE request_id = :id AND principal = :asker LIMIT 1",
        id=question.request_id, asker=question.principal or asker,
    )  # fmt: skip
    principal = question.principal or (asker if own else "")
    if not principals:
        of = f" of {principal}" if principal else ""
        return look.not_found(place, f"no request {question.request_id}{of} was decided, as far as the archive goes")
    if not principal and len(principals) > 1:
        return look.not_found(place, f"{question.request_id} is a request of {', '.join(principals)}: name one of them")
    decisions = await look.rows(
        "SELECT position FROM request WHERE request_id = :id AND principal = :principal ORDER BY position LIMIT :limit",
        id=question.request_id, principal=principal or principals[0], limit=DECISIONS_MAX,
    )  # fmt: skip
    chain = _Chain(look, question.depth)
    for (position,) in decisions:
        await chain.add(0, "", position)
        lease = await chain.lease(position)
        if lease is not None and lease.ended:
            await chain.add(0, "ended by", lease.ended_position)
        for ended, late in await look.rows(_OUTCOMES, ordered=position):
            for outcome in filter(None, (ended, late)):
                await chain.add(0, "ended by", outcome)
    return look.reading(place, causes=chain.causes)


class _Chain:
    """Causes, each followed by its own."""

    def __init__(self, look: Lookup, depth_max: int) -> None:
        self.causes: list[CauseView] = []
        self._look = look
        self._depth_max = depth_max
        self._told: set[int] = set()
        self._known = State()
        """Leases that were met, so that sentences can say whose they were."""

    async def add(self, depth: int, because: str, position: int) -> None:
        """Tell the event at `position` and, unless that was told before, what led to it."""
        if depth > self._depth_max or len(self.causes) >= CAUSES_MAX:
            return
        record, step, event = await self._look.event(position)
        await self.lease(getattr(event, "lease", 0))
        kind, text = str(event.__struct_config__.tag), tell(event, position, self._known)
        self.causes.append(CauseView(
            depth=depth, position=position, at_ns=record.decided_at_ns, type=kind, text=text, because=because
        ))  # fmt: skip
        if position in self._told:
            return
        self._told.add(position)
        if not depth and not because and isinstance(step.input, Asked):
            self._add_request(step.input, position, record.decided_at_ns)
        for link, cause in await self._links(event, position, is_asked=not depth and not because):
            await self.add(depth + 1, link, cause)

    def _add_request(self, asked: Asked, position: int, at_ns: int) -> None:
        """What was asked for, in the words in which it was."""
        text = f"{asked.principal} asked{_wish(asked.request)}"
        kind = str(asked.request.__struct_config__.tag)
        self.causes.append(CauseView(
            depth=1, position=position, at_ns=at_ns, type=kind, text=text, because="asked by"
        ))  # fmt: skip

    async def lease(self, lease: int) -> LeaseRow | None:
        """The lease that was granted at this position, if one was."""
        found = await self._look.rows(_LEASE, lease=lease) if lease else []
        if not found:
            return None
        row = LeaseRow(*found[0])
        self._known.leases[lease] = LeaseState(
            principal=row.principal, holder=row.holder, devices=(), token=lease, ttl_ms=row.ttl_ms,
            granted_at_ns=row.granted_at_ns, expires_at_ns=row.expires_at_ns, forced=bool(row.forced),
            grant_key=request_key(row.principal, row.request_id),
        )  # fmt: skip
        return row

    # --- what led to what ---------------------------------------------------------------------------------------

    async def _links(self, event: Event, position: int, *, is_asked: bool) -> _Links:
        match event:
            case event_types.LeaseGranted():
                return await self._of_grant(event, position) if is_asked else []
            case event_types.LeaseRenewed():
                return [("granted by", event.lease)] if is_asked else []
            case event_types.LeaseReleased():
                return [("granted by", event.lease)]
            case event_types.LeaseExpired():
                row = await self.lease(event.lease)
                renewed: _Links = [("last renewed by", row.renewed_position)] if row and row.renewed_position else []
                return [*renewed, ("granted by", event.lease)]
            case event_types.LeaseOutlived():
                return [*await self._of_going(event, position), ("granted by", event.lease)]
            case event_types.DeviceFreed():
                return await self._of_end(event.lease) + await self._of_evidence(event, position)
            case hostdev_events.PrepareFailed() | hostdev_events.DevicePrepared():
                return [("granted by", event.lease)]
            case hostdev_events.LeaseRevoked():
                return [*await self._of_eviction(event, position), ("granted by", event.lease)]
            case hostdev_events.DeviceGivenBack():
                return await self._of_end(event.lease)
            case hostdev_events.DeviceQuarantined():
                failures = [("failed by", failure) for failure in event.evidence or ()]
                return failures + await self._of_end(event.lease)
            case schedule_events.LeaseTransferred() | schedule_events.LeaseSwitched():
                return [("granted by", event.lease)]
            case schedule_events.RequestQueued():
                return await self._of_blockers(event.why.blockers, position) if is_asked else []
            case schedule_events.RequestWithdrawn() | schedule_events.WaitingEnded():
                return [("waited since", event.queued)]
            case event_types.RefusalsRepeated():
                return [("refused first by", event.first)]
            case event_types.RequestRefused():
                return await self._of_refusal(event, position)
            case event_types.HostOrdered():
                return await self._of_order(event) if is_asked else []
            case event_types.OrderCarriedOut() | event_types.OrderFailed():
                return [("ordered by", event.order)]
            case event_types.DeviceAppeared() | event_types.DeviceReappeared() | event_types.DeviceReplaced():
                return await self._of_presence("made by", device_id(event.host, event.device.key), position)
            case event_types.DeviceMissing():
                return await self._of_presence("taken away by", device_id(event.host, event.key), position)
        return []

    async def _of_grant(self, event: event_types.LeaseGranted, position: int) -> _Links:
        """What made each device free, or since when it is known; and where it waited."""
        links: _Links = [("waited since", event.queued)] if event.queued else []
        # Who only looks on waits for nothing to be free.
        for device in event.devices if event.mode != "admin" else ():
            before = await self._look.rows(_BEFORE, device=device, at=position)
            if before:
                links.append(("free by", before[0][0]))
            else:
                links += await self._one("known by", _KNOWN, device)
        return links

    async def _of_eviction(self, event: hostdev_events.LeaseRevoked, position: int) -> _Links:
        """The operator's word that has led to a revocation later on; none where the revocation itself was asked for."""
        sql = "SELECT min(position) FROM request WHERE request_id = :name AND principal = :principal"
        ref = event.request
        links = await self._one("told to by", sql, ref.request_id, principal=ref.principal)
        return [link for link in links if link[1] < position]

    async def _of_end(self, lease: int) -> _Links:
        row = await self.lease(lease)
        return [("ended by", row.ended_position)] if row is not None and row.ended_position else []

    async def _of_evidence(self, event: event_types.DeviceFreed, position: int) -> _Links:
        """What showed that nobody has the device: its binder gave it back, or an operator declared its host dead."""
        handed = await self._handed(event.device, position)
        if handed.binding is not None and handed.binding.given_back:
            return [("given back by", handed.binding.position)]
        host = split_device_id(event.device)[0]
        return await self._one("declared dead by", _DEAD, host, said=event.evidence, at=position)

    async def _handed(self, device: DeviceId, at: int) -> Handed:
        """How far a device was handed over right before this place."""
        found = await self._look.rows(_HANDED, name=device, at=at)
        return handed_in(found[0][0] if found else b"")

    async def _of_going(self, event: event_types.LeaseOutlived, position: int) -> _Links:
        """What made the domain go that was the last one of its uuid on the hosts of the lease."""
        row = await self.lease(event.lease)
        devices = msgspec.json.decode(row.devices, type=list[DeviceId]) if row is not None else []
        hosts = msgspec.json.encode([split_device_id(device)[0] for device in devices]).decode()
        return await self._one("gone by", _GONE, event.domain, hosts=hosts, at=position)

    async def _of_order(self, event: event_types.HostOrdered) -> _Links:
        """Since when that is known which is to be taken away, or of which something is to be made."""
        return await self._one("known by", _KNOWN, device_id(event.host, keys_of(event.order)[0]))

    async def _of_presence(self, link: str, device: DeviceId, position: int) -> _Links:
        """The order by which it came or went: one that was given behind all that was told of it before."""
        links = await self._one(link, _ORDERED, device, at=position)
        for _, ordered in links:
            _, _, event = await self._look.event(ordered)
            if isinstance(event, event_types.HostOrdered) and isinstance(event.order, _MAKING[link]):
                return links
        return []

    async def _of_refusal(self, event: event_types.RequestRefused, position: int) -> _Links:
        if event.refusal.code == RefusalCode.REQUEST_ID_REUSED:
            sql = "SELECT min(position) FROM request WHERE request_id = :name AND principal = :principal"
            ref = event.request
            return await self._one("used before by", sql, ref.request_id, principal=ref.principal)
        links = await self._of_blockers(event.refusal.blockers, position)
        if not links and event.verb in ("renew", "release", "revoke", "transfer", "reserve", "switch"):
            for name in event.about:
                row = await self.lease(_lease_named(name))
                if row is not None:
                    is_over = 0 < row.ended_position < position
                    links.append(("ended by", row.ended_position) if is_over else ("granted by", row.lease))
        if not links and event.verb in ("create_device", "destroy_device", "operate_device"):
            for name in event.about:
                links += await self._one("reported by", _REPORTED, name, at=position)
        return list(dict.fromkeys(links))

    async def _of_blockers(self, blockers: tuple[Blocker, ...], position: int) -> _Links:
        links: _Links = []
        for blocker in blockers:
            links += await self._of_blocker(blocker, position)
        return list(dict.fromkeys(links))

    async def _of_blocker(self, blocker: Blocker, position: int) -> _Links:
        row = await self.lease(blocker.lease)
        if row is not None:
            if 0 < row.ended_position < position:
                return [("not free since", row.ended_position)]
            is_kept = 0 < row.renewed_position < position
            return [("held by", row.lease), *([("kept by", row.renewed_position)] if is_kept else [])]
        device = DeviceId(blocker.because_of or blocker.device)
        if blocker.rule == "ordered":
            return await self._orders_on(device, position)
        handed = await self._handed(device, position) if blocker.rule == "quarantined" else None
        if handed is not None and handed.quarantine is not None:
            return [("in quarantine since", handed.quarantine.position)]
        name, table = (device, "device") if blocker.rule != "host_stale" else (split_device_id(device)[0], "host")
        sql = f"""SELECT max(from_position) FROM {"version" if table == "device" else table}
            WHERE {table} = :name AND from_position < :at"""  # noqa: S608 - all ours
        return await self._one("reported by", sql, name, at=position)

    async def _orders_on(self, device: DeviceId, position: int) -> _Links:
        """The open orders by which something was to be made of a device, or of what is a part of it, or taken away."""
        links: _Links = []
        host, key = split_device_id(device)
        for (ordered,) in await self._look.rows(_OPEN_ORDERS, host=host, at=position):
            _, _, event = await self._look.event(ordered)
            if isinstance(event, event_types.HostOrdered):
                keys = keys_of(event.order)
                links += [("ordered before by", ordered)] if key in (*keys, *map(physical_key, keys)) else []
        return links

    async def _one(self, link: str, sql: str, name: str, **parameters: Any) -> _Links:
        found = await self._look.rows(sql, name=name, **parameters)
        return [(link, row[0]) for row in found if row[0]]


def _lease_named(name: str) -> int:
    """The lease that `L4352` names; 0: it names none."""
    try:
        return parse_lease_id(name)
    except InvalidInputError:
        return 0


def _wish(request: inputs.Request) -> str:
    """What was asked for, behind "asked"; nothing where the event itself says all of it."""
    match request:
        case inputs.LeaseRequest():
            bond = DomainBond(uuid=request.domain, gone_ms=request.gone_ms, keep=request.keep)
            domain = f", {bond_text(bond)}" if request.domain else ""
            return f" for {wanted_text(request)}{_terms(request, domain)}{_waiting(request)}"
        case schedule_inputs.ReserveRequest():
            instead = f"in the place of those of {lease_id_text(request.lease)}"
            return f" for {wanted_text(request)}, {instead}, for {span_text(request.ttl_ms)}"
        case inputs.PrepareRequest():
            what = f"the {request.bus.upper()} devices" if request.bus else "all devices"
            return f" for {what} of domain {request.domain}{_on(request.host)}{_terms(request, '')}"
        case inputs.ReattachRequest():
            what = f"{request.bus.upper()} devices" if request.bus else "devices"
            return f" for the end of all leases of {what} for domain {request.domain}{_on(request.host)}"
        case inputs.CreateDeviceRequest():
            new = request.device
            said = ", ".join(f"{field} {getattr(new, field)}" for field in new.__struct_fields__ if getattr(new, field))
            how = f" ({said})" if said else ""
            return f" for {_NEW[type(new)]}{_on(request.host)}{how}, within {span_text(request.timeout_ms)}"
        case inputs.DestroyDeviceRequest():
            return f" for the end of {request.device}{_on(request.host)}, within {span_text(request.timeout_ms)}"
        case inputs.OperateDeviceRequest():
            driver = f" to {request.driver}" if request.driver else ""
            what = f"{request.operation} {request.device}{_on(request.host)}{driver}"
            return f" to {what}, within {span_text(request.timeout_ms)}"
    return ""


def _terms(request: inputs.LeaseRequest | inputs.PrepareRequest, domain: str) -> str:
    """For whom, for how long, and how."""
    how = handover_text(Handover(driver=request.driver, unmanaged=request.unmanaged))
    force = ", with force" if request.force else ""
    return f", for {request.holder}, for {span_text(request.ttl_ms)}{domain}{f', {how}' if how else ''}{force}"


def _waiting(request: inputs.LeaseRequest) -> str:
    """In which mode, what he tolerates, and for how long he would wait."""
    parts = [f"mode {request.mode}"] if request.mode else []
    parts += [f"tolerating {', '.join(request.tolerates)}"] if request.tolerates else []
    parts += [f"waiting for up to {span_text(request.wait_ms)}"] if request.wait_ms else []
    parts += [f"priority {request.priority}"] if request.priority else []
    return "".join(f", {part}" for part in parts)


_NEW: Final[dict[type, str]] = {
    NewVport: "a virtual HBA",
    NewMdev: "a mediated device",
    NewVirtualFunctions: "virtual functions",
}


def _on(host: str) -> str:
    return f" on {host}" if host else ""
