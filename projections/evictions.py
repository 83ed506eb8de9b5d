"""Living leases that end because a device of theirs, or its host, is tainted with the effect `evict`: which, when, and
by whose word.

Only what a taint concerns is noted, when it is put there: a tick looks at what is due, however many leases there are.
A lease ends as a whole. Who only looks on (`admin`) has nothing that could be taken away, and stays.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from leasehold.events.hostdev_events import LeaseRevoked
from leasehold.events.identities import DeviceId, HostName
from leasehold.events.scheduling import DRAIN, Taint
from leasehold.projections.rows import taints_of
from leasehold.projections.terms import tolerated

if TYPE_CHECKING:
    from leasehold.projections.rows import DeviceState, LeaseState, Mark
    from leasehold.projections.state import State

RULES: Final = 5
"""Since these rules leases end so."""
_EVICT: Final = "evict"


# --- following it -------------------------------------------------------------------------------------------------


def due_ns(at_ns: int) -> int:
    """When a lease is due that is noted with this time."""
    return at_ns


def follow_lease(state: "State", lease: int, row: "LeaseState") -> None:
    """Something is new of a lease, or of the taints that concern it."""
    first = first_mark(state, row)
    before = state.indexes.evictions.get(lease)
    if first is None:
        if before is not None:
            state.indexes.evictions.drop(lease)
        return
    at_ns = taint_of(first).evicts_at_ns
    if at_ns != before:
        state.indexes.evictions.put(lease, at_ns)
        state.evictions.push(at_ns, lease)


def follow_device(state: "State", row: "DeviceState") -> None:
    """The taints of a device are others than before."""
    for lease in _living_on(row):
        follow_lease(state, lease, state.leases[lease])


def follow_host(state: "State", host: HostName) -> None:
    """The taints of a host are others than before."""
    for lease in on_host(state, host):
        follow_lease(state, lease, state.leases[lease])


def index_anew(state: "State") -> None:
    """Derive from the rows what following them has led to; nothing is yet."""
    leases: dict[int, None] = {}
    for host, row in state.hosts.items():
        if taints_of(row.marks):
            leases.update(dict.fromkeys(on_host(state, host)))
    for device_row in state.devices.values():
        if taints_of(device_row.marks):
            leases.update(dict.fromkeys(_living_on(device_row)))
    for lease in leases:
        first = first_mark(state, state.leases[lease])
        if first is not None:
            state.indexes.evictions.put(lease, taint_of(first).evicts_at_ns)
    state.evictions.fill(state.indexes.evictions.items())


# --- reading ------------------------------------------------------------------------------------------------------


def taint_of(mark: "Mark") -> Taint:
    """The taint that a mark is, which must be one."""
    assert mark.taint is not None
    return mark.taint


def first_mark(state: "State", row: "LeaseState") -> "Mark | None":
    """The taint that ends a lease before all others do; `None`: none does."""
    if row.ended or row.mode == "admin":
        return None
    return min(
        (mark for device in row.devices for mark in evicting(state, device, row)),
        key=lambda mark: (taint_of(mark).evicts_at_ns, mark.position),
        default=None,
    )


def evicting(state: "State", device: DeviceId, row: "LeaseState") -> Iterator["Mark"]:
    """The taints of a device, or of its host, that end a living lease of it."""
    device_row = state.devices[device]
    for marks in (state.hosts[device_row.host].marks, device_row.marks):
        for mark in taints_of(marks):
            taint = taint_of(mark)
            if taint.effect == _EVICT and not tolerated(taint, row.tolerates):
                yield mark


def on_host(state: "State", host: HostName) -> Iterator[int]:
    """The living leases that hold devices of a host, each once, in the order of these."""
    seen: set[int] = set()
    for device in state.indexes.on_host.get(host, ()):
        for lease in on_device(state, device):
            if lease not in seen:
                seen.add(lease)
                yield lease


def on_device(state: "State", device: DeviceId) -> Iterator[int]:
    """The living leases that hold a device: one alone, or those that share it."""
    return _living_on(state.devices[device])


def _living_on(row: "DeviceState") -> Iterator[int]:
    if row.lease and not row.ending:
        yield row.lease
    yield from row.sharers


# --- ending -------------------------------------------------------------------------------------------------------


def due(state: "State", now_ns: int, *, but: Collection[int], limit: int) -> Iterator[LeaseRevoked]:
    """The ends that are due at `now_ns`, at most `limit`, of those that were to come first; `but`: what ends just now
    anyhow.
    """
    for lease in state.evictions.due_by(now_ns, limit=limit):
        if lease not in but:
            mark = first_mark(state, state.leases[lease])
            assert mark is not None
            yield LeaseRevoked(request=mark.request, lease=lease, reason=why_of(mark))


def why_of(mark: "Mark") -> str:
    """Why a taint ends leases, in a sentence."""
    return f"{'drained' if taint_of(mark).name == DRAIN else f'tainted {text_of(mark)}'}: {mark.reason}"


def text_of(mark: "Mark") -> str:
    """A taint, as who tolerates it names it."""
    taint = taint_of(mark)
    return f"{taint.name}={taint.value}" if taint.value else taint.name
