"""Logs that earlier builds have written: read with today's events, decided again, and gone on with.

The files under `tests/golden/logs` are records as they stood in a log, one a line, and facts that the build which wrote
them had folded: who held what. `…-scenario` were made by `tests/projections/scenario.py`, `…-sim` by a run of the
simulator: `rules2-…` by rules 2, `rules3-…` by rules 3 before agents said how they know and hosts were given orders.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import pytest

from leasehold.events import codec, event_types
from leasehold.events.errors import UnknownFormatError
from leasehold.events.identities import Principal
from leasehold.events.record import RULES_VERSION, Record
from leasehold.projections import evolve
from leasehold.projections.replay import Replay
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from tests.golden.words import FOLDER
from tests.projections.ledger import SECOND, Ledger
from tests.sim.run import bounded

LOGS = ["rules2-scenario", "rules2-sim"]
LATER_LOGS = ["rules3-scenario", "rules3-sim"]


def bodies_of(name: str) -> list[bytes]:
    """The records of a log that is kept."""
    return (FOLDER / "logs" / f"{name}.jsonl").read_bytes().splitlines()


def _bounds(name: str) -> AbstractContextManager[None]:
    """The simulator has smaller bounds, by which it was decided."""
    return bounded() if name.endswith("-sim") else nullcontext()


@pytest.mark.parametrize("name", [*LOGS, *LATER_LOGS])
def test_old_logs_are_decided_again(name: str) -> None:
    """Every record of an old log is decided again, none is only folded, and the state is what it was.

    Those of today's rules come out to the byte.
    """
    facts = msgspec.json.decode((FOLDER / "logs" / f"{name}.facts.json").read_bytes())
    replay = Replay()
    with _bounds(name):
        for sequence, body in enumerate(bodies_of(name), 1):
            assert replay.step(sequence, body) is None
    state = replay.state
    assert replay.folded_only == 0
    assert (state.head.sequence, state.head.chain) == (facts["sequence"], facts["chain"])
    assert {device: [row.lease, row.floor] for device, row in state.devices.items()} == facts["devices"]
    leases = {str(lease): [row.token, row.principal, row.ended] for lease, row in state.leases.items()}
    assert leases == facts["leases"]


def _grants(records: list[Record]) -> list[event_types.LeaseGranted]:
    events = [event for record in records for step in record.steps for event in step.events]
    return [event for event in events if isinstance(event, event_types.LeaseGranted)]


@pytest.mark.parametrize("name", LOGS)
def test_old_grants_name_their_tenant(name: str) -> None:
    """A grant of version 1 is read as one of version 2, with the tenant that its principal's name says."""
    bodies = bodies_of(name)
    assert any(b'"lease_granted.v1"' in body for body in bodies)
    assert not any(b'"lease_granted.v2"' in body for body in bodies)
    grants = _grants([codec.decode_record(body, number) for number, body in enumerate(bodies, 1)])
    assert grants
    assert all(grant.tenant == grant.request.principal for grant in grants)
    renamed = [body.replace(b'"principal":"b"', b'"principal":"b@lab"') for body in bodies]
    grants = _grants([codec.decode_record(body, number) for number, body in enumerate(renamed, 1)])
    assert {grant.tenant for grant in grants if grant.request.principal == "b@lab"} == {Principal("lab")}


def test_another_decision_in_an_old_log_is_found() -> None:
    """A grant of an old log that says something else than follows from its request is named."""
    bodies = bodies_of("rules2-scenario")
    at = next(number for number, body in enumerate(bodies) if b'"lease_granted.v1"' in body)
    replay = Replay()
    for sequence, body in enumerate(bodies[:at], 1):
        assert replay.step(sequence, body) is None
    old, new = (b'"ttl_ms":%d,"type":"lease_granted.v1"' % ttl_ms for ttl_ms in (60_000, 90_000))
    forged = bodies[at].replace(old, new)
    assert forged != bodies[at]
    difference = replay.step(at + 1, forged)
    assert difference is not None
    assert "90000" in difference.recorded


def test_old_events_stand_in_old_records_only() -> None:
    """A record of today's rules with an event of an older version is nothing that was ever written."""
    body = next(body for body in bodies_of("rules2-scenario") if b'"lease_granted.v1"' in body)
    newer = body.replace(b'"rules_version":2', b'"rules_version":%d' % RULES_VERSION)
    assert newer != body
    with pytest.raises(UnknownFormatError, match=r"^record 7: "):
        codec.decode_record(newer, 7)


def test_an_old_log_goes_on() -> None:
    """Behind records of older rules new ones are written; leases granted before are renewed and released as ever."""
    ledger = Ledger("later")
    ledger._ids = 1_000
    state = State()
    for sequence, body in enumerate(bodies_of("rules2-scenario"), 1):
        if len(state.leases) == 2:
            break
        evolve.fold(state, sequence, body)
        ledger.bodies.append(body)
    ledger.sequencer = Sequencer(state, cluster="lab", writer="later")
    ledger.now_ns = state.head.decided_at_ns + SECOND
    living = [(lease, row.principal) for lease, row in state.leases.items() if not row.ended]
    assert len(living) == 2
    for lease, principal in living:
        assert ledger.renew(lease, principal).outcome == "renewed"
        assert ledger.release(lease, principal).outcome == "released"
    replay = Replay()
    found: list[Any] = [replay.step(sequence, body) for sequence, body in enumerate(ledger.bodies, 1)]
    assert not any(found)
    assert replay.folded_only == 0
