"""What domains were like: answers held against the raw records, these against the hypervisor."""

import asyncio
from typing import Any, Final

from leasehold.events.domains import DomainDescription
from leasehold.events.questions import Moment
from leasehold.events.views import DomainView
from leasehold.services.past import Past
from tests.bench.cluster import HOST
from tests.day.oracle import Domain, RawLog
from tests.day.running import Day

SETTLED_S: Final = 90.0
"""What has gone is believed to have gone only after some looks."""
POLL_S: Final = 0.2
_FIELDS: Final = ("name", "domid", "state", "memory_bytes", "vcpus", "kind")


async def domains_settled(day: Day) -> list[str]:
    """Wait until the log has the domains as they are, which nobody changes any more; what it has otherwise."""
    wanted = {
        f"{HOST}/{key}": (*_told(seen.domain), frozenset((use.device, use.use) for use in seen.uses))
        for key, seen in day.machine.hypervisor.domains.items()
    }
    found: dict[str, tuple[Any, ...]] = {}
    try:
        async with asyncio.timeout(SETTLED_S):
            while found != wanted:
                await asyncio.sleep(POLL_S)
                found = {row.domain: (*_told(row), _uses(row)) for row in await day.client.domains(host=HOST)}
    except TimeoutError:
        wrong = [domain for domain in wanted.keys() | found.keys() if wanted.get(domain) != found.get(domain)]
        return [f"{each}: the log has {found.get(each)}, the hypervisor {wanted.get(each)}" for each in sorted(wrong)]
    return []


async def ask_domains(day: Day, log: RawLog, moments: list[Moment]) -> list[str]:
    """The domains at these moments are those that were there, as they were told of last."""
    problems, past = [], Past(day.client)
    for moment in moments:
        wanted = log.domains_at(moment.position or log.end_at(moment.ns))
        rows = await past.domains(moment).all()
        problems += [
            f"{row.domain} at {moment}: {_shown(row)}, expected {_expected(wanted.get(row.domain))}"
            for row in rows
            if _shown(row) != _expected(wanted.get(row.domain))
        ]
        if len(rows) != len(wanted):
            problems.append(f"domains at {moment}: {len(rows)}, expected {len(wanted)}")
    return problems


def _told(row: DomainDescription | DomainView) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in _FIELDS)


def _uses(row: DomainView) -> frozenset[tuple[str, str]]:
    return frozenset((use.said, use.use) for use in row.uses)


def _shown(row: DomainView) -> tuple[Any, ...]:
    return *_told(row), row.agent, (row.since_position, row.since_ns), _uses(row)


def _expected(row: Domain | None) -> tuple[Any, ...]:
    if row is None:
        return ()
    nothing = {"name": "", "domid": -1, "state": "unknown", "memory_bytes": 0, "vcpus": 0, "kind": ""}
    described = nothing | row.description
    return *(described[name] for name in _FIELDS), row.agent, row.since, row.uses
