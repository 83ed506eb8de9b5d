"""Following the feed: live, and out of the stream where something may be missing (`projections.hearing`).

Who listens to everything, or to all of one host, is given each event as it arrives. For other choices what arrives is
only a reason to read the stream, which knows what belongs to them.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import SnapshotNeededError, UnavailableError
from leasehold.events.subjects import EVENTS_STREAM, Subjects
from leasehold.projections.feeding import Feeding, Message
from leasehold.projections.hearing import FIRST_POSITION, Chain, Hearing, Told
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent, Log, MessageReader, Wanted, log_of, source_line
from leasehold.services.ledger import api
from leasehold.services.ledger.direct import Asking, Batch
from leasehold.services.ledger.port import Ledger

_logger: Final = logging.getLogger(__name__)

LOOK_S: Final = limits.FEED_LOOK_MS / 1_000
ASK_S: Final = 2.0
PAUSE_S_MIN: Final = 0.005
"""Between two looks, while what was heard is not to be found yet."""
PAUSE_S_MAX: Final = 0.25
READ_EVERY_S: Final = 0.02
"""Who can only read does so at the first message, and then not more often than this."""
AT_END_S: Final = 1.0
"""A stream that was read to its end so lately cannot have lost, meanwhile, what was not read yet."""
RESTORED: Final = "ledger_restored"


class Following:
    """One reader of the feed. `events` may be called once."""

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        wanted: Wanted,
        since: int,
        log: Log,
        ledger: Callable[[], Ledger] | None,
    ) -> None:
        """`since`: the position to begin behind, of the ledger `log`. `ledger`: makes a handle on the ledger, for those
        who may read it: from there comes what EVENTS has lost.
        """
        self._connection = connection
        self._subjects = subjects
        self._listened = wanted.listened(subjects)
        self._chain = wanted.chain
        self._messages = MessageReader(subjects, wanted)
        self._asking = Asking(connection, EVENTS_STREAM, "" if self._chain is Chain.STREAM else self._listened)
        self._hearing = Hearing(wanted.chain, since)
        self._given = since
        self._log = log
        self._source = b""
        """The header that says `_log`, once it was read: what has it needs no more to be looked at."""
        self._other_log: Log | None = None
        """Heard of, and not judged yet."""
        self._restored: list[Told] = []
        """What the ledger itself told of its being restored."""
        self._ledger = ledger
        self._healing: AsyncGenerator[None, None] | None = None
        self._created = ""
        """When the stream was made in which the reader has a place."""
        self._at_end_s = 0.0
        """When the stream was last seen to have nothing that was not read."""
        self._something = asyncio.Event()
        self._is_silent = False
        self._alarm: asyncio.TimerHandle
        self._pause_s = PAUSE_S_MIN
        self._trouble = ""

    async def events(self) -> AsyncGenerator[FeedEvent, None]:
        """The wanted events, each once, in order, for ever. Trouble of the bus and of the feed is waited out.

        Raises:
            SnapshotNeededError: what follows cannot be had any more, or what was given is in the ledger no more.
            CorruptLedgerError: what EVENTS has lost was looked for in the ledger, which is not sound.
            UnavailableError: the connection was closed.
        """
        self._connection.reconnect_listeners.add(self._doubt)
        self._alarm = asyncio.get_running_loop().call_later(LOOK_S, self._doubt_silence)
        subscription = await self._connection.listen(self._listened, self._hear)
        try:
            await self._asking.open()
            while True:
                # Before anything of another era is given, it must be known what became of the last one.
                while self._other_log is None and (told := self._hearing.take()) is not None:
                    self._given = told.position
                    yield self._messages.event(told)
                await self._go_on()
        finally:
            self._connection.reconnect_listeners.discard(self._doubt)
            self._alarm.cancel()
            if self._healing is not None:
                await self._healing.aclose()
            await self._asking.close()
            await self._connection.stop_listening(subscription)

    async def _go_on(self) -> None:
        """Do what may bring something to be given."""
        if self._other_log is not None:
            await self._tried(self._judge_log)
        elif self._healing is not None:
            await self._heal_on(self._healing)
        elif self._hearing.needs_look:
            await self._tried(self._look)
        else:
            await self._something.wait()
            self._something.clear()

    async def _heal_on(self, healing: AsyncGenerator[None, None]) -> None:
        try:
            await anext(healing)
        except StopAsyncIteration:
            self._healing = None

    async def _tried(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it; if it cannot be done now, some time has passed, and it is to be tried again."""
        try:
            await work()
        except UnavailableError as error:
            if self._connection.is_closed:
                raise
            # Attempts come four a second for as long as the trouble lasts; one line for each kind of it is enough.
            if str(error) != self._trouble:
                self._trouble = str(error)
                _logger.info("the feed cannot be read now: %s", error)
            await asyncio.sleep(PAUSE_S_MAX)
        else:
            self._trouble = ""

    # --- live -------------------------------------------------------------------------------------------------------

    def _hear(self, subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        told = self._messages.told(subject, body, headers or b"")
        if told is not None:
            self._note_log(told)
            self._hearing.hear(told)
            self._is_silent = False
            self._something.set()

    def _doubt(self) -> None:
        """The connection was made anew: anything may have been told meanwhile, and the stream be another one."""
        self._hearing.needs_look, self._at_end_s = True, 0.0
        self._something.set()

    def _doubt_silence(self) -> None:
        """Nobody follows the last message: if it was lost, silence is all that there is of it."""
        if self._is_silent:
            self._doubt()
        self._is_silent = True
        self._alarm = asyncio.get_running_loop().call_later(LOOK_S, self._doubt_silence)

    # --- out of the stream ------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Read on in the stream. Raises UnavailableError."""
        hearing, batch = self._hearing, await self._read_on() if self._created else None
        if batch is not None and batch.arrived and self._was_just_at_end(batch):
            await self._take(batch, batch.last, is_end=True)
            return
        begun_s, info = time.monotonic(), await self._info()
        last = info.state.last_seq
        is_out_of_reach = last < hearing.after or info.state.first_seq > hearing.after + 1
        if batch is None or info.created != self._created or is_out_of_reach:
            # What was read may have stood behind a gap.
            await self._find_place(info)
            return
        end, is_end = batch.last, batch.is_end
        if is_end and not batch.arrived and last > hearing.after:
            is_end = await self._is_nothing_behind(hearing.after)
            end = last if is_end else end
            # Others' events may be of a ledger that was restored meanwhile.
            self._note_log(await self._told_at(last))
        self._at_end_s = begun_s if is_end else 0.0
        await self._take(batch, end, is_end=is_end)

    def _was_just_at_end(self, batch: Batch) -> bool:
        return batch.is_end and self._chain is Chain.NONE and time.monotonic() - self._at_end_s < AT_END_S

    async def _take(self, batch: Batch, end: int, *, is_end: bool) -> None:
        found = [told for each in batch.arrived if (told := self._messages.kept(each.body, each.headers)) is not None]
        for told in found:
            self._note_log(told)
        self._hearing.read(found, end=end, is_end=is_end)
        await self._rest(is_idle=not found)

    async def _rest(self, *, is_idle: bool) -> None:
        if is_idle and self._hearing.needs_look:
            # What was heard is not to be found yet.
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        else:
            self._pause_s = PAUSE_S_MIN
            if self._chain is Chain.NONE:
                await asyncio.sleep(READ_EVERY_S)

    async def _read_on(self) -> Batch:
        await self._asking.ask(self._hearing.after)
        return await self._asking.batch()

    async def _info(self) -> api.StreamInfo:
        info = await api.stream_info(self._connection, EVENTS_STREAM)
        if info.error is not None:
            raise UnavailableError(f"there is no feed: {info.error.description}")
        return info

    async def _is_nothing_behind(self, sequence: int) -> bool:
        """As the stream's leader knows it; a replica that is behind may not have what there is."""
        request = {"seq": sequence + 1, "next_by_subj": self._listened}
        reply = await api.call(self._connection, f"STREAM.MSG.GET.{EVENTS_STREAM}", request, api.StoredReply)
        if reply.error is not None and reply.error.err_code != api.MESSAGE_NOT_FOUND:
            raise UnavailableError(f"{EVENTS_STREAM} cannot be read: {reply.error.description}")
        return reply.error is not None

    # --- where to go on ---------------------------------------------------------------------------------------------

    async def _find_place(self, info: api.StreamInfo) -> None:
        """Find where in the stream the reader is, by positions. Raises UnavailableError."""
        first, last, missing = info.state.first_seq, info.state.last_seq, self._hearing.missing_from
        if not info.state.messages:
            # It is being told (anew), or will be.
            await asyncio.sleep(PAUSE_S_MAX)
            return
        oldest, newest = await self._told_at(first), await self._told_at(last)
        self._note_log(newest)
        if (oldest.position, oldest.part) > (missing, 0) and (oldest.position, oldest.part) != (FIRST_POSITION, 0):
            self._healing = self._from_ledger(missing, oldest.position)
            place = first - 1
        elif newest.position < missing:
            place = last
        else:
            place = await self._last_before(missing, first, last)
        self._hearing.begin_again(place)
        self._created = info.created

    async def _last_before(self, position: int, first: int, last: int) -> int:
        """The last sequence whose message stands before `position`: `first` - 1 or more, less than `last`."""
        low, high = first - 1, last - 1
        while low < high:
            middle = (low + high + 1) // 2
            if (await self._told_at(middle)).position < position:
                low = middle
            else:
                high = middle - 1
        return low

    async def _told_at(self, sequence: int) -> Told:
        subject = f"{self._connection.api_prefix}.DIRECT.GET.{EVENTS_STREAM}"
        reply = await self._connection.ask(subject, msgspec.json.encode({"seq": sequence}), timeout_s=ASK_S)
        told = self._messages.kept(reply.body, reply.headers) if not reply.status else None
        if told is None:
            raise UnavailableError(f"message {sequence} of {EVENTS_STREAM} cannot be read (status {reply.status})")
        return told

    # --- out of the ledger ------------------------------------------------------------------------------------------

    async def _from_ledger(self, first: int, last: int) -> AsyncGenerator[None, None]:
        """Give what EVENTS has lost: from position `first` to `last`. Goes on whenever all of it has been taken."""
        if self._ledger is None:
            raise SnapshotNeededError(
                f"the feed goes back to position {last}, and what was told behind {first - 1} can only be had from the "
                "ledger, which this role may not read: take a snapshot, and go on from there"
            )
        _logger.info("positions %d to %d are not in the feed any more: reading them in the ledger", first, last)
        fold, ledger = Feeding(), self._ledger()
        try:
            async with aclosing(ledger.follow(0)) as batches:
                async for entries in batches:
                    for entry in entries:
                        # What stands before is folded, too: it says which lease holds what.
                        messages = fold.fold(entry.sequence, entry.body)
                        if messages[0].position > last:
                            return
                        if messages[-1].position >= first:
                            self._heal(messages, first)
                            yield
                    yield
        finally:
            await ledger.close()

    def _heal(self, messages: list[Message], first: int) -> None:
        for message in messages:
            told = self._messages.made(message.subject, message.headers, message.body)
            if self._messages.kind(told) == RESTORED:
                self._restored.append(told)
            if told.position >= first and told.wanted:
                self._note_log(told)
                self._hearing.heal(told)

    # --- which ledger -----------------------------------------------------------------------------------------------

    def _note_log(self, told: Told) -> None:
        headers: bytes = told.message[2]
        if self._source and self._source in headers:
            return
        log = log_of(told)
        if log == self._log:
            self._source = source_line(headers)
        # What is of an era before was told anew, and is known.
        elif log.ledger_id != self._log.ledger_id or log.era > self._log.era:
            self._other_log = log

    async def _judge_log(self) -> None:
        """The ledger was restored from an archive, or is another one.

        Raises:
            SnapshotNeededError: what was given, or began from, is not in it.
            UnavailableError: it cannot be known now.
        """
        log, given = self._other_log, self._given
        assert log is not None
        if log.ledger_id != self._log.ledger_id:
            raise SnapshotNeededError(
                f"this is ledger {log.ledger_id}, and position {given} is of {self._log.ledger_id}: "
                "take a snapshot, and go on from there"
            )
        restored = await self._restored_behind(self._log.era)
        if given >= restored:
            raise SnapshotNeededError(
                f"the ledger was restored from an archive at position {restored}, and what stood there before is gone; "
                f"all up to {given} was given: take a snapshot, and go on from there"
            )
        # What was heard and not given yet may be gone as well.
        self._hearing, self._created = Hearing(self._chain, given), ""
        if self._healing is not None:
            await self._healing.aclose()
            self._healing = None
        self._log, self._source, self._other_log = log, b"", None

    async def _restored_behind(self, era: int) -> int:
        """Where the era after `era` begins. 0 if the feed does not say any more."""
        found = [told.position for told in self._restored if log_of(told).era > era]
        if found:
            return found[0]
        subject = self._subjects.event(host="", kind=RESTORED, device="", lease="", tenant="")
        asking = Asking(self._connection, EVENTS_STREAM, subject)
        try:
            await asking.open()
            await asking.ask(0)
            arrived = (await asking.batch()).arrived
        finally:
            await asking.close()
        kept = [self._messages.kept(each.body, each.headers) for each in arrived]
        return next((told.position for told in kept if told is not None and log_of(told).era > era), 0)
