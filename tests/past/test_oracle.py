"""What the read models say of the past is what the log says of it, whatever happened in it.

Logs come from the simulated cluster, and from hosts full of node devices. Beside the answers stand the full fold of the
real core, and intervals read off the events one by one.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from leasehold.events import event_types, hostdev_events, schedule_events
from leasehold.events.identities import HostName, tenant_of
from leasehold.events.position import end_of_record, sequence_of
from leasehold.events.questions import DevicesAt, Diff, Moment, Owners, Utilisation, Who
from leasehold.projections import views
from leasehold.projections.conflicts import physical_device
from leasehold.projections.naming import resolve
from leasehold.projections.rows import DeviceState, Marks
from leasehold.projections.state import State
from tests.past.logs import (
    Asked,
    At,
    archived,
    devices_in,
    events_of,
    folded,
    handed_over,
    node_devices,
    owners_in,
    scheduled,
    seeds,
    simulated,
)
from tests.projections import ledger as cluster

LOGS = 3
ONCE_FAILED = (817837,)
"""A lease of before its host was managed."""
INSTANTS = 40
TIMES = 40
NAMES = 4


class Held(NamedTuple):
    """Who had a device, read off the events: positions and times, 0 for not yet."""

    device: str
    lease: int
    holder: str
    tenant: str
    since: tuple[int, int]
    mode: str = ""
    ended: tuple[int, int] = (0, 0)
    freed: tuple[int, int] = (0, 0)
    until: tuple[int, int] = (0, 0)
    """Where the lease was given to another."""


def holdings(events: Iterable[At]) -> list[Held]:
    """All of them, in the order in which they began."""
    found: dict[tuple[str, int], Held] = {}
    living: dict[int, list[tuple[str, int]]] = {}
    for position, ns, event in events:
        at = (position, ns)
        match event:
            case event_types.LeaseGranted():
                tenant, mode = tenant_of(event.request.principal), event.mode or ""
                living[position] = [(device, position) for device in event.devices]
                for key in living[position]:
                    found[key] = Held(key[0], position, event.holder, tenant, at, mode)
            case schedule_events.LeaseTransferred():
                keys = living.pop(event.lease)
                living[event.lease] = [(device, position) for device, _ in keys]
                for before, now in zip(keys, living[event.lease], strict=True):
                    found[now] = found[before]._replace(holder=event.holder, tenant=event.tenant, since=at)
                    found[before] = found[before]._replace(until=at)
            case (
                event_types.LeaseReleased()
                | event_types.LeaseExpired()
                | event_types.LeaseOutlived()
                | hostdev_events.PrepareFailed()
                | hostdev_events.LeaseRevoked()
            ):
                # What had ended already is taken by force, if it is ended again.
                for key in living.get(event.lease, ()):
                    row = found[key]
                    if not any(row.ended):
                        # Nobody has to show that what was shared, or looked at, is free.
                        found[key] = row._replace(ended=at, freed=at if row.mode else (0, 0))
            case event_types.DeviceFreed() if event.lease:
                (key,) = (key for key in living[event.lease] if key[0] == event.device)
                found[key] = found[key]._replace(freed=at)
    return list(found.values())


def places(events: list[At], rng: random.Random) -> list[int]:
    """Positions of events, and some between them."""
    at = [rng.choice(events).position for _ in range(INSTANTS)]
    return [*at, *(position + rng.randrange(-3, 300) for position in at[:10]), events[-1].position]


@pytest.mark.parametrize("made", [simulated, node_devices, handed_over, scheduled])
async def test_any_place_is_as_the_fold_has_it(tmp_path: Path, made: Callable[[int], list[bytes]]) -> None:
    """Devices as they are shown, hosts, and owners at any position are those of the log folded up to there."""
    for seed in (*ONCE_FAILED, *seeds(LOGS)):
        rng = random.Random(seed)
        bodies = made(seed)
        events = events_of(bodies)
        async with archived(tmp_path / str(seed), bodies) as past:
            last = sequence_of(events[-1].position)
            for place, state in folded(events, places(events, rng)):
                if place < 256 or sequence_of(place) > last:
                    continue
                await check_place(past, state, place, rng)
                await check_names(past, state, place, rng)


async def test_another_thing_in_a_leased_place(tmp_path: Path) -> None:
    """A device is lost from where another thing came into its place, not before, and not under the next lease."""
    ledger = cluster.ledger_with_hosts()
    places, shown = [], []
    steps = (
        lambda: ledger.granted("0a:00.0"),
        lambda: ledger.change("0a:00.0", product_id="1572"),
        lambda: ledger.tick(120),
        lambda: ledger.granted("0a:00.0"),
    )
    for step in steps:
        step()
        places.append(end_of_record(len(ledger.bodies)))
        shown.append(devices_in(ledger.state))
    words = [row.state for rows in shown for row in rows if row.device == cluster.device("0a:00.0")]
    assert words == ["leased", "lost", "free", "leased"]
    async with archived(tmp_path, ledger.bodies) as past:
        for place, rows in zip(places, shown, strict=True):
            assert await past.all(DevicesAt(at=Moment(position=place)), "devices", "device") == rows


async def check_place(past: Asked, state: State, place: int, rng: random.Random) -> None:
    """Both questions, in pages of any size, of all hosts and of one."""
    at = Moment(position=place)
    shown = await past.all(DevicesAt(at=at, limit=rng.choice((1, 3, 7, 1_000))), "devices", "device")
    assert shown == devices_in(state), place
    owned = await past.all(Owners(at=at, limit=rng.choice((1, 2, 1_000))), "owners", "device")
    assert [(row.device, row.lease, row.holder, row.principal, row.state) for row in owned] == owners_in(state), place
    for host in ("h1", "h2", "h3"):
        page = await past.ask(DevicesAt(at=at, host=host))
        assert page.outcome == ("ok" if host in state.hosts else "not_found"), (place, host)
        assert page.at_position == place
        if page.outcome == "ok":
            assert page.hosts == [views.host_view(state, HostName(host))], place
            assert page.devices == [row for row in shown if row.host == host]
            owners = await past.ask(Owners(at=at, host=host))
            assert owners.owners == [row for row in owned if row.device.startswith(f"{host}/")]


async def check_names(past: Asked, state: State, place: int, rng: random.Random) -> None:
    """A name leads to the device that it would have led to then."""
    texts = ["h1", "pci/", "/", "0000:01:00.0", "h1/0000:01:00.0", "pci/0000:0f:00.0", "h9/pci/0000:01:00.0"]
    for device, row in state.devices.items():
        texts += (device, row.description.key, row.description.name)
    for text in rng.sample(texts, min(NAMES, len(texts))):
        for host in ("", "h1"):
            expected = resolve(state, text, host)
            page = await past.ask(Owners(at=Moment(position=place), device=text, host=host))
            if expected.device is None or (host and host not in state.hosts):
                assert page.outcome == "not_found", (place, text, host)
                assert all(candidate in page.message for candidate in expected.candidates), page.message
            else:
                rows = [row for row in owners_in(state) if row[0] == physical_device(expected.device)]
                assert [(row.device, row.lease) for row in page.owners] == [row[:2] for row in rows], (place, text)


@pytest.mark.parametrize("made", [simulated, scheduled])
async def test_any_time_is_behind_the_last_record_until_then(
    tmp_path: Path, made: Callable[[int], list[bytes]]
) -> None:
    """Who owned what at a time is who owned it behind the last record decided then or before."""
    (seed,) = seeds(1)
    rng = random.Random(seed)
    bodies = made(seed)
    events = events_of(bodies)
    held = holdings(events)
    async with archived(tmp_path, bodies) as past:
        times = [rng.choice(events).ns + rng.choice((-1, 0, 1, 10**9)) for _ in range(TIMES)]
        for ns in [*times, events[0].ns - 1, events[-1].ns + 10**12]:
            last = max((event.position for event in events if event.ns <= ns), default=0)
            expected = [(row.device, row.since[0]) for row in held if row.mode != "admin" and has(row, last)]
            page = await past.ask(Owners(at=Moment(ns=ns)))
            assert [(row.device, row.from_position) for row in page.owners] == sorted(expected), ns
            assert sequence_of(page.at_position) == sequence_of(last)
            assert page.at_ns == max((event.ns for event in events if event.ns <= ns), default=0)


def has(row: Held, place: int, *, ever: bool = False) -> bool:
    """Whether the device is held behind `place`, or (`ever`) may be from there on."""
    return (ever or row.since[0] <= place) and not any(0 < over[0] <= place for over in (row.freed, row.until))


@pytest.mark.parametrize("made", [simulated, scheduled])
async def test_who_had_a_device(tmp_path: Path, made: Callable[[int], list[bytes]]) -> None:
    """All that had a device at some place between two, in order, with where each began and ended."""
    (seed,) = seeds(1)
    rng = random.Random(seed)
    bodies = made(seed)
    events = events_of(bodies)
    held = holdings(events)
    appeared = {
        f"{event.host}/{event.device.key}": position
        for position, _, event in events
        if isinstance(event, event_types.DeviceAppeared)
    }
    async with archived(tmp_path, bodies) as past:
        for device in sorted({row.device for row in held}):
            for _ in range(10):
                since, to = sorted(rng.choice(events).position for _ in range(2))
                question = Who(
                    device=device, since=Moment(position=since), to=Moment(position=to), limit=rng.choice((1, 2, 100))
                )
                if appeared[device] > to:
                    assert (await past.ask(question)).outcome == "not_found"
                    continue
                rows = await past.all(question, "owners", "from_position")
                expected = sorted(
                    (row for row in held if row.device == device and row.since[0] <= to and has(row, since, ever=True)),
                    key=lambda row: row.since[0],
                )
                assert [
                    (f"L{row.lease}", row.since, row.tenant, row.mode, row.until if any(row.until) else row.ended,
                     (0, 0) if any(row.until) else row.freed)
                    for row in expected
                ] == [
                    (row.lease, (row.from_position, row.from_ns), row.tenant, row.mode,
                     (row.ended_position, row.ended_ns), (row.freed_position, row.freed_ns))
                    for row in rows
                ]  # fmt: skip
                assert [row.state for row in rows] == [word_of(row, to) for row in expected]


def word_of(row: Held, place: int) -> str:
    """How it stands behind `place`."""
    if any(row.until):
        return "transferred" if row.until[0] <= place else "leased"
    return "freed" if 0 < row.freed[0] <= place else "ending" if 0 < row.ended[0] <= place else "leased"


@pytest.mark.parametrize("made", [simulated, node_devices, handed_over, scheduled])
async def test_what_was_different(tmp_path: Path, made: Callable[[int], list[bytes]]) -> None:
    """The differences between two places are those of the two states, and each is where it came to be."""
    for seed in seeds(2):
        rng = random.Random(seed)
        bodies = made(seed)
        events = events_of(bodies)
        async with archived(tmp_path / str(seed), bodies) as past:
            marks = sorted({rng.choice(events).position for _ in range(12)})
            kept = {place: pictures(state) for place, state in folded(events, marks)}
            for _ in range(15):
                since, to = sorted(rng.choice(marks) for _ in range(2))
                question = Diff(since=Moment(position=since), to=Moment(position=to), limit=rng.choice((1, 4, 1_000)))
                rows = await past.all(question, "changes", "device")
                assert {(row.device, row.what) for row in rows} == differences(kept[since], kept[to]), (since, to)
                assert len({(row.device, row.what) for row in rows}) == len(rows)
                # Behind its position, and not before it, the value is what it is in the end.
                for place, state in folded(events, {row.position - n for row in rows for n in (0, 1)}):
                    for row in rows:
                        now = (row.device, row.what) not in differences(pictures(state), kept[to])
                        if row.position - place in (0, 1):
                            assert now == (row.position == place), (row, place)


Picture = dict[str, tuple[str, str, int, Any, dict[str, Any]]]


def pictures(state: State) -> Picture:
    """Owner, presence, flaps and description of each device; how it is handed over, kept apart, differs, is marked."""
    owners = {device: owner_of(state, row) for device, row in state.devices.items() if row.lease}
    return {
        device: (
            owners.get(device, ""),
            "missing" if row.missing else "there",
            row.flaps,
            msgspec.to_builtins(row.description),
            handed(row),
        )
        for device, row in state.devices.items()
    }


def owner_of(state: State, row: DeviceState) -> str:
    """Who has a device, since which transfer, and how it stands."""
    lease = state.leases[row.lease]
    return f"{row.lease} {lease.principal} {lease.holder} {lease.transferred_position} {row.ending}"


def handed(row: DeviceState) -> dict[str, Any]:
    """What is handed over, kept apart, differs, or was said of it, by its name."""
    marks = row.marks or Marks()
    binding, quarantine, drift = row.binding, row.quarantine, row.drift
    return {
        "binding": (binding.lease, binding.driver, binding.given_back) if binding is not None else None,
        "quarantine": quarantine.reason if quarantine is not None else None,
        "drift": drift.kind if drift is not None else None,
        "cordon": marks.cordon.reason if marks.cordon is not None else None,
        "taints": [(mark.taint.name, mark.taint.value) for mark in marks.taints if mark.taint is not None],
        "policy": marks.policy,
        "unclean": marks.unclean_tenant,
    }


def differences(before: Picture, after: Picture) -> set[tuple[str, str]]:
    """Of which device what is not the same."""
    found: set[tuple[str, str]] = set()
    for device, (owner, presence, flaps, description, held) in after.items():
        if device not in before:
            found |= {(device, "presence")} | ({(device, "owner")} if owner else set())
            continue
        was = before[device]
        found |= {(device, "owner")} if was[0] != owner else set()
        found |= {(device, "presence")} if was[1] != presence else set()
        found |= {(device, "flaps")} if was[2] != flaps else set()
        found |= {(device, name) for name in held if was[4][name] != held[name]}
        found |= {(device, name) for name in different(was[3], description)}
    return found


def different(before: dict[str, Any], after: dict[str, Any], above: str = "") -> Iterator[str]:
    """What is not the same; parts of a capability by themselves."""
    for name in before.keys() | after.keys():
        was, now = before.get(name), after.get(name)
        if isinstance(was, dict) and isinstance(now, dict) and name != "attributes" and _type_of(was) == _type_of(now):
            yield from different(was, now, f"{above}{name}.")
        elif was != now:
            yield f"{above}{name}"


def _type_of(capability: dict[str, Any]) -> str:
    return str(capability.get("type", ""))


@pytest.mark.parametrize("made", [simulated, scheduled])
@pytest.mark.parametrize("by", ["device", "holder"])
async def test_how_much_was_used(tmp_path: Path, by: str, made: Callable[[int], list[bytes]]) -> None:
    """Times of use are the sums over all intervals, cut where spans are cut, in pages of any size."""
    for seed in seeds(2):
        rng = random.Random(seed)
        bodies = made(seed)
        events = events_of(bodies)
        held = [row for row in holdings(events) if not row.mode]
        async with archived(tmp_path / str(seed), bodies) as past:
            for _ in range(25):
                since, to = sorted(rng.choice(events).ns + rng.randrange(-(10**9), 10**9) for _ in range(2))
                every = rng.choice((0, max(10**9, (to - since) // rng.randrange(1, 40))))
                holder = rng.choice(("", held[0].holder)) if held else ""
                host = rng.choice(("", "h1"))
                question = Utilisation(
                    by=by, since=Moment(ns=since), to=Moment(ns=to), every_ns=every, holder=holder, host=host,
                    limit=rng.choice((1, 50, 1_000)),
                )  # fmt: skip
                page = await past.ask(question)
                if page.outcome == "not_found":
                    continue
                rows = await past.all(question, "usage", "name")
                # Neither end lies behind the log's, nor the beginning before it.
                window = min(max(since, events[0].ns), events[-1].ns), min(to, events[-1].ns)
                of_host = f"{host}/" if host else ""
                some = [row for row in held if holder in ("", row.holder) and row.device.startswith(of_host)]
                assert (page.since_ns, page.at_ns) == window
                assert [msgspec.structs.astuple(row) for row in rows] == used(some, by, *window, every, events)


def used(held: list[Held], by: str, since: int, to: int, every: int, events: list[At]) -> list[tuple[object, ...]]:
    """Brute force, span by span."""
    spans = [(since, to)]
    if every and to > since:
        spans = [(start, min(start + every, to)) for start in range(since, to, every)]
    names: dict[str, list[Held]] = {}
    for row in held:
        names.setdefault(row.device if by == "device" else row.holder, []).append(row)
    first = max((event.position for event in events if event.ns <= since), default=0)
    found: list[tuple[object, ...]] = []
    for name in sorted(names):
        lines = []
        for start, end in spans:
            touched = [row for row in names[name] if touches(row, start, end, first)]
            leased = sum(overlap(row.since[1], row.until[1] or row.ended[1] or to, start, end) for row in touched)
            over = [row for row in touched if row.ended[1] and not row.until[1]]
            ending = sum(overlap(row.ended[1], row.freed[1] or to, start, end) for row in over)
            leases, devices = {row.lease for row in touched}, {row.device for row in touched}
            lines.append((name, start, end, leased, ending, len(leases), len(devices)))
        if any(line[5] for line in lines):
            found += lines
    return found


def touches(row: Held, start: int, end: int, first: int) -> bool:
    """Whether it was held at some time from `start` on and before `end`; what was free at the beginning was not."""
    over = row.until if any(row.until) else row.freed
    if 0 < over[0] <= first:
        return False
    return row.since[1] < end and ((over[1] or 2**62) > start or row.since[1] >= start)


def overlap(begin: int, end: int, start: int, stop: int) -> int:
    """How much of the one lies in the other."""
    return max(0, min(end, stop) - max(begin, start))
