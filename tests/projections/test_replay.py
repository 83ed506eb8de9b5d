"""Going through a log again gives the same, to the byte, in any process; what is not the log as it was is found."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leasehold.events import codec
from leasehold.events.errors import CorruptLedgerError, CorruptSnapshotError, UnknownFormatError
from leasehold.events.event_types import DeviceAppeared
from leasehold.events.position import position_of
from leasehold.events.record import Record
from leasehold.projections import evolve
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import FOLD_VERSION, State
from tests.projections.ledger import ledger_with_hosts
from tests.projections.scenario import play

_replace = msgspec.structs.replace


def test_hash_order_does_not_show() -> None:
    """Two processes with different hash seeds write the same records and come to the same state."""
    outputs = []
    for seed in ("1", "4242"):
        ran = subprocess.run(
            [sys.executable, "-m", "tests.projections.scenario"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        outputs.append(ran.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) > 10


def test_snapshots_at_every_record() -> None:
    """A snapshot at any record and the tail behind it come to the same bytes as the whole log."""
    ledger = play()
    whole = encode_state(ledger.state)
    reader = State()
    for sequence, body in enumerate(ledger.bodies, 1):
        evolve.fold(reader, sequence, body)
        other = decode_state(encode_state(reader))
        assert other is not None
        for number in range(sequence + 1, len(ledger.bodies) + 1):
            evolve.fold(other, number, ledger.bodies[number - 1])
        assert encode_state(other) == whole


_INDEXES = (
    "lookup",
    "groups",
    "children",
    "virtual_functions",
    "ending",
    "freeable",
    "refusal_prints",
    "refusal_queue",
)


def _derived(state: State) -> list[Any]:
    expiries = sorted({entry for entry in state.expiries.entries if state.expiries.holds(entry)})
    tables = [getattr(state.indexes, name) for name in _INDEXES]
    return [expiries, *(dict(table) if isinstance(table, dict) else list(table) for table in tables)]


def test_indexes_are_the_same_by_either_way() -> None:
    """What is derived from the rows of a snapshot all at once is what the events have made of it one by one."""
    reader = State()
    used: set[str] = set()
    for sequence, body in enumerate(play().bodies, 1):
        evolve.fold(reader, sequence, body)
        loaded = decode_state(encode_state(reader))
        assert loaded is not None
        assert _derived(loaded) == _derived(reader)
        used |= {name for name in _INDEXES if getattr(reader.indexes, name)}
    assert used == set(_INDEXES) - {"freeable"}, "the scenario leaves nothing that could become free undone"


def test_folding_with_and_without_a_journal() -> None:
    """Whether the changes are being written down makes no difference; taken back, they have never been."""
    plain, noted = State(), State()
    for sequence, body in enumerate(play().bodies, 1):
        before = encode_state(noted), _derived(noted)
        noted.journal.begin()
        evolve.fold(noted, sequence, body)
        noted.roll_back()
        assert (encode_state(noted), _derived(noted)) == before
        noted.journal.begin()
        evolve.fold(noted, sequence, body)
        noted.journal.commit()
        evolve.fold(plain, sequence, body)
        assert encode_state(noted) == encode_state(plain)
        assert _derived(noted) == _derived(plain)


def test_deciding_again() -> None:
    """Every record decided again gives its own events."""
    replay = Replay()
    ledger = play()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None
    assert replay.folded_only == 0
    assert replay.events > len(ledger.bodies)


def test_another_decision_is_found() -> None:
    """A record whose events do not follow from its inputs is shown with both; one of other rules is only folded."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", ttl_ms=60_000)
    record = codec.decode_record(ledger.bodies[-1], len(ledger.bodies))
    (step,) = record.steps
    longer = _replace(step, events=(_replace(step.events[0], ttl_ms=90_000),))
    for rules_version, is_found in ((record.rules_version, True), (99, False)):
        replay = Replay()
        for sequence, body in enumerate(ledger.bodies[:-1], 1):
            assert replay.step(sequence, body) is None
        forged = _replace(record, steps=(longer,), rules_version=rules_version)
        difference = replay.step(len(ledger.bodies), codec.encode(forged))
        assert (difference is not None) == is_found
        if difference is not None:
            assert "90000" in difference.recorded
            assert "60000" in difference.decided
            assert '"lease.v1"' in difference.given
            assert difference.position == position_of(len(ledger.bodies), 0)
            assert str(difference).startswith(f"record {len(ledger.bodies)}, step 0")
        assert replay.folded_only == (0 if is_found else 1)


def test_the_first_event_that_differs_is_named() -> None:
    """Of many events of a step the one that is not the same is shown, and of a long one the place where it is not."""
    ledger = ledger_with_hosts()
    at, body = next((at, body) for at, body in enumerate(ledger.bodies, 1) if body.count(b"device_appeared") > 9)
    record = codec.decode_record(body, at)
    events = list(record.steps[0].events)
    changed = next(index for index in range(3, len(events)) if isinstance(events[index], DeviceAppeared))
    event = events[changed]
    assert isinstance(event, DeviceAppeared)
    attributes = {"a" * 900: "before", "b": "planted"}
    events[changed] = _replace(event, device=_replace(event.device, attributes=attributes))
    forged = _replace(record, steps=(_replace(record.steps[0], events=tuple(events)), *record.steps[1:]))
    replay = Replay()
    for sequence, earlier in enumerate(ledger.bodies[: at - 1], 1):
        assert replay.step(sequence, earlier) is None
    difference = replay.step(at, codec.encode(forged))
    assert difference is not None
    assert (difference.step, difference.position) == (0, position_of(at, changed))
    assert "aaa" in difference.recorded
    assert max(len(difference.recorded), len(difference.decided), len(difference.given)) < 500


@pytest.mark.parametrize(
    "written",
    [
        lambda body: b" " + body,
        lambda body: body[:-1] + b',"zzz":1}',
        lambda body: body.replace(b'"era":0,', b"", 1)[:-1] + b',"era":0}',
    ],
    ids=["blank", "unknown field", "order"],
)
def test_other_bytes_for_the_same_decision_are_found(written: Callable[[bytes], bytes]) -> None:
    """A record that says the same in other bytes than would be written is a difference, although it can be read."""
    bodies = play().bodies
    replay = Replay()
    for sequence, body in enumerate(bodies[:-1], 1):
        assert replay.step(sequence, body) is None
    last = written(bodies[-1])
    assert last != bodies[-1]
    difference = replay.step(len(bodies), last)
    assert difference is not None
    assert difference.step == -1
    assert "how it is written" in str(difference)


Change = Callable[[list[bytes]], None]


def _changed(**fields: Any) -> Change:
    """A change of fields of the third record."""

    def change(bodies: list[bytes]) -> None:
        record: Record = codec.decode_record(bodies[2], 3)
        bodies[2] = codec.encode(_replace(record, **fields))

    return change


def _reencoded(bodies: list[bytes]) -> None:
    bodies[2] = b" " + bodies[2]


def _swapped(bodies: list[bytes]) -> None:
    bodies[2], bodies[3] = bodies[3], bodies[2]


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (_changed(writer="someone"), 4),
        (_changed(decided_at_ns=1), 3),
        (_changed(observed_through=0), 3),
        (_changed(prev="0" * 64), 3),
        (_changed(ledger_id="another"), 3),
        (_changed(steps=()), 3),
        (_changed(format=9), 3),
        (_reencoded, 4),
        (_swapped, 3),
        (lambda bodies: bodies.pop(2), 3),
        (lambda bodies: bodies.insert(2, bodies[1]), 3),
        (lambda bodies: bodies.insert(0, bodies[0]), 2),
        (lambda bodies: bodies.__setitem__(2, b""), 3),
    ],
)
def test_a_log_that_is_not_what_it_was(change: Change, at: int) -> None:
    """A record that is changed, missing, added or out of order stops the reader, who names it or the next."""
    bodies = list(play().bodies)
    change(bodies)
    state = State()
    with pytest.raises(CorruptLedgerError) as caught:
        for sequence, body in enumerate(bodies, 1):
            evolve.fold(state, sequence, body)
    assert caught.value.sequence == at
    assert state.head.sequence == at - 1


def test_sequences_have_no_holes() -> None:
    """A record that belongs elsewhere by its place in the stream is refused."""
    body = play().bodies[0]
    with pytest.raises(CorruptLedgerError, match=r"^record 2: expected record 1"):
        evolve.fold(State(), 2, body)


def test_snapshots_that_are_none() -> None:
    """Broken bytes are an error; a snapshot of another fold is none, so that the log is folded anew."""
    body = encode_state(play().state)
    old, new = (b'"fold_version":%d' % version for version in (FOLD_VERSION, 99))
    assert decode_state(body.replace(old, new)) is None
    for broken in (b"", body[:-1], b"{}", b"\xff", body.replace(b'"hosts"', b'"horses"')):
        with pytest.raises(CorruptSnapshotError):
            decode_state(broken)


def test_a_record_of_a_later_build() -> None:
    """A record that holds an event of an unknown type stops the fold, and is named; nothing of it is taken."""
    bodies = play().bodies
    state = State()
    for sequence, body in enumerate(bodies[:-1], 1):
        evolve.fold(state, sequence, body)
    before = encode_state(state)
    later = bodies[-1].replace(b'"type":"request_refused.v1"', b'"type":"request_refused.v2"')
    later = later.replace(b'"type":"lease_granted.v2"', b'"type":"lease_granted.v9"')
    assert later != bodies[-1]
    with pytest.raises(UnknownFormatError, match=f"^record {len(bodies)}: "):
        evolve.fold(state, len(bodies), later)
    assert encode_state(state) == before
