"""How much of a time devices were held, and holders held devices: summed up by SQLite, span by span."""

import sqlite3
from typing import Final

import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.events.questions import Reading, Utilisation
from leasehold.events.views import UsageView
from leasehold.projections.conflicts import physical_device
from leasehold.services.archive.lookup import Lookup, Place, range_of
from leasehold.services.archive.then import find, is_known, unknown_device, unknown_host

SPANS_MAX: Final = 1_000
"""Spans into which a time may be cut: all of them stand in one answer."""

# What was held at some time between `since` and `to`: for each device from the one at the beginning on, and of a lease
# that was given to another, for each whose it was. `live_ns` is where the lease ended, `end_ns` where the device was
# free again, or was another's, as far as that lies in the time.
_HELD: Final = """
held AS (
    SELECT d.device AS device, l.lease AS lease, {name} AS name, max(t.from_ns, :begin) AS begin_ns,
        CASE o.ended_position WHEN 0 THEN :end ELSE o.ended_ns END AS live_ns,
        CASE WHEN t.until_position > 0 THEN min(t.until_ns, :end) WHEN o.freed_position = 0 THEN :end
            ELSE min(o.freed_ns, :end) END AS end_ns
    FROM {source}
    WHERE d.device >= :low AND d.device < :high AND d.held BETWEEN 1 AND :to
        AND (o.freed_position = 0 OR o.freed_position > :since)
        AND (t.until_position = 0 OR t.until_position > :since) AND t.from_position <= :to
        AND t.from_ns < :end AND (o.freed_position = 0 OR o.freed_ns > :begin OR o.from_ns >= :begin)
        AND (t.until_position = 0 OR t.until_ns > :begin OR t.from_ns >= :begin)
        AND {name} > :after AND {name} <= :last
)
"""
_OF_ALL: Final = """
    device d
    CROSS JOIN ownership o ON o.device = d.device AND o.from_position <= :to AND o.from_position >= ifnull(
        (SELECT max(x.from_position) FROM ownership x WHERE x.device = d.device AND x.from_position <= :since), 0)
    CROSS JOIN lease l ON l.lease = o.from_position CROSS JOIN tenure t ON t.lease = l.lease
"""
_OF_HOLDER: Final = """
    tenure t CROSS JOIN lease l ON t.holder = :holder AND l.lease = t.lease AND l.lease <= :to
    CROSS JOIN json_each(CAST(l.devices AS TEXT)) j CROSS JOIN device d ON d.device = j.value
    CROSS JOIN ownership o ON o.device = d.device AND o.from_position = l.lease
"""
"""A holder has few leases beside all that its devices have been under."""
_NAMES: Final = "WITH {held} SELECT DISTINCT name FROM held ORDER BY name LIMIT :limit"
# Each is cut where a span ends; `number` counts the spans.
_USAGE: Final = """
WITH RECURSIVE {held}, piece(name, device, lease, begin_ns, live_ns, end_ns, number, final) AS (
    SELECT name, device, lease, begin_ns, live_ns, end_ns,
        (begin_ns - :begin) / :every, (max(end_ns - 1, begin_ns) - :begin) / :every FROM held
    UNION ALL
    SELECT name, device, lease, begin_ns, live_ns, end_ns, number + 1, final FROM piece WHERE number < final
), cut AS (
    SELECT name, device, lease, number, live_ns,
        max(begin_ns, :begin + number * :every) AS begin_ns, min(end_ns, :begin + (number + 1) * :every) AS end_ns
    FROM piece
)
SELECT name, number, sum(max(0, min(live_ns, end_ns) - begin_ns)) AS leased,
    sum(max(0, end_ns - max(live_ns, begin_ns))) AS ending,
    count(DISTINCT lease) AS leases, count(DISTINCT device) AS devices
FROM cut GROUP BY name, number
"""


async def utilisation(look: Lookup, question: Utilisation) -> Reading:
    """A page of names with all their spans; what was not held at all in the time is left out."""
    since, to = await look.span(question.since, question.to)
    spans = _spans(since, to, question.every_ns)
    low, high = range_of(question.host)
    if question.host and not await is_known(look, question.host, to.position):
        return unknown_host(look, question.host, to)
    if question.device:
        found = await find(look, question.device, question.host, to.position)
        if found.device is None:
            return unknown_device(look, found, to)
        low = physical_device(found.device)
        high = f"{low} "
    name, source = "d.device" if question.by == "device" else "t.holder", _OF_HOLDER if question.holder else _OF_ALL
    held = _HELD.format(name=name, source=source)
    about = {
        "since": since.position, "to": to.position, "begin": since.ns, "end": to.ns, "low": low, "high": high,
        "holder": question.holder, "after": question.after,
    }  # fmt: skip
    count = max(1, question.limit // len(spans))
    names = [row[0] for row in await look.rows(_NAMES.format(held=held), **about, last="\U0010ffff", limit=count + 1)]
    more, names = len(names) > count, names[:count]
    rows = []
    if names:
        every = question.every_ns or max(1, to.ns - since.ns)
        rows = await look.rows(_USAGE.format(held=held), **about, last=names[-1], every=every)
    # Its ends are the very times: the next page must be of the same.
    to, since = (msgspec.structs.replace(place, at_ns=place.ns) for place in (to, since))
    return look.reading(to, since, usage=_views(names, spans, rows), more=more)


def _spans(since: Place, to: Place, every_ns: int) -> list[tuple[int, int]]:
    """From when to when each span lasts; the last one may be shorter."""
    if not every_ns or to.ns <= since.ns:
        return [(since.ns, to.ns)]
    count = -((since.ns - to.ns) // every_ns)
    if count > SPANS_MAX:
        raise InvalidInputError(f"that makes {count} spans; at most {SPANS_MAX} are possible", field="every_ns")
    starts = range(since.ns, to.ns, every_ns)
    return [(start, min(start + every_ns, to.ns)) for start in starts]


def _views(names: list[str], spans: list[tuple[int, int]], rows: list[sqlite3.Row]) -> list[UsageView]:
    found = {(row["name"], row["number"]): row for row in rows}
    views = []
    for name in names:
        for number, (from_ns, to_ns) in enumerate(spans):
            row = found.get((name, number))
            views.append(
                UsageView(
                    name=name,
                    from_ns=from_ns,
                    to_ns=to_ns,
                    leased_ns=row["leased"] if row else 0,
                    ending_ns=row["ending"] if row else 0,
                    leases=row["leases"] if row else 0,
                    devices=row["devices"] if row else 0,
                )
            )
    return views
