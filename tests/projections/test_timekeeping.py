"""Clocks of several allocators and of new ones: what bounds them, and which grace follows."""

from unittest.mock import patch

import pytest

from leasehold.events import inputs, limits
from leasehold.projections.decide import decide
from leasehold.projections.timekeeping import LedgerClock
from tests.projections.ledger import SECOND, Ledger, ledger_with_hosts

NOW_NS = 1_700_000_000 * SECOND


def clock_at(server_ns: int, monotonic_ns: int) -> LedgerClock:
    """A clock that has just heard the server."""
    clock = LedgerClock()
    clock.heard_server(server_ns=server_ns, monotonic_ns=monotonic_ns, wall_ns=server_ns)
    return clock


@pytest.mark.parametrize(
    ("ahead_ns", "goes_back"), [(3_600 * SECOND, True), (SECOND // 5, True), (SECOND // 20, False)]
)
def test_a_clock_ahead_of_the_decider_goes_back(ahead_ns: int, goes_back: bool) -> None:
    """A record that arrives while we listen was decided just now: ours is the wrong clock."""
    clock = clock_at(NOW_NS + ahead_ns, 0)
    clock.heard_record(decided_at_ns=NOW_NS, monotonic_ns=SECOND // 100)
    assert clock.now_ns(SECOND // 100) == (NOW_NS if goes_back else NOW_NS + ahead_ns + SECOND // 100)


def test_a_record_found_after_a_silence_tells_no_time() -> None:
    """It may be of any age: the clock stays, but counts as new."""
    clock = clock_at(NOW_NS, 0)
    clock.heard_server(server_ns=NOW_NS + 90 * SECOND, monotonic_ns=90 * SECOND, wall_ns=NOW_NS + 90 * SECOND)
    assert clock.age_ms(90 * SECOND) == 90_000
    clock.heard_record(decided_at_ns=NOW_NS + SECOND, monotonic_ns=90 * SECOND)
    assert clock.now_ns(90 * SECOND) == NOW_NS + 90 * SECOND
    assert clock.age_ms(90 * SECOND) == 0


def test_a_step_back_and_forth_costs_nothing() -> None:
    """A clock that lags behind server and log alike goes on where the log stands."""
    clock = clock_at(NOW_NS, 0)
    for server_ns, at_ns in ((NOW_NS - 3_600 * SECOND, SECOND), (NOW_NS + 2 * SECOND, 2 * SECOND)):
        clock.heard_server(server_ns=server_ns, monotonic_ns=at_ns, wall_ns=server_ns, log_ns=NOW_NS)
    assert clock.now_ns(2 * SECOND) == NOW_NS


def _until_ns(ledger: Ledger, age_ms: int | None, now_ns: int) -> int:
    events = decide(ledger.state, inputs.DeciderStarts("w", "start", age_ms), now_ns)
    assert events is not None
    return events[0].until_ns  # type: ignore[union-attr]


@pytest.mark.parametrize(("ttl_ms", "age_ms", "grace_ms"), [
    (10_000, 0, 30_000),
    (600_000, 0, 600_000),
    (600_000, 100_000, 500_000),
    (600_000, 590_000, 30_000),
    (600_000, None, 30_000),
    (limits.LEASE_TTL_MS_MAX, 0, limits.NEW_CLOCK_GRACE_MS_MAX),
])  # fmt: skip
def test_a_new_clock_gives_each_lease_its_whole_time(ttl_ms: int, age_ms: int | None, grace_ms: int) -> None:
    """The grace lasts until the clock is as old as the longest time to live; one that is old enough adds nothing."""
    ledger = ledger_with_hosts()
    ledger.lease("01:00.0", ttl_ms=ttl_ms)
    now_ns = ledger.state.head.grace_until_ns + SECOND
    assert _until_ns(ledger, age_ms, now_ns) == now_ns + grace_ms * 1_000_000


def test_no_grace_is_cut_short() -> None:
    """Who takes over from a decider with a new clock leaves it its longer grace."""
    ledger = ledger_with_hosts()
    until_ns = ledger.state.head.grace_until_ns
    with patch.object(limits, "GRACE_MS", 1):
        assert _until_ns(ledger, None, ledger.state.head.decided_at_ns) == until_ns
