"""`restore-ledger`: the archive's log to the byte, and a new era; broken off and run again; and what is refused."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, StoreInUseError, UnavailableError
from leasehold.events.position import position_of
from leasehold.events.subjects import Subjects
from leasehold.projections.appending import Said
from leasehold.projections.replay import Replay
from leasehold.projections.state import State
from leasehold.services import credentials, permissions, restoring, rewriting
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.writer import ArchiveWriter, Limits
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.port import Entry
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.natsserver import NatsServer
from leasehold.services.restoring import NOTE_FILE, Options, Restored, check_finished, restore
from leasehold.services.store import FoldStore
from tests.integration.growing import Grower, pci
from tests.support.servers import connected, server_at

CLUSTER = "test"


@pytest.fixture
async def bodies() -> list[bytes]:
    """A log of some 30 records: hosts, leases, an expiry."""
    grower = Grower(MemoryLedger(MemoryLog()))
    await grower.start()
    for host in ("h1", "h2"):
        await grower.report(host, *(pci(slot) for slot in range(1, 9)))
    for turn in range(12):
        await grower.turn(f"h1/pci/0000:00:{turn % 8 + 1:02x}.0", holder=f"vm{turn}")
    await grower.ask("alice", grower.lease("h1/pci/0000:00:01.0", holder="kept"))
    await grower.ask("bob", grower.lease("h2/pci/0000:00:01.0", holder="short", ttl_ms=1_000))
    await grower.pass_time(70)
    return grower.bodies


async def archived(directory: Path, bodies: list[bytes]) -> Path:
    """An archive with these records, in several segments."""
    writer = ArchiveWriter(directory, CLUSTER, Limits(records_max=10, reserve_bytes=0))
    await writer.lock()
    await writer.load()
    await writer.write([Entry(number, body) for number, body in enumerate(bodies, 1)])
    await writer.close()
    return directory


def silent(_what: str, _done: int, _total: int) -> None:
    """Nobody looks."""


def options(tmp_path: Path, **more: object) -> Options:
    """Into `data`, from `saved`."""
    return Options(archive=tmp_path / "saved", data=tmp_path / "data", **more)  # type: ignore[arg-type]


async def log_of(data: Path) -> list[bytes]:
    """What stands in the log of a data directory that nobody uses."""
    async with server_at(data) as server, connected(server.url) as connection:
        ledger = JetStreamLedger(connection, Subjects(CLUSTER))
        last = await ledger.last_sequence()
        found = [entry.body async for entry in rewriting.entries_of(ledger, last)]
        await ledger.close()
        return found


def check_restored(found: list[bytes], bodies: list[bytes], restored: Restored) -> State:
    """The log holds the archive's bytes and one record more, which raises the era; the whole is decided again."""
    assert found[: len(bodies)] == bodies
    assert len(found) == len(bodies) + 1
    replay = Replay()
    assert not any(replay.step(number, body) for number, body in enumerate(found, 1))
    head = replay.state.head
    assert (head.era, head.chain, head.ledger_id) == (restored.era, restored.chain, restored.ledger_id)
    assert restored.position == position_of(len(found), 0)
    assert restored.through == len(bodies)
    return replay.state


async def test_the_log_is_the_archives(tmp_path: Path, bodies: list[bytes]) -> None:
    """Into nothing: each record to the byte and at its place, then the new era, with its reason; no key is left."""
    await archived(tmp_path / "saved", bodies)
    told: list[str] = []
    restored = await restore(options(tmp_path, reason="the disk died"), lambda what, _done, _total: told.append(what))
    assert (restored.era, restored.lost, restored.was_done) == (1, "", False)
    found = await log_of(tmp_path / "data")
    check_restored(found, bodies, restored)
    (step,) = codec.decode_record(found[-1], len(found)).steps
    (event,) = step.events
    assert isinstance(event, event_types.LedgerRestored)
    assert event.reason == "the disk died"
    assert not (tmp_path / "data" / NOTE_FILE).exists()
    assert not (tmp_path / "data" / credentials.FOLDER).exists()
    check_finished(tmp_path / "data")


async def test_a_log_with_records_is_left_alone(tmp_path: Path, bodies: list[bytes]) -> None:
    """What is there is not touched, not even the log that was just restored."""
    await archived(tmp_path / "saved", bodies)
    restored = await restore(options(tmp_path), silent)
    with pytest.raises(InvalidInputError, match=f"holds {len(bodies) + 1} records"):
        await restore(options(tmp_path), silent)
    check_restored(await log_of(tmp_path / "data"), bodies, restored)


class _EndedError(Exception):
    """As if it was killed here."""


@pytest.mark.parametrize("stage", ["checking", "writing", "comparing"])
@pytest.mark.parametrize("part", [0.2, 1.0])
async def test_broken_off_and_run_again(
    tmp_path: Path, bodies: list[bytes], monkeypatch: pytest.MonkeyPatch, stage: str, part: float
) -> None:
    """Wherever it was ended, it goes on when it is run again; until then nobody may begin to work on the log."""
    for module in (restoring, rewriting):
        monkeypatch.setattr(module, "YIELD_EVERY", 1)
    await archived(tmp_path / "saved", bodies)

    def end(what: str, done: int, total: int) -> None:
        if what == stage and done >= part * total:
            raise _EndedError

    with pytest.raises(_EndedError):
        await restore(options(tmp_path), end)
    if stage != "checking":
        with pytest.raises(InvalidInputError, match="was not finished"):
            check_finished(tmp_path / "data")
    restored = await restore(options(tmp_path), silent)
    check_restored(await log_of(tmp_path / "data"), bodies, restored)
    check_finished(tmp_path / "data")


async def test_ended_before_it_could_say_so(
    tmp_path: Path, bodies: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the era begun and the note still there, running it again begins no further one."""
    await archived(tmp_path / "saved", bodies)
    monkeypatch.setattr(Path, "unlink", _fail_to_unlink(Path.unlink))
    with pytest.raises(_EndedError):
        await restore(options(tmp_path), silent)
    monkeypatch.undo()
    assert (tmp_path / "data" / NOTE_FILE).exists()
    restored = await restore(options(tmp_path), silent)
    assert restored.was_done
    check_restored(await log_of(tmp_path / "data"), bodies, restored)


def _fail_to_unlink(unlink: Callable[..., None]) -> Callable[..., None]:
    def failing(path: Path, missing_ok: bool = False) -> None:
        if path.name == NOTE_FILE:
            raise _EndedError
        unlink(path, missing_ok=missing_ok)

    return failing


async def test_another_archive_does_not_go_on(
    tmp_path: Path, bodies: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that was begun is gone on with from the same archive only."""
    monkeypatch.setattr(rewriting, "YIELD_EVERY", 1)
    await archived(tmp_path / "saved", bodies)
    await archived(tmp_path / "shorter", bodies[:-3])

    def end(what: str, _done: int, _total: int) -> None:
        if what == "writing":
            raise _EndedError

    with pytest.raises(_EndedError):
        await restore(options(tmp_path), end)
    shorter = msgspec.structs.replace(options(tmp_path), archive=tmp_path / "shorter")
    with pytest.raises(InvalidInputError, match="another archive was being restored"):
        await restore(shorter, silent)
    restored = await restore(options(tmp_path), silent)
    check_restored(await log_of(tmp_path / "data"), bodies, restored)


def _changed(body: bytes) -> bytes:
    record = codec.decode_record(body, 1)
    return codec.encode(msgspec.structs.replace(record, decided_at_ns=record.decided_at_ns + 1))


def _edit(saved: Path, sql: str, *parameters: object, segment: int = 1) -> None:
    """Change records 11 to 20 (or of another segment) behind the archive's back."""
    path = sorted(saved.glob("*-*.sqlite"))[segment]
    path.chmod(0o600)
    database = sqlite3.connect(path)
    try:
        with database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
            database.execute(sql, parameters)
    finally:
        database.close()


@pytest.mark.parametrize("damage", ["changed", "missing", "decided otherwise"])
async def test_an_archive_that_is_not_sound_is_not_restored(tmp_path: Path, bodies: list[bytes], damage: str) -> None:
    """A record that was changed, is missing, or does not follow from its inputs is named, and nothing is written."""
    if damage == "decided otherwise":
        at = next(number for number, body in enumerate(bodies, 1) if b'"vm7"' in body)
        forged = bodies[at - 1].replace(b'"ttl_ms":60000,"type":"lease_g', b'"ttl_ms":70000,"type":"lease_g')
        assert forged != bodies[at - 1]
        await archived(tmp_path / "saved", [*bodies[: at - 1], forged])
    else:
        await archived(tmp_path / "saved", bodies)
        at = 15
        if damage == "changed":
            _edit(tmp_path / "saved", "UPDATE records SET body = ? WHERE sequence = ?", _changed(bodies[at - 1]), at)
        else:
            _edit(tmp_path / "saved", "DELETE FROM records WHERE sequence = ?", at)
    with pytest.raises(CorruptLedgerError) as caught:
        await restore(options(tmp_path), silent)
    assert caught.value.sequence in (at, at + 1)
    assert not (tmp_path / "data" / NOTE_FILE).exists()
    with pytest.raises(CorruptLedgerError, match="no stream"):
        await log_of(tmp_path / "data")


async def test_a_changed_last_record_is_found_without_the_note(tmp_path: Path, bodies: list[bytes]) -> None:
    """Nothing follows the last record, and what it says may be decided a moment later, too: only the hash that is kept
    beside it tells of the change.
    """
    saved = await archived(tmp_path / "saved", bodies)
    (saved / "head.json").unlink()
    sql = "UPDATE records SET body = ? WHERE sequence = ?"
    _edit(saved, sql, _changed(bodies[-1]), len(bodies), segment=-1)
    with pytest.raises(CorruptLedgerError, match=f"record {len(bodies)}: its hash is"):
        await restore(options(tmp_path), silent)


async def noted(path: Path, bodies: list[bytes], *, era: int = 0) -> None:
    """A service had read these records."""
    state = State()
    replay = Replay(state)
    for number, body in enumerate(bodies, 1):
        replay.step(number, body)
    store = await FoldStore.open(path)
    await store.note(msgspec.structs.replace(state.head, era=era))
    await store.close()


async def test_what_would_be_lost_is_told_first(tmp_path: Path, bodies: list[bytes]) -> None:
    """Where somebody had read further than the archive goes: how many records are lost, and nothing is done; unless
    that is accepted, which then stands in the log.
    """
    await archived(tmp_path / "saved", bodies[:-3])
    (tmp_path / "data").mkdir()
    await noted(tmp_path / "data" / "allocator.sqlite", bodies[:-2])
    await noted(tmp_path / "data" / "query.sqlite", bodies)
    with pytest.raises(InvalidInputError, match=r"lost would be 3 records .*query.sqlite.*--accept-loss"):
        await restore(options(tmp_path), silent)
    assert not (tmp_path / "data" / NOTE_FILE).exists()
    restored = await restore(options(tmp_path, accept_loss=True), silent)
    assert "3 records" in restored.lost
    found = await log_of(tmp_path / "data")
    check_restored(found, bodies[:-3], restored)
    assert b"lost: 3 records" in found[-1]


async def test_an_archive_here_that_goes_further_is_told(tmp_path: Path, bodies: list[bytes]) -> None:
    """Of two archives the shorter one was named: that of the data directory is pointed at."""
    await archived(tmp_path / "saved", bodies[:-3])
    await archived(tmp_path / "data" / "archive", bodies)
    with pytest.raises(InvalidInputError, match=r"3 records .*data/archive"):
        await restore(options(tmp_path), silent)


async def test_an_archive_that_lost_its_end_is_told(tmp_path: Path, bodies: list[bytes]) -> None:
    """The archive's own note says that it went further."""
    saved = await archived(tmp_path / "saved", bodies)
    max(saved.glob("*-*.sqlite")).unlink()
    with pytest.raises(InvalidInputError, match=r"lost would be [1-9]"):
        await restore(options(tmp_path), silent)


async def test_an_archive_of_another_log_is_refused(tmp_path: Path, bodies: list[bytes]) -> None:
    """The services here had read other records: that is not this log's archive, whatever is accepted."""
    await archived(tmp_path / "saved", bodies)
    (tmp_path / "data").mkdir()
    await noted(tmp_path / "data" / "query.sqlite", [*bodies[:9], _changed(bodies[9])])
    with pytest.raises(CorruptLedgerError, match=r"record 10: the archive is not of the log that query.sqlite knows"):
        await restore(options(tmp_path, accept_loss=True), silent)


async def test_the_new_era_is_above_all_that_are_known(tmp_path: Path, bodies: list[bytes]) -> None:
    """An archive from before an earlier restore: its era comes not again, nor does one that the operator knows of."""
    await archived(tmp_path / "saved", bodies)
    (tmp_path / "data").mkdir()
    await noted(tmp_path / "data" / "query.sqlite", bodies[:-2], era=2)
    with pytest.raises(InvalidInputError, match="what came since era 0"):
        await restore(options(tmp_path), silent)
    restored = await restore(options(tmp_path, accept_loss=True), silent)
    assert restored.era == 3
    check_restored(await log_of(tmp_path / "data"), bodies, restored)
    elsewhere = msgspec.structs.replace(options(tmp_path, era=9), data=tmp_path / "elsewhere")
    assert (await restore(elsewhere, silent)).era == 9


async def test_nobody_may_be_at_work(tmp_path: Path, bodies: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """While a server has the store, or a service its file, nothing is done."""
    for waits in (FoldStore.open, NatsServer.__init__):
        defaults: Any = getattr(waits, "__func__", waits).__kwdefaults__
        monkeypatch.setitem(defaults, "lock_wait_s", 0.05)
    await archived(tmp_path / "saved", bodies)
    async with server_at(tmp_path / "data"):
        with pytest.raises(StoreInUseError, match="in use"):
            await restore(options(tmp_path), silent)
    store = await FoldStore.open(tmp_path / "data" / "query.sqlite")
    try:
        with pytest.raises(StoreInUseError, match=r"query\.sqlite is in use"):
            await restore(options(tmp_path), silent)
    finally:
        await store.close()
    assert not (tmp_path / "data" / NOTE_FILE).exists()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"archive": Path("/nowhere")}, "archive"),
        ({"archive": Path("/proc/self/fd")}, "archive"),
        ({"nats": "nats://127.0.0.1:1"}, "nats"),
        ({"reason": ""}, "reason"),
        ({"reason": "a\nb"}, "reason"),
        ({"reason": "x" * 10_000}, "reason"),
        ({"era": 64}, "era"),
    ],
)
async def test_bad_input_names_its_field(
    tmp_path: Path, bodies: list[bytes], wrong: dict[str, object], field: str
) -> None:
    """What cannot be taken is said with its field, before anything is done."""
    await archived(tmp_path / "saved", bodies)
    with pytest.raises(InvalidInputError) as caught:
        await restore(msgspec.structs.replace(options(tmp_path), **wrong), silent)
    assert caught.value.field == field
    assert not (tmp_path / "data" / "jetstream").exists()


async def test_another_cluster_is_refused(tmp_path: Path, bodies: list[bytes]) -> None:
    """The keys that lie in the data directory are another cluster's."""
    await archived(tmp_path / "saved", bodies)
    (tmp_path / "data").mkdir()
    credentials.ensure_own(tmp_path / "data", cluster="other", host="h1", operator="me")
    with pytest.raises(InvalidInputError, match="'other'"):
        await restore(options(tmp_path), silent)


async def test_an_archive_that_was_restored_is_restored_again(tmp_path: Path, bodies: list[bytes]) -> None:
    """The restored log is archived and restored like any other, in the era after."""
    await archived(tmp_path / "saved", bodies)
    first = await restore(options(tmp_path), silent)
    found = await log_of(tmp_path / "data")
    await archived(tmp_path / "again", found)
    again = msgspec.structs.replace(options(tmp_path), archive=tmp_path / "again", data=tmp_path / "other")
    second = await restore(again, silent)
    assert (first.era, second.era) == (1, 2)
    state = check_restored(await log_of(tmp_path / "other"), found, second)
    assert all(row.floor >> 47 == 2 for row in state.devices.values())


async def test_into_servers_that_run(tmp_path: Path, bodies: list[bytes]) -> None:
    """With the keys of a keeper and an allocator, into servers that are not ours; the note lies beside the keys."""
    await archived(tmp_path / "saved", bodies)
    data = tmp_path / "servers"
    data.mkdir()
    register = credentials.ensure_own(data, cluster=CLUSTER, host="h1", operator="me")
    keys = data / credentials.FOLDER
    async with NatsServer(
        data, users=permissions.render(register.users, CLUSTER), sync_always=False,
        probe=credentials.read_credential(keys / "keeper.json"),
    ) as server:  # fmt: skip
        chosen = options(tmp_path, nats=server.url, credentials=str(keys))
        restored = await restore(chosen, silent)
        with pytest.raises(InvalidInputError, match="holds"):
            await restore(chosen, silent)
    check_restored(await log_of(data), bodies, restored)
    assert not (keys / NOTE_FILE).exists()
    (keys / NOTE_FILE).write_text("{}")
    with pytest.raises(InvalidInputError, match="not finished"):
        check_finished(tmp_path / "data", str(keys))


class _Troubled(MemoryLedger):
    """A log that loses some appends, some answers, and sometimes says nothing at all."""

    def __init__(self, log: MemoryLog, faults: list[str]) -> None:
        super().__init__(log)
        self._faults = faults

    async def append(self, expected: int, body: bytes, *, timeout_s: float) -> tuple[Said, int]:
        fault = self._faults.pop() if self._faults else ""
        if fault == "lost":
            await asyncio.sleep(0)
            return Said.NOTHING, 0
        said = await super().append(expected, body, timeout_s=timeout_s)
        return (Said.NOTHING, 0) if fault == "unanswered" else said


async def test_appends_that_fail_are_made_again(bodies: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes of single appends, the log ends up with each record once, at its place."""
    monkeypatch.setattr(rewriting, "PAUSE_S", 0)
    source, target = MemoryLog(), MemoryLog()
    source.bodies.extend(bodies)
    faults = ["", "lost", "", "unanswered", "", "", "lost", "lost", "", "unanswered", "unanswered"] * 2
    archive, ledger = MemoryLedger(source), _Troubled(target, faults)
    await rewriting.write(ledger, archive, len(bodies), silent)
    await rewriting.compare(ledger, archive, len(bodies), silent)
    assert target.bodies == bodies


async def test_a_server_that_takes_nothing_is_given_up(bodies: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried a few times and then said; nothing is tried for ever, and no round goes on behind a failure."""
    monkeypatch.setattr(rewriting, "PAUSE_S", 0)
    monkeypatch.setattr(rewriting, "IN_FLIGHT_MAX", 2)
    source = MemoryLog()
    source.bodies.extend(bodies)
    faults = ["lost"] * 10_000
    ledger = _Troubled(MemoryLog(), faults)
    with pytest.raises(UnavailableError, match="record 1 is not taken"):
        await rewriting.write(ledger, MemoryLedger(source), len(bodies), silent)
    assert 10_000 - len(faults) <= 3 * rewriting.ROUNDS_MAX


@pytest.mark.parametrize("at", [1, 7, 30])
async def test_another_writer_is_noticed(bodies: list[bytes], at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that somebody else has put between ours is found when the log is compared, and named."""
    monkeypatch.setattr(rewriting, "PAUSE_S", 0)
    source, target = MemoryLog(), MemoryLog()
    source.bodies.extend(bodies)
    foreign = Grower(MemoryLedger(MemoryLog()), writer="foreign")
    await foreign.note(inputs.DeciderStarts("foreign", "start"))
    ledger = MemoryLedger(target)

    def put(_what: str, done: int, _total: int) -> None:
        if done == at:
            target.append(foreign.bodies[0])

    monkeypatch.setattr(rewriting, "YIELD_EVERY", 1)
    monkeypatch.setattr(rewriting, "IN_FLIGHT_MAX", 1)
    await rewriting.write(ledger, MemoryLedger(source), len(bodies), put)
    with pytest.raises(CorruptLedgerError, match="somebody else") as caught:
        await rewriting.compare(ledger, MemoryLedger(source), len(bodies), silent)
    assert 1 <= caught.value.sequence <= at + 1


async def test_streams_are_made_as_ever(tmp_path: Path, bodies: list[bytes]) -> None:
    """The restored log's streams are those that `up` accepts."""
    await archived(tmp_path / "saved", bodies)
    await restore(options(tmp_path), silent)
    async with server_at(tmp_path / "data") as server, connected(server.url) as connection:
        await ensure_streams(connection, Subjects(CLUSTER))


async def test_the_archive_is_only_read(tmp_path: Path, bodies: list[bytes]) -> None:
    """Not a byte of its files changes."""
    saved = await archived(tmp_path / "saved", bodies)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in saved.iterdir()}
    await restore(options(tmp_path), silent)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert await ArchivedLedger(saved).last_sequence() == len(bodies)
