"""Devices and domains as they were: a part of the state, made of the read models as folding the log would make it."""

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec

from leasehold.events.capabilities import Order
from leasehold.events.devices import DeviceDescription
from leasehold.events.domains import DomainDescription, Use
from leasehold.events.event_types import DomainBond
from leasehold.events.identities import (
    COMPUTER,
    DeviceId,
    DomainId,
    HostName,
    request_key,
    split_device_id,
    split_domain_id,
)
from leasehold.events.inputs import LeaseRequest
from leasehold.events.questions import DevicesAt, DomainsAt, Reading
from leasehold.events.refusals import Refusal
from leasehold.projections import domains, nodedev, views
from leasehold.projections.handedrows import handed_in
from leasehold.projections.hostrows import as_state
from leasehold.projections.modelrows import marks_in, sources_in
from leasehold.projections.naming import Resolved, resolve, spelling
from leasehold.projections.nodedev import Wanted
from leasehold.projections.rows import DeviceState, DomainState, LeaseState, OrderState, QueuedState
from leasehold.projections.state import State
from leasehold.services.archive.lookup import Lookup, Place, range_of

CANDIDATES_MAX: Final = 20_000
"""So many devices of one name are looked at: more than there are hosts."""
BUILT_MAX: Final = 8_000
"""A page of devices ends with the host with which there are more on its hosts: each is shown beside all of its host."""
STATES_KEPT_MAX: Final = 4
"""States of a few hosts, kept for the next page: what has been does not change."""

_LATEST_VERSION: Final = """
CROSS JOIN version v ON v.device = d.device AND v.from_position =
    (SELECT max(x.from_position) FROM version x WHERE x.device = d.device AND x.from_position <= :at)
CROSS JOIN version b ON b.device = v.device AND b.from_position = v.described
"""
_PAGE: Final = """
SELECT device, host FROM device
WHERE device > :after AND device >= :low AND device < :high AND first_position <= :at ORDER BY device LIMIT :limit
"""
_WANTED: Final = f"""
FROM device d {_LATEST_VERSION}
WHERE d.device > :after AND d.device >= :low AND d.device < :high AND d.first_position <= :at AND NOT v.missing
    AND :bus IN ('', b.bus)
    AND (:driver IN ('', b.driver) OR (:driver = '{nodedev.UNBOUND}' AND b.driver = '' AND b.bus != ''))
    AND (:types = '[]' OR EXISTS (SELECT 1 FROM json_each(:types) t WHERE instr(b.types, ',' || t.value || ',')))
    AND (:parents = 'null' OR b.parent IN (SELECT value FROM json_each(:parents)))
"""  # noqa: S608 - all ours, as `nodedev.is_wanted` has it
_FILTERED: Final = f"SELECT d.device, d.host {_WANTED} ORDER BY d.device LIMIT :limit"
_COUNT: Final = f"SELECT count(*) {_WANTED}"
_SIZES: Final = """
SELECT value AS host,
    (SELECT count(*) FROM device WHERE device >= value || '/' AND device < value || '0')
    + (SELECT count(*) FROM domain_id WHERE domain >= value || '/' AND domain < value || '0') AS size
FROM json_each(:hosts)
"""
_LAST_OF_DOMAIN: Final = """
CROSS JOIN domain d ON d.domain = i.domain AND NOT d.gone AND d.from_position =
    (SELECT max(x.from_position) FROM domain x WHERE x.domain = i.domain AND x.from_position <= :at)
"""
_DOMAINS: Final = f"""
SELECT d.domain, d.host, d.agent, d.since_position, d.since_ns, d.body, d.uses FROM domain_id i {_LAST_OF_DOMAIN}
WHERE i.domain >= :low AND i.domain < :high AND i.host IN (SELECT value FROM json_each(:hosts))
"""  # noqa: S608 - all ours
_DOMAIN_PAGE: Final = f"""
SELECT i.domain, i.host FROM domain_id i {_LAST_OF_DOMAIN}
WHERE i.domain > :after AND i.domain >= :low AND i.domain < :high AND :state IN ('', d.state)
ORDER BY i.domain LIMIT :limit
"""  # noqa: S608 - all ours
_DOMAINS_NAMED: Final = f"""
SELECT d.domain, d.host, d.agent, d.since_position, d.since_ns, d.body, d.uses
FROM (SELECT DISTINCT domain FROM domain_name WHERE text IN (SELECT value FROM json_each(:texts))) i {_LAST_OF_DOMAIN}
WHERE i.domain >= :low AND i.domain < :high LIMIT :limit
"""  # noqa: S608 - all ours
_HOSTS: Final = """
SELECT host, mode, sources, dead, marks,
    (SELECT min(m.from_position) FROM host m WHERE m.host = h.host AND m.mode = 'managed' AND m.from_position <= :at
    AND m.from_position > ifnull((SELECT max(w.from_position) FROM host w
        WHERE w.host = h.host AND w.mode <> 'managed' AND w.from_position <= :at), 0)) AS managed_since
FROM host h WHERE host IN (SELECT value FROM json_each(:hosts))
AND from_position = (SELECT max(from_position) FROM host x WHERE x.host = h.host AND x.from_position <= :at)
"""
_LEASE: Final = """
l.lease, t.principal, t.tenant, t.holder, t.from_position AS tenure_position, t.from_ns AS tenure_ns, l.granted_at_ns,
l.request_id, l.principal AS asked_by, l.devices, l.ended, l.end_reason, l.forced, l.ttl_ms, l.expires_at_ns, l.bond,
l.mode, l.tolerates, l.reserved_for, l.switched_position
"""
_TENURE: Final = """
tenure t ON t.lease = l.lease AND t.from_position =
    (SELECT max(z.from_position) FROM tenure z WHERE z.lease = l.lease AND z.from_position <= :at)
"""
_STATE: Final = f"""
SELECT d.device, d.host, d.first_position, d.first_ns, v.missing, v.flaps, v.handed, b.body, {_LEASE},
    o.ended_position, o.ended_ns, o.freed_position, o.freed_ns, o.displaced_position
FROM device d {_LATEST_VERSION}
LEFT JOIN ownership o ON d.held > 0 AND o.device = d.device AND o.from_position =
    (SELECT max(y.from_position) FROM ownership y WHERE y.device = d.device AND y.from_position <= :at)
LEFT JOIN lease l ON l.lease = o.from_position LEFT JOIN {_TENURE}
"""  # noqa: S608 - all ours
_STATES: Final = f"""{_STATE}
WHERE d.device >= :low AND d.device < :high AND d.first_position <= :at
    AND d.host IN (SELECT value FROM json_each(:hosts))
"""  # noqa: S608 - all ours
_STATES_NAMED: Final = f"{_STATE} WHERE d.device IN (SELECT value FROM json_each(:devices))"  # noqa: S608 - all ours
_SHARERS: Final = f"""
SELECT s.device, {_LEASE} FROM sharing s CROSS JOIN lease l ON l.lease = s.from_position CROSS JOIN {_TENURE}
WHERE s.device >= :low AND s.device < :high AND s.mode = 'shared' AND s.from_position <= :at
    AND (s.ended_position = 0 OR s.ended_position > :at)
    AND substr(s.device, 1, instr(s.device, '/') - 1) IN (SELECT value FROM json_each(:hosts))
ORDER BY s.device, s.from_position
"""  # noqa: S608 - all ours
_KEEPS: Final = """
SELECT k.device, q.queued, q.principal, q.tenant, q.request_id, q.asked, q.rank_ns, q.at_ns, q.until_ns, q.why
FROM keep k CROSS JOIN queued q ON q.queued = k.queued
WHERE k.device >= :low AND k.device < :high AND k.from_position <= :at
    AND (k.until_position = 0 OR k.until_position > :at)
    AND substr(k.device, 1, instr(k.device, '/') - 1) IN (SELECT value FROM json_each(:hosts))
ORDER BY q.queued, k.device
"""
_ORDERS: Final = """
SELECT ordered, host, agent, principal, request_id, what, at_ns, deadline_ns FROM host_order
WHERE host IN (SELECT value FROM json_each(:hosts)) AND ordered <= :at AND (ended_position = 0 OR ended_position > :at)
"""
_NAMED: Final = f"""
SELECT d.device, d.host, v.missing, b.body
FROM (SELECT device FROM name WHERE text IN (SELECT value FROM json_each(:texts)) AND device >= :low AND device < :high
      UNION SELECT :id) n
CROSS JOIN device d ON d.device = n.device {_LATEST_VERSION}
LIMIT :limit
"""  # noqa: S608 - all ours


class Then:
    """Looks devices up as they were."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, tuple[str, ...], int], State] = {}

    async def devices_at(self, look: Lookup, question: DevicesAt) -> Reading:
        """A page of devices, with the hosts that they are of."""
        place = await look.place(question.at)
        if question.host and not await is_known(look, question.host, place.position):
            return unknown_host(look, question.host, place)
        low, high = range_of(question.host)
        if question.device:
            found = await find(look, question.device, question.host, place.position)
            if found.device is None:
                return unknown_device(look, found, place)
            # No id holds a blank.
            low, high = found.device, f"{found.device} "
        wanted = await _wanted(look, question, place.position)
        if wanted.parents is not None and not wanted.parents:
            return unknown_device(look, Resolved(question.parent), place)
        about = {"after": question.after, "low": low, "high": high, "at": place.position, **_said(wanted)}
        if question.count_only:
            ((count,),) = await look.rows(_COUNT, **about)
            return look.reading(place, count=count)
        rows = await look.rows(_PAGE if wanted.is_all else _FILTERED, **about, limit=question.limit + 1)
        page = await _first_hosts(look, [(row["device"], row["host"]) for row in rows[: question.limit]])
        return await self._shown(look, question, place, page, more=len(rows) > len(page))

    async def _shown(
        self, look: Lookup, question: DevicesAt, place: Place, page: list[tuple[str, str]], *, more: bool
    ) -> Reading:
        hosts = list(dict.fromkeys(host for _, host in page)) or ([question.host] if question.host else [])
        state = await self._state(look, hosts, place.position)
        rows = await asyncio.to_thread(lambda: [views.device_view(state, DeviceId(device)) for device, _ in page])
        return look.reading(
            place, devices=rows, hosts=[views.host_view(state, HostName(host)) for host in hosts], more=more
        )

    async def domains_at(self, look: Lookup, question: DomainsAt) -> Reading:
        """A page of domains."""
        place = await look.place(question.at)
        if question.host and not await is_known(look, question.host, place.position):
            return unknown_host(look, question.host, place)
        if question.domain:
            found = await _domains_named(look, question, place.position)
        else:
            low, high = range_of(question.host)
            about = {"after": question.after, "low": low, "high": high, "state": question.state, "at": place.position}
            found = [tuple(row) for row in await look.rows(_DOMAIN_PAGE, **about, limit=question.limit + 1)]
        page = await _first_hosts(look, found[: question.limit])
        hosts = list(dict.fromkeys(host for _, host in page))
        state = await self._state(look, hosts, place.position)
        rows = await asyncio.to_thread(lambda: [domains.domain_view(state, DomainId(domain)) for domain, _ in page])
        return look.reading(place, domains=rows, more=len(found) > len(rows))

    async def _state(self, look: Lookup, hosts: list[str], at: int) -> State:
        """All that is known of `hosts`, which stand in their order."""
        if not hosts:
            return State()
        key = (look.head.ledger_id, tuple(hosts), at)
        if key not in self._kept:
            low, high = range_of(hosts[0])[0], range_of(hosts[-1])[1]
            about = {"low": low, "high": high, "hosts": _list(hosts), "at": at}
            devices = await look.rows(_STATES, **about)
            sharers = await look.rows(_SHARERS, **about)
            # Of a lease across hosts all is to be seen: what is said of one of its devices ends it as a whole.
            others = _elsewhere(devices, sharers)
            known = {*hosts, *(split_device_id(device)[0] for device in others)}
            found = _Found(
                hosts=await _hosts(look, known, at),
                devices=devices,
                elsewhere=await look.rows(_STATES_NAMED, devices=_list(others), at=at) if others else (),
                orders=await look.rows(_ORDERS, hosts=_list(hosts), at=at),
                domains=await look.rows(_DOMAINS, **about),
                sharers=sharers,
                keeps=await look.rows(_KEEPS, **about),
            )
            state = await asyncio.to_thread(_build, found, at)
            while len(self._kept) >= STATES_KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = state
        return self._kept[key]


async def _domains_named(look: Lookup, question: DomainsAt, at: int) -> list[tuple[str, str]]:
    """The domains that were called so, with their hosts, from behind `after`; names are read as `all_named` does."""
    text, (low, high) = question.domain, range_of(question.host)
    texts = {text, domains.spelling(text), split_domain_id(DomainId(text))[1]}
    about = {"texts": _list(texts), "low": low, "high": high, "at": at, "limit": CANDIDATES_MAX}
    state = _build(_Found(domains=await look.rows(_DOMAINS_NAMED, **about)), at)
    rows = ((domain, state.domains[domain]) for domain in sorted(domains.all_named(state, text)))
    return [
        (domain, row.host)
        for domain, row in rows
        if domain > question.after and question.state in ("", row.description.state)
    ]


async def _wanted(look: Lookup, question: DevicesAt, at: int) -> Wanted:
    """What is asked for; a parent's name is read as it was meant then."""
    state = State()
    if question.parent == COMPUTER:
        every = [row["host"] for row in await look.rows("SELECT DISTINCT host FROM host")]
        state = _build(_Found(hosts=await _hosts(look, [question.host] if question.host else every, at)), at)
    elif question.parent:
        state = await _named(look, question.parent, question.host, at)
    return nodedev.wanted_by(state, question)


def _said(wanted: Wanted) -> dict[str, Any]:
    """What is asked for, as `_WANTED` takes it."""
    parents = None if wanted.parents is None else sorted(wanted.parents)
    return {
        "bus": wanted.bus,
        "driver": wanted.driver,
        "types": _list(wanted.caps),
        "parents": msgspec.json.encode(parents).decode(),
    }


async def _first_hosts(look: Lookup, page: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the first hosts, so that no more has to be built for a page than an answer may take."""
    sizes = await look.rows(_SIZES, hosts=_list(dict.fromkeys(host for _, host in page)))
    built, first = 0, set[str]()
    for host, size in sizes:
        built += size
        if first and built > BUILT_MAX:
            break
        first.add(host)
    return [each for each in page if each[1] in first]


async def find(look: Lookup, text: str, host: str, at: int) -> Resolved:
    """The device that `text` named then; names are read as `naming.resolve` reads them."""
    state = await _named(look, text, host, at)
    return resolve(state, text, host)


async def _named(look: Lookup, text: str, host: str, at: int) -> State:
    """A state with all devices that `text` may have named."""
    named_host, _, rest = text.partition("/")
    known = await _hosts(look, [named_host], at)
    if rest and known and not host:
        host = named_host
    low, high = range_of(host)
    texts = {spelling(text), spelling(rest)} - {""}
    found = await look.rows(_NAMED, texts=_list(texts), low=low, high=high, id=text, at=at, limit=CANDIDATES_MAX)
    return await asyncio.to_thread(_build, _Found(hosts=known, devices=found), at)


async def is_known(look: Lookup, host: str, at: int) -> bool:
    """Whether there was such a host."""
    return bool(await _hosts(look, [host], at))


async def _hosts(look: Lookup, hosts: Iterable[str], at: int) -> list[sqlite3.Row]:
    return await look.rows(_HOSTS, hosts=_list(hosts), at=at)


def _list(texts: Iterable[str]) -> str:
    """As SQLite's `json_each` takes it."""
    return msgspec.json.encode(list(texts)).decode()


def unknown_host(look: Lookup, host: str, place: Place) -> Reading:
    """Nothing was known of it."""
    return look.not_found(place, f"no host {host} was known at position {place.position}")


def unknown_device(look: Lookup, found: Resolved, place: Place) -> Reading:
    """No one device was called so."""
    message = f"no device {found.text} was known at position {place.position}"
    if found.candidates:
        message = f"{found.text} could be {', '.join(found.candidates)}: name one of these, or the host"
    return look.not_found(place, message)


# --- rows into a state ----------------------------------------------------------------------------------------------

_description: Final = msgspec.json.Decoder(DeviceDescription)
_devices: Final = msgspec.json.Decoder(tuple[DeviceId, ...])
_domain: Final = msgspec.json.Decoder(DomainDescription)
_uses: Final = msgspec.json.Decoder(tuple[Use, ...])
_bond: Final = msgspec.json.Decoder(DomainBond)
_order: Final = msgspec.json.Decoder(Order)
_asked: Final = msgspec.json.Decoder(LeaseRequest)
_why: Final = msgspec.json.Decoder(Refusal)
_tolerates: Final = msgspec.json.Decoder(tuple[str, ...])


def _elsewhere(devices: Sequence[sqlite3.Row], sharers: Sequence[sqlite3.Row]) -> list[DeviceId]:
    """What is held or shared together with these devices, and is not among them."""
    bodies = {row["devices"] for row in (*devices, *sharers) if row["lease"] is not None}
    known = {row["device"] for row in devices}
    return sorted({device for body in bodies for device in _devices.decode(body)} - known)


class _Found(NamedTuple):
    """Rows of what a state is to be made of; of the keeps, those of one request stand together."""

    hosts: Sequence[sqlite3.Row] = ()
    devices: Sequence[sqlite3.Row] = ()
    elsewhere: Sequence[sqlite3.Row] = ()
    """Devices of other hosts that leases have together with these."""
    orders: Sequence[sqlite3.Row] = ()
    domains: Sequence[sqlite3.Row] = ()
    sharers: Sequence[sqlite3.Row] = ()
    keeps: Sequence[sqlite3.Row] = ()


def _build(found: _Found, at: int) -> State:
    """The state of these hosts, devices, open orders and domains, with what it takes to show them, and nothing else.

    Where nothing is known of owners (`_NAMED`), there are none.
    """
    state = State()
    counts: dict[str, int] = {}
    sharers: dict[str, tuple[int, ...]] = {}
    for row in found.sharers:
        sharers[row["device"]] = (*sharers.get(row["device"], ()), _put_lease(state, row, at, is_ended=False))
    for row in found.devices:
        counts[row["host"]] = counts.get(row["host"], 0) + 1
        is_whole = "lease" in row.keys()  # noqa: SIM118 - what is in a row are its values
        held = {"flaps": row["flaps"], **_handed(row), **_held(state, row, at)} if is_whole else {}
        state.devices[row["device"]] = _device(row, sharers=sharers.get(row["device"], ()), **held)
    for row in found.elsewhere:
        state.devices[row["device"]] = _device(row, **_handed(row), **_held_elsewhere(state, row, at))
    for host, mode, sources, dead, marks, managed_since in found.hosts:
        state.hosts[host] = as_state(
            mode,
            sources_in(sources),
            dead,
            device_count=counts.get(host, 0),
            managed_since=managed_since or 0,
            marks=marks_in(marks),
        )
    for row in found.orders:
        state.orders[row["ordered"]] = _open_order(row)
    for row in found.domains:
        state.domains[row["domain"]] = DomainState(
            host=row["host"],
            agent=row["agent"],
            description=_domain.decode(row["body"]),
            uses=_uses.decode(row["uses"]),
            since_position=row["since_position"],
            since_ns=row["since_ns"],
        )
    for queued, rows in groupby(found.keeps, key=lambda row: row["queued"]):
        state.queue[queued] = _waiting(list(rows))
    state.index_anew()
    return state


def _open_order(row: sqlite3.Row) -> OrderState:
    return OrderState(
        host=row["host"],
        agent=row["agent"],
        what=_order.decode(row["what"]),
        request=request_key(row["principal"], row["request_id"]),
        ordered_at_ns=row["at_ns"],
        deadline_ns=row["deadline_ns"],
    )


def _waiting(rows: list[sqlite3.Row]) -> QueuedState:
    """A request that waited, with what was kept for it of the devices that are looked at."""
    row = rows[0]
    return QueuedState(
        principal=row["principal"],
        tenant=row["tenant"],
        request=request_key(row["principal"], row["request_id"]),
        body_hash="",
        asked=_asked.decode(row["asked"]),
        rank_ns=row["rank_ns"],
        queued_at_ns=row["at_ns"],
        until_ns=row["until_ns"],
        keeps=tuple(each["device"] for each in rows),
        why=_why.decode(row["why"]),
    )


def _device(row: sqlite3.Row, **fields: Any) -> DeviceState:
    description = _description.decode(row["body"])
    return DeviceState(host=row["host"], description=description, missing=bool(row["missing"]), **fields)


def _handed(row: sqlite3.Row) -> dict[str, Any]:
    """How far it was handed over, why it was kept apart, how its witnesses differed, and what operators said of it."""
    handed = handed_in(row["handed"])
    return {name: getattr(handed, name) for name in handed.__struct_fields__}


def _held(state: State, row: sqlite3.Row, at: int) -> dict[str, Any]:
    """What the last owner means for a device; the lease itself is put into the state, if it holds it."""
    if row["lease"] is None:
        return {"since_position": row["first_position"], "since_ns": row["first_ns"]}
    if 0 < row["freed_position"] <= at:
        return {"since_position": row["freed_position"], "since_ns": row["freed_ns"]}
    ending = 0 < row["ended_position"] <= at
    return {
        "lease": _put_lease(state, row, at, is_ended=ending),
        "ending": ending,
        "displaced": 0 < row["displaced_position"] <= at,
        "since_position": row["ended_position"] if ending else row["tenure_position"],
        "since_ns": row["ended_ns"] if ending else row["tenure_ns"],
    }


def _held_elsewhere(state: State, row: sqlite3.Row, at: int) -> dict[str, Any]:
    """Which of the leases that are known already have a device."""
    if row["lease"] in state.leases and not 0 < row["freed_position"] <= at:
        return {"lease": row["lease"], "ending": 0 < row["ended_position"] <= at}
    shared = (lease for lease, each in state.leases.items() if each.mode and row["device"] in each.devices)
    return {"sharers": tuple(sorted(shared))}


def _put_lease(state: State, row: sqlite3.Row, at: int, *, is_ended: bool) -> int:
    """Put a lease into the state as it was then; its id."""
    lease: int = row["lease"]
    is_reserved = row["reserved_for"] and not 0 < row["switched_position"] <= at
    state.leases[lease] = LeaseState(
        principal=row["principal"],
        tenant=row["tenant"],
        holder=row["holder"],
        devices=_devices.decode(row["devices"]),
        token=lease,
        ttl_ms=row["ttl_ms"],
        granted_at_ns=row["granted_at_ns"],
        expires_at_ns=row["expires_at_ns"],
        forced=bool(row["forced"]),
        grant_key=request_key(row["asked_by"], row["request_id"]),
        ended=row["ended"] if is_ended else "",
        end_reason=row["end_reason"] if is_ended else "",
        bond=_bond.decode(row["bond"]) if row["bond"] else None,
        mode=row["mode"],
        tolerates=_tolerates.decode(row["tolerates"]) if row["tolerates"] else (),
        reserved_for=row["reserved_for"] if is_reserved else 0,
    )
    return lease
