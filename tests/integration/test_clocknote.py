"""The clock's note on disk: carried on over a restart on the same boot, and a new clock wherever it cannot be."""

from pathlib import Path

import pytest

from leasehold.projections.rows import Head
from leasehold.projections.timekeeping import LedgerClock
from leasehold.services.clocknote import ClockKeeper

SECOND = 10**9
NOW_NS = 1_700_000_000 * SECOND
HEAD = Head(ledger_id="l1", decider="w1")


def heard(clock: LedgerClock, server_ns: int, monotonic_ns: int) -> LedgerClock:
    """The clock, having heard the server, from a machine that agrees with it."""
    clock.heard_server(server_ns=server_ns, monotonic_ns=monotonic_ns, wall_ns=server_ns)
    return clock


async def test_carried_on_over_a_restart(tmp_path: Path) -> None:
    """A server that stepped forward while nobody ran is followed slowly, and the clock's age goes on."""
    path = tmp_path / "allocator.clock"
    await ClockKeeper(path, "w1", boot_id="b1").keep(heard(LedgerClock(), NOW_NS, 5 * SECOND), "l1")
    assert path.stat().st_mode & 0o777 == 0o600
    clock = ClockKeeper(path, "w2", boot_id="b1").clock(HEAD, 15 * SECOND)
    heard(clock, NOW_NS + 3_610 * SECOND, 15 * SECOND)
    assert clock.now_ns(15 * SECOND) == NOW_NS + 10 * SECOND + SECOND // 100
    assert clock.age_ms(15 * SECOND) == 10_000


@pytest.mark.parametrize(
    ("boot_id", "head", "monotonic_ns"),
    [
        ("b2", HEAD, 15 * SECOND),
        ("", HEAD, 15 * SECOND),
        ("b1", Head(ledger_id="l2", decider="w1"), 15 * SECOND),
        ("b1", Head(ledger_id="l1", decider="w9"), 15 * SECOND),
        ("b1", HEAD, 4 * SECOND),
    ],
)
async def test_a_new_clock_where_it_cannot_be(tmp_path: Path, boot_id: str, head: Head, monotonic_ns: int) -> None:
    """Another boot or ledger, another decider since, a monotonic clock that is behind: the server's time, anew."""
    path = tmp_path / "allocator.clock"
    await ClockKeeper(path, "w1", boot_id="b1").keep(heard(LedgerClock(), NOW_NS, 5 * SECOND), "l1")
    clock = heard(ClockKeeper(path, "w2", boot_id=boot_id).clock(head, monotonic_ns), NOW_NS + 9, monotonic_ns)
    assert clock.now_ns(monotonic_ns) == NOW_NS + 9
    assert clock.age_ms(monotonic_ns) == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"boot_id": 3}', b"\xff" * 10_000])
def test_a_damaged_note_is_none(tmp_path: Path, body: bytes) -> None:
    """Garbage in the note's place is no clock, and no error."""
    path = tmp_path / "allocator.clock"
    path.write_bytes(body)
    assert ClockKeeper(path, "w1", boot_id="b1").clock(HEAD, SECOND).age_ms(SECOND) == 0


async def test_written_rarely(tmp_path: Path) -> None:
    """A note that is true stays as it is; one that is off by more than a tenth of a second, or an hour old, is not."""
    path = tmp_path / "allocator.clock"
    keeper, clock, written = ClockKeeper(path, "w1", boot_id="b1"), LedgerClock(), []
    for second, step_ns in ((1, 0), (2, 0), (3, -SECOND // 20), (4, -SECOND // 5), (5, -SECOND // 5), (3_700, 0)):
        path.unlink(missing_ok=True)
        await keeper.keep(heard(clock, NOW_NS + second * SECOND + step_ns, second * SECOND), "l1")
        written.append(path.exists())
    assert written == [True, False, False, True, False, True]


async def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and nothing is raised."""
    keeper = ClockKeeper(tmp_path / "gone" / "allocator.clock", "w1", boot_id="b1")
    for second in (1, 2):
        await keeper.keep(heard(LedgerClock(), NOW_NS, second * SECOND), "l1")
    assert caplog.text.count("the clock is not noted") == 1
