"""Lists of classes, quotas and the queue, as people see them, page by page."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceId, Principal, split_device_id
from leasehold.events.position import parse_queued_id, queued_id_text
from leasehold.events.schedule_views import ClassView, QueuedView, QuotaView
from leasehold.events.scheduling import Option
from leasehold.projections import buckets, candidates, quotas, views, waiting
from leasehold.projections.indexes import EVERYBODY
from leasehold.projections.scheduletelling import wanted_text
from leasehold.projections.state import State

_CLASS: Final = "class:"


# --- classes ------------------------------------------------------------------------------------------------------


def class_views(state: State, *, name: str = "", after: str = "", limit: int) -> tuple[list[ClassView], bool]:
    """Classes with how their devices stand, in the order of their names, from behind `after`, at most `limit`; and
    whether there are more. A page ends early where too many devices would have to be looked at for it.
    """
    names = sorted(state.classes) if not name else [name] if name in state.classes else []
    found: list[ClassView] = []
    room = limits.CLASS_DEVICES_LOOKED_MAX
    for each in names[bisect_right(names, after) :]:
        if len(found) == limit or (found and room <= 0):
            return found, True
        view, looked = class_view(state, each)
        found.append(view)
        room -= looked
    return found, False


def class_view(state: State, name: str) -> tuple[ClassView, int]:
    """A class, and how many devices were looked at for it: at most `limits.CLASS_DEVICES_LOOKED_MAX`."""
    counts = dict.fromkeys(("free", "leased", "kept", "out"), 0)
    looked, is_cut_off = 0, False
    for device in _of_class(state, name):
        if looked == limits.CLASS_DEVICES_LOOKED_MAX:
            is_cut_off = True
            break
        looked += 1
        if quotas.is_of_class(state, device, name):
            counts[_standing(state, device)] += 1
    row = state.classes[name]
    view = ClassView(
        name=name,
        select=row.select,
        since_position=row.position,
        devices=sum(counts.values()),
        queued=len(state.indexes.queued.get(f"{_CLASS}{name}", ())),
        is_cut_off=is_cut_off,
        **counts,
    )
    return view, looked


def _of_class(state: State, name: str) -> Iterator[DeviceId]:
    """Devices among which all of a class are, by host and key: as few as its selector says."""
    wanted = [frozenset(some) for some in buckets.of_option(state, Option(device_class=name), "")]
    named = candidates.named(wanted)
    if named is None:
        return candidates.devices(state.candidates.known, wanted)
    return (device for device in named if state.candidates.cell_of(device) is not None)


def _standing(state: State, device: DeviceId) -> str:
    row = state.devices[device]
    if (row.lease and not row.missing) or row.sharers:
        return "leased"
    word, _ = views.device_word(state, device)
    return word if word in ("free", "kept") else "out"


def free_devices(state: State, name: str, *, after: str, limit: int) -> tuple[list[DeviceId], bool]:
    """The free devices of a class, by host and key, from behind device `after`, at most `limit`; whether there may be
    more, also where too many others had to be looked at.
    """
    behind = split_device_id(DeviceId(after)) if after else ("", "")
    found: list[DeviceId] = []
    looked = 0
    for device in _of_class(state, name):
        if split_device_id(device) <= behind:
            continue
        if len(found) == limit or looked == limits.CLASS_DEVICES_LOOKED_MAX:
            return found, True
        looked += 1
        if quotas.is_of_class(state, device, name) and _standing(state, device) == "free":
            found.append(device)
    return found, False


# --- quotas -------------------------------------------------------------------------------------------------------


def quota_views(state: State, *, tenant: str = "", after: str = "", limit: int) -> tuple[list[QuotaView], bool]:
    """Quotas in the order of tenant and class, from behind `after` (`tenant/class`), at most `limit`; and whether there
    are more.
    """
    if tenant:
        names = state.indexes.quotas_of.get(Principal(tenant), ())
        keys: Sequence[tuple[Principal, str]] = sorted((Principal(tenant), name) for name in names)
    else:
        keys = sorted(state.quotas)
    low = bisect_right(keys, tuple(after.partition("/")[::2])) if after else 0
    rows = ((key, state.quotas[key]) for key in keys[low : low + limit])
    found = [
        QuotaView(
            tenant=whose,
            device_class=name,
            devices_max=row.devices_max,
            devices=row.devices,
            since_position=row.position,
        )
        for (whose, name), row in rows
    ]
    return found, low + limit < len(keys)


# --- the queue ----------------------------------------------------------------------------------------------------


def queued_views(
    state: State, *, tenant: str = "", device_class: str = "", after: str = "", limit: int
) -> tuple[list[QueuedView], bool]:
    """Requests that wait, first the one that comes first, from behind the place `after`, at most `limit`; and whether
    there are more.

    Raises:
        InvalidInputError: nobody waits at `after` (any more).
    """
    word = f"{_CLASS}{device_class}" if device_class else EVERYBODY
    places = state.indexes.queued.get(word, [])
    low = bisect_right(places, _place_of(state, after)) if after else 0
    found: list[QueuedView] = []
    for number in range(low, len(places)):
        queued = places[number][1]
        if tenant and state.queue[queued].tenant != tenant:
            continue
        if len(found) == limit:
            return found, True
        found.append(queued_view(state, queued))
    return found, False


def _place_of(state: State, text: str) -> tuple[int, int]:
    queued = parse_queued_id(text)
    row = state.queue.get(queued)
    if row is None:
        said = f"nobody waits at {text} any more: the list is another one now, begin anew"
        raise InvalidInputError(said, field="after")
    return row.rank_ns, queued


def queued_view(state: State, queued: int) -> QueuedView:
    """A request that waits."""
    row = state.queue[queued]
    return QueuedView(
        queued=queued_id_text(queued),
        request_id=row.asked.request_id,
        principal=row.principal,
        tenant=row.tenant,
        holder=row.asked.holder,
        priority=row.asked.priority,
        needs=wanted_text(row.asked),
        since_ns=row.queued_at_ns,
        until_ns=row.until_ns,
        place=waiting.place(state, queued),
        ahead=waiting.ahead(state, queued),
        kept=row.keeps,
        why=row.why.message,
    )
