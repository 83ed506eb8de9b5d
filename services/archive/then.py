"""Devices as they were: a part of the state, built from the read models as folding the log to there would build it."""

import asyncio
import sqlite3
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, HostName, request_key
from leasehold.events.questions import DevicesAt, Reading
from leasehold.projections import views
from leasehold.projections.naming import Resolved, resolve, spelling
from leasehold.projections.state import DeviceState, HostState, LeaseState, SourceState, State
from leasehold.services.archive.lookup import Lookup, Place, range_of

CANDIDATES_MAX: Final = 20_000
"""So many devices of one name are looked at: more than there are hosts."""
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
_HOSTS: Final = """
SELECT host, mode, sources FROM host h WHERE host IN (SELECT value FROM json_each(:hosts))
AND from_position = (SELECT max(from_position) FROM host x WHERE x.host = h.host AND x.from_position <= :at)
"""
_STATES: Final = f"""
SELECT d.device, d.host, d.first_position, d.first_ns, v.missing, b.body, l.lease, l.principal, l.holder, l.request_id,
    l.devices, l.ended, l.forced, l.ttl_ms, l.expires_at_ns,
    o.from_ns, o.ended_position, o.ended_ns, o.freed_position, o.freed_ns, o.displaced_position
FROM device d {_LATEST_VERSION}
LEFT JOIN ownership o ON d.held > 0 AND o.device = d.device AND o.from_position =
    (SELECT max(y.from_position) FROM ownership y WHERE y.device = d.device AND y.from_position <= :at)
LEFT JOIN lease l ON l.lease = o.from_position
WHERE d.device >= :low AND d.device < :high AND d.first_position <= :at
"""  # noqa: S608 - all ours
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
        self._kept: dict[tuple[str, str, str, int], State] = {}

    async def devices_at(self, look: Lookup, question: DevicesAt) -> Reading:
        """A page of devices, with the hosts that they are of."""
        place = await look.place(question.at)
        low, high = range_of(question.host)
        if question.host and not await _hosts(look, [question.host], place.position):
            return unknown_host(look, question.host, place)
        page = await look.rows(
            _PAGE, after=question.after, low=low, high=high, at=place.position, limit=question.limit + 1
        )
        more, page = len(page) > question.limit, page[: question.limit]
        hosts = list(dict.fromkeys(host for _, host in page)) or ([question.host] if question.host else [])
        state = await self._state(look, hosts, place.position)
        rows = await asyncio.to_thread(lambda: [views.device_view(state, device) for device, _ in page])
        return look.reading(
            place, devices=rows, hosts=[views.host_view(state, HostName(host)) for host in hosts], more=more
        )

    async def _state(self, look: Lookup, hosts: list[str], at: int) -> State:
        """All that is known of `hosts`, whose device ids lie side by side."""
        if not hosts:
            return State()
        low, high = range_of(hosts[0])[0], range_of(hosts[-1])[1]
        key = (look.head.ledger_id, low, high, at)
        if key not in self._kept:
            devices = await look.rows(_STATES, low=low, high=high, at=at)
            state = await asyncio.to_thread(_build, await _hosts(look, hosts, at), devices, at)
            while len(self._kept) >= STATES_KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = state
        return self._kept[key]


async def find(look: Lookup, text: str, host: str, at: int) -> Resolved:
    """The device that `text` named then; names are read as `naming.resolve` reads them."""
    named_host, _, rest = text.partition("/")
    known = await _hosts(look, [named_host], at)
    if rest and known and not host:
        host = named_host
    low, high = range_of(host)
    texts = msgspec.json.encode({spelling(text), spelling(rest)} - {""}).decode()
    found = await look.rows(_NAMED, texts=texts, low=low, high=high, id=text, at=at, limit=CANDIDATES_MAX)
    return await asyncio.to_thread(lambda: resolve(_build(known, found, at), text, host))


async def is_known(look: Lookup, host: str, at: int) -> bool:
    """Whether there was such a host."""
    return bool(await _hosts(look, [host], at))


async def _hosts(look: Lookup, hosts: Iterable[str], at: int) -> list[sqlite3.Row]:
    return await look.rows(_HOSTS, hosts=msgspec.json.encode(list(hosts)).decode(), at=at)


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


def _build(hosts: list[sqlite3.Row], devices: list[sqlite3.Row], at: int) -> State:
    """The state of these hosts and devices, with what it takes to show them; nothing else is in it.

    Where nothing is known of owners (`_NAMED`), there are none.
    """
    state = State()
    counts: dict[str, int] = {}
    for row in devices:
        counts[row["host"]] = counts.get(row["host"], 0) + 1
        held = _held(state, row, at) if "lease" in row.keys() else {}  # noqa: SIM118 - what is in a row are its values
        state.devices[row["device"]] = DeviceState(
            host=row["host"], description=_description.decode(row["body"]), missing=bool(row["missing"]), **held
        )
    for host, mode, sources in hosts:
        reasons: dict[str, str] = msgspec.json.decode(sources)
        state.hosts[host] = HostState(
            mode=mode,
            sources={agent: SourceState(run=1, stale=reason) for agent, reason in reasons.items()},
            device_count=counts.get(host, 0),
        )
    state.index_anew()
    return state


def _held(state: State, row: sqlite3.Row, at: int) -> dict[str, Any]:
    """What the last owner means for a device; the lease itself is put into the state, if it holds it."""
    if row["lease"] is None:
        return {"since_position": row["first_position"], "since_ns": row["first_ns"]}
    if 0 < row["freed_position"] <= at:
        return {"since_position": row["freed_position"], "since_ns": row["freed_ns"]}
    ending = 0 < row["ended_position"] <= at
    lease: int = row["lease"]
    state.leases[lease] = LeaseState(
        principal=row["principal"],
        holder=row["holder"],
        devices=_devices.decode(row["devices"]),
        token=lease,
        ttl_ms=row["ttl_ms"],
        granted_at_ns=row["from_ns"],
        expires_at_ns=row["expires_at_ns"],
        forced=bool(row["forced"]),
        grant_key=request_key(row["principal"], row["request_id"]),
        ended=row["ended"] if ending else "",
    )
    return {
        "lease": lease,
        "ending": ending,
        "displaced": 0 < row["displaced_position"] <= at,
        "since_position": row["ended_position"] if ending else lease,
        "since_ns": row["ended_ns"] if ending else row["from_ns"],
    }
