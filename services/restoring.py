"""Writing a lost ledger back from its archive: `leasehold restore-ledger`.

The archive is checked first, chain and decisions. Its records are written into an empty LEDGER, each byte and each
sequence as it was, and all of them are read back. Then one more is appended, which raises the era: from then on it is
the ledger, and every token that was given out before is dead (docs/adr/0014).

A note in the data directory (or beside the keys) says that a restore was begun. It may be ended at any time: running it
again goes on where it was. Nobody may begin to work on a ledger that is half restored, so `up` looks for the note.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import codec, event_types, inputs, limits
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, StorageError, UnavailableError
from leasehold.events.position import position_of
from leasehold.events.record import chain_hash
from leasehold.events.subjects import LEDGER_STREAM, Subjects
from leasehold.projections.appending import Won
from leasehold.projections.replay import Replay
from leasehold.projections.rows import Head
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from leasehold.services import credentials, home, permissions
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.credentials import Credential, new_credential, own_credential
from leasehold.services.ledger import api
from leasehold.services.ledger.appends import append_certainly
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.natsserver import NatsServer
from leasehold.services.rewriting import YIELD_EVERY, Progress, compare, entries_of, write
from leasehold.services.verifying.witnesses import Witness, heads_in

NOTE_FILE: Final = "restoring.json"
ARCHIVE_FOLDER: Final = "archive"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for.

    `archive`: the directory of the archive; `data`: the directory whose server keeps the log; or `nats` (URLs with
    commas between them) and `credentials` (a directory with `keeper.json` and `allocator.json`) of running servers;
    `replicas`: on how many of them; `era`: the lowest that may begin, where some were lost that nobody here knows of.
    """

    archive: Path
    data: Path
    nats: str = ""
    credentials: str = ""
    replicas: int = 1
    reason: str = "the log was lost"
    era: int = 0
    accept_loss: bool = False


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended. `lost`: what is known to be missing behind record `through`, in words; empty: nothing is."""

    ledger_id: str
    cluster: str
    era: int
    through: int
    position: int
    """Of the event that tells of the restore."""
    chain: str
    lost: str
    was_done: bool
    """An earlier run had done it all, and was ended before it could say so."""


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is being restored."""

    ledger_id: str
    through: int
    chain: str


class _Bus(msgspec.Struct, frozen=True):
    """The log that is written, through one connection each for those who may make it and write to it."""

    keeper: Connection
    writer: Connection
    subjects: Subjects
    ledger: JetStreamLedger


async def restore(options: Options, progress: Progress) -> Restored:
    """Restore the ledger.

    Raises:
        CorruptLedgerError: the archive is not sound, or not of the log that was read here; nothing is written.
        InvalidInputError: there is no archive, the log is not empty, or records would be lost, and that was not
            accepted.
        StoreInUseError: somebody works in the data directory.
        UnavailableError, StorageError: it could not be finished; running it again goes on.
    """
    _check(options)
    archive = ArchivedLedger(options.archive)
    if not await archive.last_sequence():
        raise InvalidInputError(f"{options.archive} holds no records", field="archive")
    cluster = await _cluster_of(archive)
    async with _bus(options, cluster, sync_always=False) as bus:
        last = await _last_of(bus)
        if last:
            _check_begun(options, last)
        witnesses = await _witnesses(options)
        replay = await _checked(archive, witnesses, progress)
        era, lost = _next_era(options, witnesses, replay.state.head)
        if last <= replay.state.head.sequence:
            _write_note(options, replay.state.head)
            await ensure_streams(bus.keeper, bus.subjects, replicas=options.replicas)
            await write(bus.ledger, archive, replay.state.head.sequence, progress)
    if not options.nats:
        await asyncio.to_thread(_sync, options.data / "jetstream")
    async with _bus(options, cluster, sync_always=True) as bus:
        await compare(bus.ledger, archive, replay.state.head.sequence, progress)
        restored = await _begin_era(bus, replay.state, options, era, lost)
    _note_path(options.data, options.credentials).unlink(missing_ok=True)
    return restored


def check_finished(data: Path, keys: str = "") -> None:
    """Whether no restore was begun here that has not been finished; to be asked before anybody works on the log.

    Raises:
        InvalidInputError: one was.
    """
    path = _note_path(data, keys)
    if path.exists():
        raise InvalidInputError(
            f"{path} says that a restore of the ledger was begun, and was not finished: run `leasehold restore-ledger` "
            "again",
            field="data",
        )


def _note_path(data: Path, keys: str) -> Path:
    return (Path(keys) if keys else data) / NOTE_FILE


def _write_note(options: Options, head: Head) -> None:
    path = _note_path(options.data, options.credentials)
    note = _Note(ledger_id=head.ledger_id, through=head.sequence, chain=head.chain)
    if path.exists():
        try:
            begun = msgspec.json.decode(path.read_bytes(), type=_Note)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageError(f"{path} cannot be read ({error})") from error
        if begun != note:
            raise InvalidInputError(
                f"another archive was being restored here: it ends at record {begun.through} of {begun.ledger_id}; "
                "go on with that one, or begin with an empty log",
                field="archive",
            )
        return
    try:
        home.write_private(path, msgspec.json.format(msgspec.json.encode(note)) + b"\n")
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror})") from error


def _check(options: Options) -> None:
    """Raises InvalidInputError."""
    if not options.archive.is_dir():
        raise InvalidInputError(f"{options.archive} is no directory; an archive is one", field="archive")
    if bool(options.nats) != bool(options.credentials):
        raise InvalidInputError("a server that is not ours is reached with --nats and --credentials DIR", field="nats")
    if not options.reason.isprintable() or not 1 <= len(options.reason) <= limits.REASON_CHARS_MAX // 2:
        said = f"is a printable text of 1 to {limits.REASON_CHARS_MAX // 2} characters"
        raise InvalidInputError(said, field="reason")
    if not 0 <= options.era <= limits.ERA_MAX:
        raise InvalidInputError(f"0 to {limits.ERA_MAX} are possible", field="era")


def _check_begun(options: Options, last: int) -> None:
    """Raises InvalidInputError: what stands in the log does not come from us."""
    if not _note_path(options.data, options.credentials).exists():
        where = "it" if options.nats else f"{options.data / 'jetstream'}"
        raise InvalidInputError(
            f"the log holds {last} records; a ledger is restored into an empty one (move {where} away)", field="log"
        )


# --- what is restored, and what of it is lost -----------------------------------------------------------------------


async def _cluster_of(archive: ArchivedLedger) -> str:
    body = await archive.read(1)
    record = codec.decode_record(body or b"", 1)
    for step in record.steps:
        for event in step.events:
            if isinstance(event, event_types.LedgerStarted):
                return event.cluster
    raise CorruptLedgerError("it begins no ledger", sequence=1)


async def _witnesses(options: Options) -> list[Witness]:
    """What is known here of how far the log went: what services had read of it, and archives had of it."""
    found = await heads_in(options.data) if options.data.is_dir() else []
    for directory in dict.fromkeys((options.archive, options.data / ARCHIVE_FOLDER)):
        archive = ArchivedLedger(directory)
        noted = archive.noted_head() if directory.is_dir() else None
        if noted is not None:
            found.append(Witness(name=str(directory), **msgspec.structs.asdict(noted)))
        if directory != options.archive and directory.is_dir():
            view = await archive.view()
            at = {name: getattr(view, name) for name in ("ledger_id", "era", "sequence", "chain")}
            found.append(Witness(name=str(directory), **at))
    return found


async def _checked(archive: ArchivedLedger, witnesses: list[Witness], progress: Progress) -> Replay:
    """Go through the archive, and see that it is of the log that the witnesses have read.

    Raises:
        CorruptLedgerError: a record is not what it was, or not what follows from its inputs.
    """
    replay, end = Replay(), await archive.end()
    assert end is not None
    last = end.sequence
    chains: dict[int, str] = {}
    wanted = {witness.sequence for witness in witnesses}
    async with contextlib.aclosing(entries_of(archive, last)) as entries:
        async for entry in entries:
            difference = replay.step(entry.sequence, entry.body)
            if difference is not None:
                said = f"deciding it again gives something else: {difference}"
                raise CorruptLedgerError(said, sequence=entry.sequence)
            if entry.sequence in wanted:
                chains[entry.sequence] = replay.state.head.chain
            if entry.sequence % YIELD_EVERY == 0:
                progress("checking", entry.sequence, last)
                await asyncio.sleep(0)
    head = replay.state.head
    # No record behind the last one vouches for it: only the hash that was kept with it does.
    if head.chain != end.chain:
        said = f"its hash is {head.chain[:12]}…, but kept with it was {end.chain[:12]}…: one of both was changed"
        raise CorruptLedgerError(said, sequence=last)
    for witness in witnesses:
        is_other = witness.era == head.era and chains.get(witness.sequence, witness.chain) != witness.chain
        if witness.sequence and (witness.ledger_id != head.ledger_id or is_other):
            said = f"the archive is not of the log that {witness.name} knows"
            raise CorruptLedgerError(said, sequence=witness.sequence)
    return replay


def _next_era(options: Options, witnesses: list[Witness], head: Head) -> tuple[int, str]:
    """The era that begins, and what is known to be lost; empty: nothing is.

    Raises:
        InvalidInputError: something is, and that was not accepted; or there is no further era.
    """
    further = [each for each in witnesses if (each.era, each.sequence) > (head.era, head.sequence)]
    era = max(options.era, 1 + max((witness.era for witness in witnesses), default=0), 1 + head.era)
    if era > limits.ERA_MAX:
        raise InvalidInputError(f"the ledger was restored {limits.ERA_MAX} times; it cannot be again", field="era")
    if not further:
        return era, ""
    most = max(further, key=lambda witness: (witness.era, witness.sequence))
    count = f"{most.sequence - head.sequence} records" if most.era == head.era else f"what came since era {head.era}"
    lost = f"{count} behind record {head.sequence} ({most.name} knows up to {most.sequence})"
    if not options.accept_loss:
        raise InvalidInputError(
            f"{options.archive} ends at record {head.sequence}: lost would be {lost}. Look for an archive that goes "
            "further, or say --accept-loss",
            field="archive",
        )
    return era, lost


async def _last_of(bus: _Bus) -> int:
    """The last record that is there; 0 if there is none, or no log."""
    info = await api.stream_info(bus.keeper, LEDGER_STREAM)
    return 0 if info.error is not None else info.state.last_seq


async def _begin_era(bus: _Bus, state: State, options: Options, era: int, lost: str) -> Restored:
    """Append the record that raises the era, if it is not there yet.

    Raises:
        CorruptLedgerError: another record stands behind the archive's.
    """
    head = state.head
    found = await bus.ledger.read(head.sequence + 1)
    was_done = found is not None
    if found is not None:
        _check_restored(state, found)
    else:
        writer = f"restore.{home.own_host()}.{os.getpid()}.{time.time_ns()}"
        sequencer = Sequencer(state, cluster=head.cluster, writer=writer)
        reason = f"{options.reason}; lost: {lost}" if lost else options.reason
        reason = reason[: limits.REASON_CHARS_MAX]
        sequencer.note(inputs.LedgerRestores(cluster=head.cluster, writer=writer, era=era, reason=reason))
        draft = sequencer.draft(await api.server_time_ns(bus.writer, LEDGER_STREAM))
        assert draft is not None
        end = await append_certainly(bus.ledger, draft.expected, draft.body)
        if not isinstance(end, Won):
            sequencer.state.roll_back()
            _check_restored(state, end.body)
        found = draft.body
    record = codec.decode_record(found, head.sequence + 1)
    return Restored(
        ledger_id=record.ledger_id,
        cluster=head.cluster,
        era=record.era,
        through=head.sequence,
        position=position_of(head.sequence + 1, 0),
        chain=chain_hash(found),
        lost=lost,
        was_done=was_done,
    )


def _check_restored(state: State, body: bytes) -> None:
    """Raises CorruptLedgerError unless an earlier run has appended this."""
    sequence = state.head.sequence + 1
    record = codec.decode_record(body, sequence)
    if record.prev != state.head.chain or record.era <= state.head.era:
        raise CorruptLedgerError(
            "somebody has gone on with the log before it was restored. End whoever did, and begin with an empty one",
            sequence=sequence,
        )


# --- the log's server -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _bus(options: Options, cluster: str, *, sync_always: bool) -> AsyncIterator[_Bus]:
    """The servers that were named; or one on the data directory, to which nobody but us has a key."""
    if options.nats:
        info = home.ConnectionInfo(url=options.nats, cluster=cluster, credentials=options.credentials)
        keys = [own_credential(info, role) for role in ("keeper", "allocator")]
        for key in keys:
            if key.cluster != cluster:
                said = f"the archive is of cluster {cluster!r}, the keys are of {key.cluster!r}"
                raise InvalidInputError(said, field="credentials")
        async with _connected(info.urls, keys, cluster) as bus:
            yield bus
        return
    data = home.make_private_dir(options.data)
    _check_cluster(data, cluster)
    keys = [new_credential(role, "restore", cluster) for role in ("keeper", "allocator")]
    users = permissions.render([key.user for key in keys], cluster)
    async with (
        NatsServer(data, users=users, probe=keys[0], sync_always=sync_always) as server,
        _connected([server.url], keys, cluster) as bus,
    ):
        yield bus


def _check_cluster(data: Path, cluster: str) -> None:
    try:
        registered = credentials.registered(data).cluster
    except UnavailableError:
        return
    if registered != cluster:
        said = f"the archive is of cluster {cluster!r}, {data} of {registered!r}"
        raise InvalidInputError(said, field="archive")


@contextlib.asynccontextmanager
async def _connected(urls: list[str], keys: list[Credential], cluster: str) -> AsyncIterator[_Bus]:
    subjects = Subjects(cluster)
    async with contextlib.AsyncExitStack() as stack:
        keeper, writer = [await connect(urls, credential=key, name=f"restore {key.role}") for key in keys]
        stack.push_async_callback(disconnect, keeper)
        stack.push_async_callback(disconnect, writer)
        ledger = JetStreamLedger(writer, subjects)
        stack.push_async_callback(ledger.close)
        yield _Bus(keeper, writer, subjects, ledger)


def _sync(folder: Path) -> None:
    """Bring all of a store that was written without syncing to the disk. The server has ended."""
    try:
        for path in (folder, *folder.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: {error.strerror}") from error
