"""The feed's loop: follows LEDGER, and tells its events in EVENTS.

Any number of feeds may run beside each other: what stands at which place of EVENTS follows from the ledger alone, and
the server takes each message in its place only. Who is refused looks where EVENTS ends, and goes on from there. So
does who has found that a killed server forgot the end of it, or that somebody has emptied it.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, Final

import msgspec
from nats.aio.subscription import Subscription

from leasehold.events import codec, limits
from leasehold.events.errors import CorruptLedgerError, FeedMovedError, UnavailableError
from leasehold.events.position import sequence_of
from leasehold.events.record import chain_hash
from leasehold.events.subjects import Subjects
from leasehold.projections.feeding import Feeding, Message
from leasehold.projections.feedsnapshots import encode_feeding
from leasehold.services.connection import Connection, status_of
from leasehold.services.feed.keeping import FeedFiles
from leasehold.services.feed.outbox import End, Outbox
from leasehold.services.feed.stream import empty_events, end_of_events, state_of_events
from leasehold.services.ledger import api
from leasehold.services.ledger.port import Ledger, last_beyond_doubt

_log: Final = logging.getLogger(__name__)

PAUSE_S: Final = 0.05
PAUSE_S_MAX: Final = 0.5
CALM_S: Final = 1.0
"""Who told for so long begins again at once."""
LOOK_S: Final = 1.0
"""How often it is looked where EVENTS ends, whether anything is told or not."""
ACKNOWLEDGED_WITHIN_S: Final = 3.0
SLICE_NS: Final = 4_000_000
"""Folding lets the rest of the loop go on after this long."""
SAVE_S: Final = limits.SNAPSHOT_INTERVAL_MS / 1_000
END_TRIES: Final = 5
END_TRY_S: Final = 1.0
_REFUSED: Final = (api.WRONG_LAST_SEQUENCE, api.WRONG_LAST_SEQUENCE_IN_FLIGHT)


class Feed:
    """One feed. `run` it until it is cancelled."""

    def __init__(self, connection: Connection, subjects: Subjects, ledger: Ledger, files: FeedFiles) -> None:
        """All of these stay their owner's. `streams.ensure_streams` must have made EVENTS."""
        self._connection = connection
        self._subjects = subjects
        self._ledger = ledger
        self._files = files
        self._fold = Feeding()
        self._outbox = Outbox(1)
        self._seeking: End | None = None
        """The last message of EVENTS, until folding has come to it: what is before it has been told."""
        self._news = asyncio.Event()
        """There may be something to send."""
        self._room = asyncio.Event()
        """The outbox may have room again."""
        self._acknowledged = asyncio.Event()
        self._failure: UnavailableError | None = None
        self._saved_s = time.monotonic()
        self._saved_sequence = 0
        self._to_save: tuple[int, bytes] | None = None
        """A fold that is kept as soon as EVENTS has all up to this place."""

    async def run(self) -> None:
        """Tell until cancelled; whatever can pass is waited for.

        Raises:
            CorruptLedgerError: the log is not the one that was told of before, or cannot be read on.
        """
        pause_s = PAUSE_S
        while True:
            begun_s = time.monotonic()
            try:
                await self._session()
            except FeedMovedError as error:
                _log.info("looking where the feed ends: %s", error)
            except UnavailableError as error:
                _log.warning("the feed is interrupted: %s", error)
            if time.monotonic() - begun_s > CALM_S:
                pause_s = PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _session(self) -> None:
        """Tell from where EVENTS ends until something goes wrong. Raises what it was."""
        await self._go_on_from(await end_of_events(self._connection))
        inbox = f"{self._connection.new_inbox()}."
        self._failure = None
        self._connection.reconnect_listeners.add(self._reconnected)
        subscription: Subscription | None = None
        try:
            subscription = await self._connection.listen(f"{inbox}*", self._take)
            await _first_of(self._read(), self._send(inbox), self._look(), self._save())
        finally:
            self._connection.reconnect_listeners.discard(self._reconnected)
            if subscription is not None:
                await self._connection.stop_listening(subscription)

    # --- where to go on -----------------------------------------------------------------------------------------

    async def _go_on_from(self, end: End) -> None:
        if end.wrong:
            await self._begin_anew(end, end.wrong)
        if self._seeking is None and self._outbox.go_back_to(end):
            return
        self._to_save = None
        if end.said is None:
            # Nothing is in it: all is to be told.
            self._restart(Feeding())
            self._outbox, self._seeking = Outbox(end.sequence + 1), None
        else:
            await self._seek(end)

    def _restart(self, fold: Feeding) -> None:
        self._fold, self._saved_sequence = fold, fold.head.sequence

    async def _seek(self, end: End) -> None:
        """Fold up to the last message of EVENTS, from the nearest fold at or before it, and tell what comes behind."""
        await self._check_reach(end)
        assert end.said is not None
        if not self._fold.head.sequence or not self._is_before(self._fold, end):
            self._restart(await self._kept(end))
        self._outbox = Outbox(end.sequence + 1)
        self._seeking = None if self._fold.last == end.place else end

    def _is_before(self, fold: Feeding, end: End) -> bool:
        said = end.said
        assert said is not None
        is_at = fold.last == end.place and (fold.head.ledger_id, fold.head.era) == (said.ledger_id, said.era)
        return is_at or fold.head.sequence < sequence_of(said.position)

    async def _check_reach(self, end: End) -> None:
        """See that the ledger goes as far as what EVENTS told last. One that does not, but was restored, or is another
        one, is told anew.

        Raises:
            CorruptLedgerError: it has lost its end.
        """
        said = end.said
        assert said is not None
        told = sequence_of(said.position)
        last = await last_beyond_doubt(self._ledger, told)
        if last >= told:
            return
        body = await self._ledger.read(last) if last else None
        record = codec.decode_record(body, last) if body is not None else None
        if record is not None and (record.ledger_id != said.ledger_id or record.era > said.era):
            of, now = _named(said.ledger_id, said.era), _named(record.ledger_id, record.era)
            await self._begin_anew(end, f"it is {of}, and the log is {now}")
        raise CorruptLedgerError(f"the log ends at {last}, but record {told} was told of before", sequence=last + 1)

    async def _kept(self, end: End) -> Feeding:
        """The newest kept fold that is not behind the end of EVENTS and belongs to this log; else an empty one."""
        for fold in await asyncio.to_thread(self._files.load):
            if self._is_before(fold, end) and await self._belongs(fold):
                return fold
        return Feeding()

    async def _belongs(self, fold: Feeding) -> bool:
        head = fold.head
        body = await self._ledger.read(head.sequence) if head.sequence else None
        return body is not None and chain_hash(body) == head.chain

    async def _begin_anew(self, end: End, reason: str) -> None:
        """Empty EVENTS, and tell all again. Raises FeedMovedError."""
        _log.warning("the feed is told anew: %s", reason)
        self._restart(Feeding())
        await empty_events(self._connection, end.sequence)
        raise FeedMovedError("it has been emptied")

    # --- reading ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        async with aclosing(self._ledger.follow(self._fold.head.sequence)) as batches:
            async for batch in batches:
                begun_ns = time.monotonic_ns()
                for entry in batch:
                    messages = self._fold.fold(entry.sequence, entry.body)
                    if self._seeking is not None:
                        messages = await self._behind(self._seeking, messages)
                    self._outbox.put(messages)
                    self._mark_fold()
                    if self._outbox.is_full or time.monotonic_ns() - begun_ns > SLICE_NS:
                        self._news.set()
                        await asyncio.sleep(0)
                        await self._wait_for_room()
                        begun_ns = time.monotonic_ns()
                self._news.set()
        raise UnavailableError("the ledger was closed under the feed")

    async def _behind(self, end: End, messages: list[Message]) -> list[Message]:
        """What of `messages` comes behind the last one of EVENTS, which must be among them once they reach it."""
        place = end.place
        if (messages[-1].position, messages[-1].part) < place:
            return []
        found = [message for message in messages if (message.position, message.part) == place]
        if not found or found[0].body != end.body:
            await self._begin_anew(end, f"the log has something else at position {place[0]}")
        said, head = end.said, self._fold.head
        assert said is not None
        if (said.ledger_id, said.era) != (head.ledger_id, head.era):
            of, now = _named(said.ledger_id, said.era), _named(head.ledger_id, head.era)
            await self._begin_anew(end, f"it is {of}, and the log is {now}")
        self._seeking = None
        return [message for message in messages if (message.position, message.part) > place]

    async def _wait_for_room(self) -> None:
        while self._outbox.is_full:
            self._room.clear()
            await self._room.wait()

    # --- telling ------------------------------------------------------------------------------------------------

    async def _send(self, inbox: str) -> None:
        to = self._subjects.told_all.removesuffix(">")
        waiting_s = time.monotonic()
        while True:
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            commands = self._outbox.chunk(to, inbox)
            if commands:
                await self._connection.send(commands)
                waiting_s = time.monotonic()
                continue
            try:
                async with asyncio.timeout(ACKNOWLEDGED_WITHIN_S):
                    await self._news.wait()
            except TimeoutError:
                is_owed = self._outbox.sent > self._outbox.acknowledged
                if is_owed and time.monotonic() - waiting_s >= ACKNOWLEDGED_WITHIN_S:
                    raise UnavailableError(f"no acknowledgement for {ACKNOWLEDGED_WITHIN_S:g} s") from None

    def _take(self, subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        """An acknowledgement, of all up to the place that its subject ends in."""
        place = int(subject.rpartition(b".")[2])
        failure = _failure_in(place, body, headers)
        if failure is None and self._outbox.acknowledged < place <= self._outbox.sent:
            self._outbox.acknowledge(place)
            self._room.set()
            self._acknowledged.set()
        elif failure is not None:
            self._fail(failure)
        self._news.set()

    def _reconnected(self) -> None:
        self._fail(FeedMovedError("the connection was made anew"))

    def _fail(self, failure: UnavailableError) -> None:
        self._failure = self._failure or failure
        self._news.set()

    async def _look(self) -> None:
        """See now and then that EVENTS has what it has acknowledged. What it has beyond that, a refusal shows."""
        while True:
            await asyncio.sleep(LOOK_S)
            acknowledged = self._outbox.acknowledged
            state = await state_of_events(self._connection)
            if state.last_seq < acknowledged:
                raise FeedMovedError(f"it has lost its end: {state.last_seq} instead of {acknowledged}")
            if not state.messages and acknowledged >= self._outbox.first:
                raise FeedMovedError("it has been emptied")

    # --- keeping ------------------------------------------------------------------------------------------------

    def _mark_fold(self) -> None:
        """Take down the fold now and then, to be kept once all that it tells of has been told."""
        sequence = self._fold.head.sequence
        is_many = sequence - self._saved_sequence >= limits.SNAPSHOT_RECORDS
        if is_many and self._seeking is None and self._to_save is None and time.monotonic() - self._saved_s > SAVE_S:
            self._to_save = (self._outbox.last, encode_feeding(self._fold))

    async def _save(self) -> None:
        while True:
            await self._acknowledged.wait()
            self._acknowledged.clear()
            if self._to_save is not None and self._to_save[0] <= self._outbox.acknowledged:
                await asyncio.to_thread(self._files.save, self._to_save[1])
                self._saved_s, self._saved_sequence, self._to_save = time.monotonic(), self._fold.head.sequence, None


def _failure_in(place: int, body: bytes, headers: bytes | None) -> UnavailableError | None:
    """What is wrong with an acknowledgement of the message at `place`, if anything is."""
    status = status_of(headers)
    if status:
        return UnavailableError(f"nobody keeps what is told (status {status})")
    try:
        answer = msgspec.json.decode(body, type=api.PublishReply)
    except msgspec.DecodeError:
        return UnavailableError(f"acknowledged with {body[:200]!r}")
    if answer.error is not None and answer.error.err_code in _REFUSED:
        return FeedMovedError(f"place {place} was refused: {answer.error.description}")
    if answer.error is not None:
        return UnavailableError(f"{answer.error.description} ({answer.error.err_code})")
    return None if answer.seq == place else FeedMovedError(f"what belongs to place {place} stands at {answer.seq}")


def _named(ledger_id: str, era: int) -> str:
    return f"of ledger {ledger_id}, era {era}"


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends; then end the others, and raise what it has raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for _ in range(END_TRIES):
            # The NATS client swallows a cancellation in some places, so once may not be enough.
            for task in tasks:
                task.cancel()
            _, alive = await asyncio.wait(tasks, timeout=END_TRY_S)
            if not alive:
                break
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()
