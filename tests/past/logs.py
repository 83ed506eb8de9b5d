"""Random logs made by the simulated cluster, archives of them, and the full fold of them at any place."""

import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from leasehold.events import codec
from leasehold.events.event_types import Event
from leasehold.events.identities import Principal
from leasehold.events.position import position_of
from leasehold.events.questions import Question, Reading
from leasehold.events.views import DeviceView
from leasehold.projections import evolve, views
from leasehold.projections.state import State
from leasehold.services.archive.answers import PastAnswerer
from leasehold.services.archive.keeper import build
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.ledger.port import Entry
from leasehold.services.query.decoding import check_question
from tests.archive.records import made
from tests.past import handed
from tests.past import scheduled as scheduled_logs
from tests.past.nodedevs import random_log
from tests.sim.run import bounded
from tests.sim.simulation import Simulation

ASKER = Principal("auditor")
PAGES_MAX = 10_000


class At(NamedTuple):
    """An event, and where it is."""

    position: int
    ns: int
    event: Event


def simulated(seed: int) -> list[bytes]:
    """The records of one simulated run."""
    with bounded():
        simulation = Simulation(seed)
        simulation.run()
    return simulation.log.bodies


def node_devices(seed: int) -> list[bytes]:
    """The records of hosts full of node devices."""
    return random_log(seed).bodies


def handed_over(seed: int) -> list[bytes]:
    """The records of hosts on which devices are handed over and taken back."""
    return handed.random_log(seed).bodies


def scheduled(seed: int) -> list[bytes]:
    """The records of hosts of which schedulers and operators ask all that they can."""
    return scheduled_logs.random_log(seed).bodies


def events_of(bodies: Iterable[bytes]) -> list[At]:
    """All events of a log."""
    found = []
    for sequence, body in enumerate(bodies, 1):
        record = codec.decode_record(body, sequence)
        events = [event for step in record.steps for event in step.events]
        first, ns = position_of(sequence, 0), record.decided_at_ns
        found += [At(first + index, ns, event) for index, event in enumerate(events)]
    return found


def folded(events: list[At], places: Iterable[int]) -> Iterator[tuple[int, State]]:
    """The state of the real core behind each of these positions, in order; one state, which moves on."""
    state, done = State(), 0
    for place in sorted(places):
        while done < len(events) and events[done].position <= place:
            evolve.evolve(state, *events[done])
            done += 1
        yield place, state


def owners_in(state: State) -> list[tuple[str, str, str, str, str]]:
    """Device, lease, holder, principal and state of all that is held or shared."""
    return [
        (
            device,
            f"L{each}",
            state.leases[each].holder,
            state.leases[each].principal,
            "ending" if row.ending else "leased",
        )
        for device, row in sorted(state.devices.items())
        for each in ((row.lease,) if row.lease else row.sharers)  # sorted, as numbers
    ]


def devices_in(state: State) -> list[DeviceView]:
    """All devices as they are shown."""
    return [views.device_view(state, device) for device in sorted(state.devices)]


class Asked:
    """An archive that can be asked, page by page."""

    def __init__(self, ledger: ArchivedLedger, answerer: PastAnswerer) -> None:
        self.ledger = ledger
        self.answerer = answerer

    async def ask(self, question: Question) -> Reading:
        """One answer, as it would be read from the bus."""
        check_question(question)
        return msgspec.json.decode(codec.encode(await self.answerer.answer(question, ASKER)), type=Reading)

    async def all(self, question: Question, rows: str, name: str) -> list[Any]:
        """All rows of an answer; the next page begins behind the last row's `name`."""
        found: list[Any] = []
        for _ in range(PAGES_MAX):
            page = await self.ask(question)
            assert page.outcome == "ok", page
            found += getattr(page, rows)
            if not page.more:
                return found
            question = msgspec.structs.replace(question, after=getattr(found[-1], name))
        raise AssertionError("more pages than there can be")


@asynccontextmanager
async def archived(directory: Path, bodies: Iterable[bytes]) -> AsyncIterator[Asked]:
    """An archive of these records with its models."""
    await made(directory, [Entry(sequence, body) for sequence, body in enumerate(bodies, 1)])
    ledger = ArchivedLedger(directory)
    await build(ledger, directory / "models.sqlite")
    answerer = PastAnswerer(ledger, directory / "models.sqlite", patience_s=60.0)
    try:
        yield Asked(ledger, answerer)
    finally:
        await answerer.close()
        await ledger.close()


def seeds(count: int) -> list[int]:
    """So many seeds, printed."""
    chosen = [random.SystemRandom().randrange(10**6) for _ in range(count)]
    print(f"seeds {chosen}")
    return chosen
