"""A log that was restored from an archive is another than the one that was read, but read by its era."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from leasehold.events import codec, inputs
from leasehold.events.errors import CorruptLedgerError
from leasehold.projections import snapshots
from leasehold.projections.state import State
from leasehold.services.ledger import port
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore, NotedHead
from leasehold.services.verifying.witnesses import Witness, check_heads
from tests.integration.growing import SECOND_NS, Grower
from tests.integration.test_reader import Log, crash, folded, grow, grown, kept_rows, reading_from, refusal_of


@pytest.fixture(autouse=True)
def _short_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "DOUBT_PAUSE_S", 0.005)


@pytest.fixture
def log() -> Log:
    held = MemoryLog()

    async def opener() -> MemoryLedger:
        return MemoryLedger(held)

    async def empty() -> None:
        held.bodies.clear()
        held._places.clear()

    return Log(opener, empty)


async def restored(log: Log, bodies: list[bytes]) -> Grower:
    """The log holds these records and the one that raises the era."""
    await log.replace(bodies)
    later = Grower(await log.open(), writer="restorer")
    for sequence, body in enumerate(bodies, 1):
        later.sequencer.apply(sequence, body)
    later.bodies = list(bodies)
    later.now_ns = later.state.head.decided_at_ns + SECOND_NS
    era = later.state.head.era + 1
    await later.note(inputs.LedgerRestores(cluster="test", writer="restorer", era=era, reason="wiped"))
    return later


@pytest.mark.parametrize("lost", [0, 1, 7])
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_restored_log_is_read(log: Log, tmp_path: Path, lost: int, is_killed: bool) -> None:
    """With records lost or none: the state is the fold of the new log, no index row tells of what is lost, and the
    head of the new era is noted.
    """
    grower, path = await grown(log), tmp_path / "store"
    if is_killed:
        await crash(log, path, until=len(grower.bodies))
    else:
        async with reading_from(log, path):
            pass
    later = await restored(log, grower.bodies[: len(grower.bodies) - lost])
    for _ in range(2):
        async with reading_from(log, path) as reader:
            assert reader.state.head.era == 1
            assert snapshots.encode_state(reader.state) == folded(later.bodies)[0]
        assert kept_rows(path) == folded(later.bodies)[1]
        head = later.state.head
        async with opened(path) as store:
            assert await store.head() == NotedHead(head.ledger_id, head.sequence, head.chain, era=1)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[FoldStore]:
    store = await FoldStore.open(path)
    try:
        yield store
    finally:
        await store.close()


async def test_a_restored_log_that_has_grown_is_read(log: Log, tmp_path: Path) -> None:
    """Also when it has gone on beyond what was read of the old one."""
    grower, path = await grown(log), tmp_path / "store"
    async with reading_from(log, path):
        noted = len(grower.bodies)
    later = await restored(log, grower.bodies[:-5])
    await later.start()
    while len(later.bodies) < noted + 3:
        await later.pass_time(1)
        await later.note(inputs.DeciderStarts("restorer", "outage"))
    async with reading_from(log, path) as reader:
        assert snapshots.encode_state(reader.state) == folded(later.bodies)[0]
    assert kept_rows(path) == folded(later.bodies)[1]


async def test_building_anew_can_be_broken_off(log: Log, tmp_path: Path) -> None:
    """One that is killed before it has reached the new era begins again: the old head stays until then."""
    grower, path = await grown(log), tmp_path / "store"
    async with reading_from(log, path):
        pass
    later = await restored(log, grower.bodies[:-5])
    async with opened(path) as store:
        reader = LedgerReader(await log.open(), store)
        assert await reader._was_restored(await store.head())
        await store.clear()
        half = State()
        half.set_head(msgspec.structs.replace(later.state.head, sequence=4, chain="four", era=0))
        await store.note(half.head)
        noted = await store.head()
        assert noted is not None
        assert (noted.sequence, noted.era) == (len(grower.bodies), 0)
    async with reading_from(log, path) as reader:
        assert snapshots.encode_state(reader.state) == folded(later.bodies)[0]


async def test_the_old_log_is_refused_behind_the_new_one(log: Log, tmp_path: Path) -> None:
    """Whoever has read the new era does not go back to the one before, however long that is."""
    grower, path = await grown(log), tmp_path / "store"
    await restored(log, grower.bodies[:-5])
    async with reading_from(log, path):
        pass
    await log.replace(grower.bodies)
    assert "was read there before" in str(await refusal_of(log, path))


async def test_another_ledger_of_a_higher_era_is_refused(log: Log, tmp_path: Path) -> None:
    """The era excuses nothing in a log of other origin."""
    await grown(log)
    path = tmp_path / "store"
    async with reading_from(log, path):
        pass
    await log.replace([])
    other = Grower(await log.open(), writer="another")
    await other.start()
    await grow(other, turns=0)
    await restored(log, other.bodies)
    assert "the log ends at" in str(await refusal_of(log, path))


async def test_a_broken_log_of_a_higher_era_is_refused(log: Log, tmp_path: Path) -> None:
    """It is folded from its first record on: one that was changed in it ends reading."""
    grower, path = await grown(log), tmp_path / "store"
    async with reading_from(log, path):
        pass
    later = await restored(log, grower.bodies[:-5])
    record = codec.decode_record(later.bodies[3], 4)
    forged = codec.encode(msgspec.structs.replace(record, writer="somebody"))
    await log.replace([*later.bodies[:3], forged, *later.bodies[4:]])
    async with opened(path) as store:
        reader = LedgerReader(await log.open(), store)
        await reader.start()
        await reader.ended.wait()
        assert isinstance(reader.failure, CorruptLedgerError)
        assert reader.failure.sequence == 5
        await reader.stop()


async def test_heads_of_the_era_before_are_no_obstacle(log: Log) -> None:
    """What was read before a restore does not keep anybody from starting; what was read since still must be there."""
    grower = await grown(log)
    old = _witness(grower, "query.sqlite")
    later = await restored(log, grower.bodies[:-5])
    ledger = await log.open()
    await check_heads(ledger, [old])
    await check_heads(ledger, [old, _witness(later, "allocator.sqlite")])
    await log.replace(later.bodies[:-1])
    with pytest.raises(CorruptLedgerError, match="missing"):
        await check_heads(ledger, [old])
    other = msgspec.structs.replace(old, ledger_id="other")
    await log.replace(later.bodies)
    with pytest.raises(CorruptLedgerError, match="other"):
        await check_heads(ledger, [other])


def _witness(grower: Grower, name: str) -> Witness:
    head = grower.state.head
    return Witness(name=name, ledger_id=head.ledger_id, sequence=head.sequence, chain=head.chain, era=head.era)
