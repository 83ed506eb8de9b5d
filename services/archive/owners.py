"""Who had what: at one moment, and between two."""

import sqlite3
from typing import Final

from leasehold.events import limits
from leasehold.events.position import lease_id_text
from leasehold.events.questions import Owners, Reading, Who
from leasehold.events.views import OwnerView
from leasehold.projections.conflicts import physical_device
from leasehold.services.archive.lookup import Lookup, Place, range_of
from leasehold.services.archive.then import find, is_known, unknown_device, unknown_host

_COLUMNS: Final = """
o.device, l.lease, t.holder, t.principal, t.tenant, l.ended, l.forced, l.mode, t.from_position, t.from_ns,
t.until_position, t.until_ns, o.ended_position, o.ended_ns, o.freed_position, o.freed_ns, o.evidence
"""
_SHARED: Final = """
s.device, l.lease, t.holder, t.principal, t.tenant, l.ended, l.forced, l.mode, t.from_position, t.from_ns,
t.until_position, t.until_ns, s.ended_position, s.ended_ns, s.ended_position AS freed_position, s.ended_ns AS freed_ns,
'' AS evidence
"""
"""In these columns, where nobody has to show that it is free behind the lease."""
_OWNERS: Final = f"""
SELECT {_COLUMNS} FROM device d
CROSS JOIN ownership o ON o.device = d.device AND o.from_position =
    (SELECT max(x.from_position) FROM ownership x WHERE x.device = d.device AND x.from_position <= :at)
CROSS JOIN lease l ON l.lease = o.from_position
CROSS JOIN tenure t ON t.lease = l.lease AND t.from_position =
    (SELECT max(z.from_position) FROM tenure z WHERE z.lease = l.lease AND z.from_position <= :at)
WHERE d.device > :after AND d.device >= :low AND d.device < :high AND d.held BETWEEN 1 AND :at
    AND (o.freed_position = 0 OR o.freed_position > :at)
ORDER BY d.device LIMIT :limit
"""  # noqa: S608 - all ours
_SHARERS: Final = f"""
SELECT {_SHARED} FROM sharing s CROSS JOIN lease l ON l.lease = s.from_position
CROSS JOIN tenure t ON t.lease = l.lease AND t.from_position = l.lease
WHERE s.device > :after AND s.device >= :low AND s.device < :high AND s.mode = 'shared' AND s.from_position <= :at
    AND (s.ended_position = 0 OR s.ended_position > :at)
ORDER BY s.device, s.from_position LIMIT :limit
"""  # noqa: S608 - all ours
_WHO: Final = f"""
SELECT {_COLUMNS} FROM ownership o CROSS JOIN lease l ON l.lease = o.from_position
CROSS JOIN tenure t ON t.lease = l.lease AND t.from_position > :after AND t.from_position <= :to
    AND (t.until_position = 0 OR t.until_position > :since)
WHERE o.device = :device AND o.from_position <= :to
    AND o.from_position >= ifnull((SELECT max(x.from_position) FROM ownership x
        WHERE x.device = :device AND x.from_position <= max(:since, :after)), 0)
    AND (o.freed_position = 0 OR o.freed_position > :since)
ORDER BY t.from_position LIMIT :limit
"""  # noqa: S608 - all ours
_WHO_SHARED: Final = f"""
SELECT {_SHARED} FROM sharing s CROSS JOIN lease l ON l.lease = s.from_position
CROSS JOIN tenure t ON t.lease = l.lease AND t.from_position = l.lease
WHERE s.device = :device AND s.from_position > :after AND s.from_position <= :to
    AND (s.ended_position = 0 OR s.ended_position > :since)
ORDER BY s.from_position LIMIT :limit
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
    about = {"after": question.after, "low": low, "high": high, "at": place.position}
    rows = await look.rows(_OWNERS, **about, limit=question.limit + 1)
    # All who share a device stand on one page, however short it is to be.
    rows += await look.rows(_SHARERS, **about, limit=question.limit + limits.SHARERS_MAX)
    rows.sort(key=lambda row: (row["device"], row["from_position"]))
    limit = question.limit
    while 0 < limit < len(rows) and rows[limit]["device"] == rows[limit - 1]["device"]:
        limit -= 1
    if not limit:
        limit = sum(row["device"] == rows[0]["device"] for row in rows)
    return _page(look, limit, rows, place)


async def who(look: Lookup, question: Who) -> Reading:
    """A page of who had a device. Its name is read as of the end of the time, or else of its beginning."""
    since, to = await look.span(question.since, question.to)
    found = await find(look, question.device, question.host, to.position)
    if found.device is None and not found.candidates:
        found = await find(look, question.device, question.host, since.position)
    if found.device is None:
        return unknown_device(look, found, to)
    about = {
        "device": physical_device(found.device), "after": question.after, "since": since.position, "to": to.position,
        "limit": question.limit + 1,
    }  # fmt: skip
    rows = await look.rows(_WHO, **about) + await look.rows(_WHO_SHARED, **about)
    rows.sort(key=lambda row: row["from_position"])
    return _page(look, question.limit, rows, to, since)


def _page(look: Lookup, limit: int, rows: list[sqlite3.Row], at: Place, since: Place | None = None) -> Reading:
    views = [_view(row, at.position) for row in rows[:limit]]
    return look.reading(at, since, owners=views, more=len(rows) > limit)


def _view(row: sqlite3.Row, at: int) -> OwnerView:
    if row["until_position"]:
        return _given_on(row, at)
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
        mode=row["mode"],
    )


def _given_on(row: sqlite3.Row, at: int) -> OwnerView:
    """Who had it until the lease was another's."""
    return OwnerView(
        device=row["device"],
        lease=lease_id_text(row["lease"]),
        holder=row["holder"],
        principal=row["principal"],
        tenant=row["tenant"],
        state="transferred" if row["until_position"] <= at else "leased",
        from_position=row["from_position"],
        from_ns=row["from_ns"],
        ended="transferred",
        ended_position=row["until_position"],
        ended_ns=row["until_ns"],
        forced=bool(row["forced"]),
    )
