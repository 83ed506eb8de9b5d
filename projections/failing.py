"""Devices that fail their holders again and again: they go into quarantine until an operator has said that they work.

| what counts as a failure | told by |
|---|---|
| it could not be prepared for a lease | `PrepareFailed`, which names the device |
| its binder could not take it back, even if it could in the end | `DeviceQuarantined` without evidence |
| it went away under a living lease, or another thing came in its place | `DeviceMissing`, `DeviceReplaced` |

`limits.FAILURES_MAX` of them within `limits.FAILURE_WINDOW_NS` are too many. What is missing while its host's picture
is not whole is the host's doing, which may be starting anew, and does not count. Nobody is given a device that failed
too often, even before that is told; who has it keeps it.
"""

from typing import TYPE_CHECKING, Final

import msgspec

from leasehold.events import limits
from leasehold.events.hostdev_events import DeviceQuarantined
from leasehold.events.identities import DeviceId
from leasehold.projections.rows import DeviceState, Marks, Quarantine

if TYPE_CHECKING:
    from leasehold.projections.state import State

RULES: Final = 5
"""Since these rules it matters how often a device failed."""
_NS_PER_H: Final = 3_600 * 10**9
_NOTHING: Final = Marks()


def has_failed(row: DeviceState) -> bool:
    """Whether a device failed its holders too often, and no operator has said since that it works."""
    failures = row.marks.failures if row.marks is not None else ()
    if len(failures) < limits.FAILURES_MAX:
        return False
    return failures[-1][1] - failures[-limits.FAILURES_MAX][1] <= limits.FAILURE_WINDOW_NS


def why(row: DeviceState) -> str:
    """What there is to say of a device that failed too often."""
    assert row.marks is not None
    span_ns = row.marks.failures[-1][1] - row.marks.failures[-limits.FAILURES_MAX][1]
    return f"it failed its holders {limits.FAILURES_MAX} times within {max(1, -(-span_ns // _NS_PER_H))} h"


def way_out(device: DeviceId) -> str:
    """What to do about it."""
    mend = f"leasehold heal {device} --reason …"
    return f"see what happened (leasehold history {device}), and when it works again: {mend}"


def is_stuck(quarantine: Quarantine | None) -> bool:
    """Whether it is one that its binder, or who confirms that it is free, ends."""
    return quarantine is not None and not quarantine.evidence


def lasting(quarantine: Quarantine | None) -> Quarantine | None:
    """What is left of a quarantine when its binder has taken the device back, or it was confirmed free: that for which
    failures are the reason.
    """
    return quarantine if quarantine is not None and quarantine.evidence else None


def failed(row: DeviceState, position: int, at_ns: int) -> DeviceState:
    """The row of a device that has failed once more."""
    return msgspec.structs.replace(row, marks=failed_once_more(row.marks, position, at_ns))


def stuck(
    marks: Marks | None, before: Quarantine | None, event: DeviceQuarantined, position: int, at_ns: int
) -> Marks | None:
    """What there is to say of a device that is in quarantine now: that its binder says so is a failure, if it did not
    say so already (`before`).
    """
    is_failure = not event.evidence and not is_stuck(before)
    return failed_once_more(marks, position, at_ns) if is_failure else marks


def failed_once_more(marks: Marks | None, position: int, at_ns: int) -> Marks:
    """What there is to say of a device behind one more failure."""
    was = marks or _NOTHING
    failures = (*was.failures, (position, at_ns))[-limits.FAILURES_MAX :]
    return msgspec.structs.replace(was, failures=failures)


def granted(row: DeviceState) -> Marks | None:
    """What there is to say of a device from its grant on: if it had failed too often by then, as by earlier rules it
    might, that does not count any more.
    """
    if row.marks is None or not has_failed(row):
        return row.marks
    rest = msgspec.structs.replace(row.marks, failures=())
    return rest if rest != _NOTHING else None


def lost(state: "State", before: DeviceState, after: DeviceState, position: int, at_ns: int) -> DeviceState:
    """The row of a device that went away, or was replaced: a failure, if somebody has it and its host shows well."""
    is_failure = _is_somebodys(before) and not before.missing and not state.hosts[before.host].stale
    return failed(after, position, at_ns) if is_failure else after


def _is_somebodys(row: DeviceState) -> bool:
    """Whether a living lease has it, alone or with others."""
    return bool(row.sharers) or (row.lease != 0 and not row.ending)


def due_ns(row: DeviceState) -> int | None:
    """Since when it is to be told that a device is in quarantine; `None`: it is not to be."""
    if row.marks is None or not row.marks.failures or row.quarantine is not None:
        return None
    return row.marks.failures[-1][1] if has_failed(row) and not _is_somebodys(row) else None


def told(state: "State", now_ns: int, *, but: frozenset[DeviceId], limit: int) -> list[DeviceQuarantined]:
    """The quarantines that are due at `now_ns`, at most `limit`; none of `but`, which change just now."""
    devices = state.failing.due_by(now_ns, limit=limit)
    return [_quarantined(device, state.devices[device]) for device in devices if device not in but]


def _quarantined(device: DeviceId, row: DeviceState) -> DeviceQuarantined:
    assert row.marks is not None
    return DeviceQuarantined(
        host=row.host,
        key=row.description.key,
        lease=row.lease,
        reason=why(row),
        help=way_out(device),
        evidence=tuple(position for position, _ in row.marks.failures),
    )
