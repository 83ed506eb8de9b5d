"""Who had what: at one moment, and between two."""

import sqlite3
from typing import Final

from leasehold.events.position import lease_id_text
from leasehold.events.questions import Owners, Reading, Who
from leasehold.events.views import OwnerView
from leasehold.projections.conflicts import physical_device
from leasehold.services.archive.lookup import Lookup, Place, range_of
from leasehold.services.archive.then import find, is_known, unknown_device, unknown_host

_COLUMNS: Final = """
o.device, l.lease, l.holder, l.principal, l.tenant, l.ended, l.forced, o.from_position, o.from_ns, o.ended_position,
o.ended_ns, o.freed_position, o.freed_ns, o.evidence
"""
_OWNERS: Final = f"""
SELECT {_COLUMNS} FROM device d
CROSS JOIN ownership o ON o.device = d.device AND o.from_position =
    (SELECT max(x.from_position) FROM ownership x WHERE x.device = d.device AND x.from_position <= :at)
CROSS JOIN lease l ON l.lease = o.from_position
WHERE d.device > :after AND d.device >= :low AND d.device < :high AND d.held BETWEEN 1 AND :at
    AND (o.freed_position = 0 OR o.freed_position > :at)
ORDER BY d.device LIMIT :limit
"""  # noqa: S608 - all ours
_WHO: Final = f"""
SELECT {_COLUMNS} FROM ownership o CROSS JOIN lease l ON l.lease = o.from_position
WHERE o.device = :device AND o.from_position > :after AND o.from_position <= :to
    AND o.from_position >= ifnull(
        (SELECT max(x.from_position) FROM ownership x WHERE x.device = :device AND x.from_position <= :since), 0)
    AND (o.freed_position = 0 OR o.freed_position > :since)
ORDER BY o.from_position LIMIT :limit
"""  # noqa: S608 - all ours


async def owners(look: Lookup, question: Owners) -> Reading:
    """A page of what had an owner."""
    place = await look.place(question.at)
    low, high = range_of(question.host)
    if question.host and not await is_known(look, question.host, place.position):
        return unknown_host(look, question.host, place)
    if question.device:
        found = await find(look, question.device, question.host, place.position)
        if found.device is None:
            return unknown_device(look, found, place)
        low = physical_device(found.device)
        # No id holds a blank.
        high = f"{low} "
    rows = await look.rows(
        _OWNERS, after=question.after, low=low, high=high, at=place.position, limit=question.limit + 1
    )
    return _page(look, question.limit, rows, place)


async def who(look: Lookup, question: Who) -> Reading:
    """A page of who had a device. Its name is read as of the end of the time, or else of its beginning."""
    since, to = await look.span(question.since, question.to)
    found = await find(look, question.device, question.host, to.position)
    if found.device is None and not found.candidates:
        found = await find(look, question.device, question.host, since.position)
    if found.device is None:
        return unknown_device(look, found, to)
    rows = await look.rows(
        _WHO,
        device=physical_device(found.device),
        after=question.after,
        since=since.position,
        to=to.position,
        limit=question.limit + 1,
    )
    return _page(look, question.limit, rows, to, since)


def _page(look: Lookup, limit: int, rows: list[sqlite3.Row], at: Place, since: Place | None = None) -> Reading:
    views = [_view(row, at.position) for row in rows[:limit]]
    return look.reading(at, since, owners=views, more=len(rows) > limit)


def _view(row: sqlite3.Row, at: int) -> OwnerView:
    state = "leased"
    if 0 < row["ended_position"] <= at:
        state = "freed" if 0 < row["freed_position"] <= at else "ending"
    return OwnerView(
        device=row["device"],
        lease=lease_id_text(row["lease"]),
        holder=row["holder"],
        principal=row["principal"],
        tenant=row["tenant"],
        state=state,
        from_position=row["from_position"],
        from_ns=row["from_ns"],
        ended=row["ended"],
        ended_position=row["ended_position"],
        ended_ns=row["ended_ns"],
        freed_position=row["freed_position"],
        freed_ns=row["freed_ns"],
        evidence=row["evidence"],
        forced=bool(row["forced"]),
    )
