"""What was different at one moment from another, device by device."""

import sqlite3
from collections.abc import Iterator
from typing import Final

import msgspec

from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId
from leasehold.events.position import lease_id_text
from leasehold.events.questions import Diff, Reading
from leasehold.events.views import ChangeView
from leasehold.projections.differing import Difference, differences
from leasehold.projections.handedrows import Handed, handed_in
from leasehold.projections.rows import Marks
from leasehold.projections.scheduletelling import policy_text
from leasehold.services.archive.lookup import Lookup, range_of
from leasehold.services.archive.then import is_known, unknown_host

DEVICES_AT_ONCE: Final = 500
WALKED_MAX: Final = 256
"""So many versions of a device are gone through for where a field got its value; else the oldest of them is named."""
PAGE_CHARS_MAX: Final = 256 * 1024
"""A page ends behind the device with which it gets longer; all changes of a device stand on one."""

# The devices that have changed since `since` at all, as they were at `at`: one of both. What had not appeared yet has
# no version.
_AS_AT: Final = """
SELECT d.device, v.from_position, v.missing, v.flaps, v.handed, b.body, t.lease, t.holder, o.ended_position,
    o.ended_ns, o.freed_position, o.freed_ns, t.from_position AS tenure_position, t.from_ns AS tenure_ns
FROM device d
LEFT JOIN version v ON v.device = d.device AND v.from_position =
    (SELECT max(x.from_position) FROM version x WHERE x.device = d.device AND x.from_position <= :at)
LEFT JOIN version b ON b.device = v.device AND b.from_position = v.described
LEFT JOIN ownership o ON d.held > 0 AND o.device = d.device AND o.from_position =
    (SELECT max(y.from_position) FROM ownership y WHERE y.device = d.device AND y.from_position <= :at)
LEFT JOIN tenure t ON t.lease = o.from_position AND t.from_position =
    (SELECT max(z.from_position) FROM tenure z WHERE z.lease = o.from_position AND z.from_position <= :at)
WHERE d.device > :after AND d.device >= :low AND d.device < :high
    AND d.last_position > :since AND d.first_position <= :to
ORDER BY d.device LIMIT :limit
"""
_VERSIONS: Final = """
SELECT v.from_position, v.at_ns, v.missing, v.flaps, v.handed, b.body FROM version v
CROSS JOIN version b ON b.device = v.device AND b.from_position = v.described
WHERE v.device = :device AND v.from_position > :since AND v.from_position <= :to
ORDER BY v.from_position DESC LIMIT :limit
"""
_WORDS: Final = ("binding", "quarantine", "drift", "cordon", "taints", "policy", "unclean")
_description: Final = msgspec.json.Decoder(DeviceDescription)
_MARKS: Final = (("tenure_position", "tenure_ns"), ("ended_position", "ended_ns"), ("freed_position", "freed_ns"))


class _Seen(msgspec.Struct, frozen=True):
    """What was known of a device itself; by default that there was none."""

    presence: str = ""
    """`there`, `missing`, or nothing."""
    flaps: int = 0
    description: DeviceDescription | None = None
    handed: tuple[tuple[str, str], ...] = ()
    """What is handed over, kept apart or differs, by its name."""


async def diff(look: Lookup, question: Diff) -> Reading:
    """A page of changes, in the order of device ids."""
    since, to = await look.span(question.since, question.to)
    low, high = range_of(question.host)
    if question.host and not await is_known(look, question.host, to.position):
        return unknown_host(look, question.host, to)
    changes: list[ChangeView] = []
    after, chars, more = question.after, 0, True
    while more and len(changes) < question.limit and chars < PAGE_CHARS_MAX:
        about = {
            "after": after, "low": low, "high": high, "since": since.position, "to": to.position,
            "limit": DEVICES_AT_ONCE,
        }  # fmt: skip
        before = await look.rows(_AS_AT, **about, at=since.position)
        behind = await look.rows(_AS_AT, **about, at=to.position)
        more = len(behind) == DEVICES_AT_ONCE
        for was, now in zip(before, behind, strict=True):
            if len(changes) >= question.limit or chars >= PAGE_CHARS_MAX:
                more = True
                break
            look.check_time()
            found = _owner_change(was, now, since.position, to.position)
            if was["from_position"] != now["from_position"]:
                found += await _changes_of_thing(look, was, since.position, to.position)
            changes += found
            chars += sum(len(change.before) + len(change.after) for change in found)
            after = now["device"]
    return look.reading(to, since, changes=changes, more=more)


# --- owners -----------------------------------------------------------------------------------------------------------


def _owner_change(was: sqlite3.Row, now: sqlite3.Row, since: int, to: int) -> list[ChangeView]:
    before, after = _owner(was, since), _owner(now, to)
    if before == after:
        return []
    marks = ((now[position], now[at_ns]) for position, at_ns in _MARKS)
    position, at_ns = max(mark for mark in marks if 0 < mark[0] <= to)
    return [ChangeView(device=now["device"], what="owner", before=before, after=after, position=position, at_ns=at_ns)]


def _owner(row: sqlite3.Row, at: int) -> str:
    if row["lease"] is None or 0 < row["freed_position"] <= at:
        return ""
    ending = ", ending" if 0 < row["ended_position"] <= at else ""
    # Who was given it may be called as who gave it.
    given = f", his since {row['tenure_position']}" if row["tenure_position"] != row["lease"] else ""
    return f"{row['holder']} ({lease_id_text(row['lease'])}{given}{ending})"


# --- things -----------------------------------------------------------------------------------------------------------


async def _changes_of_thing(look: Lookup, was: sqlite3.Row, since: int, to: int) -> list[ChangeView]:
    """What became of a device itself, and which of its versions made it so."""
    device = DeviceId(was["device"])
    versions = await look.rows(_VERSIONS, device=device, since=since, to=to, limit=WALKED_MAX)
    first = seen = _seen(was) if was["from_position"] is not None else _Seen()
    oldest = (versions[-1]["from_position"], versions[-1]["at_ns"])
    made: dict[str, tuple[int, int]] = {}
    for version in reversed(versions):
        before, seen = seen, _seen(version)
        for each in _differences(before, seen):
            made[each.name] = (version["from_position"], version["at_ns"])
    found = []
    for each in _differences(first, seen):
        position, at_ns = _made_at(made, each.name) or oldest
        found.append(ChangeView(
            device=device, what=each.name, before=each.before, after=each.after, position=position, at_ns=at_ns
        ))  # fmt: skip
    return found


def _made_at(made: dict[str, tuple[int, int]], name: str) -> tuple[int, int] | None:
    """Where a thing, or what it is a part of, or has as its parts, became what it is."""
    tied = (at for each, at in made.items() if f"{each}.".startswith(f"{name}.") or f"{name}.".startswith(f"{each}."))
    return max(tied, default=None)


def _seen(row: sqlite3.Row) -> _Seen:
    presence = "missing" if row["missing"] else "there"
    return _Seen(presence, row["flaps"], _description.decode(row["body"]), tuple(_handed(handed_in(row["handed"]))))


def _handed(handed: Handed) -> Iterator[tuple[str, str]]:
    if handed.binding is not None:
        lease, driver = lease_id_text(handed.binding.lease), handed.binding.driver or "no driver"
        yield "binding", f"{'given back by' if handed.binding.given_back else 'prepared for'} {lease}, on {driver}"
    if handed.quarantine is not None:
        yield "quarantine", handed.quarantine.reason
    if handed.drift is not None:
        yield "drift", handed.drift.kind
    if handed.marks is not None:
        yield from _marked(handed.marks)


def _marked(marks: Marks) -> Iterator[tuple[str, str]]:
    if marks.cordon is not None:
        yield "cordon", marks.cordon.reason
    taints = [mark.taint for mark in marks.taints if mark.taint is not None]
    if taints:
        yield "taints", ", ".join(f"{each.name}={each.value}" if each.value else each.name for each in taints)
    if marks.policy is not None:
        yield "policy", policy_text(marks.policy)
    if marks.unclean_position:
        yield "unclean", f"behind a lease of {marks.unclean_tenant}"


def _differences(before: _Seen, after: _Seen) -> list[Difference]:
    """Presence, flaps, and what differs of the descriptions; nothing more of a device that was not there at all."""
    found = [Difference("presence", before.presence, after.presence)] if before.presence != after.presence else []
    if before.description is None or after.description is None:
        return found
    if before.flaps != after.flaps:
        found.append(Difference("flaps", str(before.flaps), str(after.flaps)))
    was, now = dict(before.handed), dict(after.handed)
    words = (Difference(name, was.get(name, ""), now.get(name, "")) for name in _WORDS)
    found += (each for each in words if each.before != each.after)
    return found + differences(before.description, after.description)
