"""The ledger on NATS JetStream: the one that counts."""

import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec

from leasehold.events.errors import CorruptLedgerError, UnavailableError
from leasehold.events.record import chain_hash
from leasehold.events.subjects import LEDGER_STREAM, Subjects
from leasehold.projections.appending import Said
from leasehold.services.connection import Connection, Reply
from leasehold.services.ledger import api
from leasehold.services.ledger.port import DOUBTS_MAX, Entry, check_body, check_stored, last_beyond_doubt
from leasehold.services.ledger.tail import Arrival, Tail

_log: Final = logging.getLogger(__name__)

_LAST: Final = re.compile(r"wrong last sequence: ([0-9]+)")


class JetStreamLedger:
    """One handle on the stream LEDGER, through a connection that stays its owner's."""

    def __init__(self, connection: Connection, subjects: Subjects, *, tail: type[Tail] = Tail) -> None:
        """`streams.ensure_streams` must have made the stream, or accepted it, before.

        `tail`: how it is followed; by those in account `world`, who may only read, with `direct.DirectTail`.
        """
        self._connection = connection
        self._subjects = subjects
        self._tail = tail
        self._tails: set[Tail] = set()
        self._closed = False
        self._last_complaint = ""

    async def last_sequence(self) -> int:
        """See `port.Ledger`."""
        return (await self._state()).last_seq

    async def append(self, expected: int, body: bytes, *, timeout_s: float) -> tuple[Said, int]:
        """See `port.Ledger`."""
        check_body(body)
        headers = {
            "Nats-Expected-Last-Sequence": str(expected),
            "Nats-Expected-Stream": LEDGER_STREAM,
            "Nats-Msg-Id": chain_hash(body),
        }
        try:
            reply = await self._connection.ask(self._subjects.ledger, body, timeout_s=timeout_s, headers=headers)
        except UnavailableError as error:
            await self._connection.note(well=False)
            self._complain(str(error))
            return Said.NOTHING, 0
        said, sequence, complaint = _judge(reply)
        self._complain(complaint)
        if said is not Said.REFUSED:
            # A refusal may come from a leader that is none any more.
            await self._connection.note(well=said is Said.STORED)
        if said is Said.REFUSED and 0 < sequence < expected:
            return await self._refused_as_shorter(expected)
        check_stored(said, sequence, expected)
        return said, sequence

    async def _refused_as_shorter(self, expected: int) -> tuple[Said, int]:
        """A log that has lost its end says so, but so does a server that was cut off from the others."""
        try:
            return Said.REFUSED, await last_beyond_doubt(self, expected)
        except UnavailableError as error:
            self._complain(str(error))
            return Said.NOTHING, 0

    def _complain(self, complaint: str) -> None:
        # Attempts come four a second for as long as the trouble lasts; one line for each kind of it is enough.
        if complaint and complaint != self._last_complaint:
            _log.warning("an append got no clear answer: %s", complaint)
        self._last_complaint = complaint

    async def read(self, sequence: int) -> bytes | None:
        """See `port.Ledger`."""
        assert sequence >= 1, sequence
        body = await self._read_once(sequence)
        if body is not None or sequence > (await self._state()).last_seq:
            return body
        # It may have been appended between both questions.
        body = await self._read_once(sequence)
        if body is None:
            raise CorruptLedgerError("the log goes on behind it, but it is missing", sequence=sequence)
        return body

    async def _read_once(self, sequence: int) -> bytes | None:
        request = {"seq": sequence}
        reply = await api.call(self._connection, f"STREAM.MSG.GET.{LEDGER_STREAM}", request, api.StoredReply)
        if reply.error is None:
            return reply.message.data
        if reply.error.err_code == api.MESSAGE_NOT_FOUND:
            return None
        raise UnavailableError(f"record {sequence} cannot be read: {reply.error.description}")

    async def _state(self) -> api.StreamState:
        info = await api.stream_info(self._connection, LEDGER_STREAM)
        if info.error is None:
            return info.state
        if info.error.err_code == api.STREAM_NOT_FOUND:
            raise CorruptLedgerError(f"there is no stream {LEDGER_STREAM}")
        raise UnavailableError(f"no state of {LEDGER_STREAM}: {info.error.description}")

    async def follow(self, after: int) -> AsyncGenerator[list[Entry], None]:
        """See `port.Ledger`."""
        tail = self._tail(self._connection, LEDGER_STREAM)
        self._tails.add(tail)
        if self._closed:
            tail.close()
        doubts = 0
        try:
            while not tail.closed:
                try:
                    await self._check_reach(after)
                    doubts = 0
                except UnavailableError as error:
                    _log.info("the ledger cannot be followed now: %s", error)
                except CorruptLedgerError:
                    doubts += 1
                    if doubts > DOUBTS_MAX:
                        raise
                else:
                    async with aclosing(self._gapless(tail, after)) as batches:
                        async for entries in batches:
                            after = entries[-1].sequence
                            yield entries
                await tail.pause()
        finally:
            self._tails.discard(tail)

    async def _check_reach(self, after: int) -> None:
        state = await self._state()
        if state.last_seq < after:
            raise CorruptLedgerError(
                f"the log ends at {state.last_seq}, but {after} was read from it before", sequence=state.last_seq + 1
            )
        if after < state.last_seq and after + 1 < state.first_seq:
            raise CorruptLedgerError(f"missing; the log begins at {state.first_seq}", sequence=after + 1)

    async def _gapless(self, tail: Tail, after: int) -> AsyncGenerator[list[Entry], None]:
        async with aclosing(tail.session(after)) as batches:
            async for batch in batches:
                entries = _consecutive(batch, after)
                if entries:
                    after = entries[-1].sequence
                    yield entries
                if batch[-1].sequence > after:
                    await self._report_gap(after + 1)
                    return

    async def _report_gap(self, missing: int) -> None:
        try:
            await self.read(missing)
        except UnavailableError:
            # The next session meets the same gap again, if there is one.
            return
        raise CorruptLedgerError("passed over in delivery, although the leader has it", sequence=missing)

    async def close(self) -> None:
        """See `port.Ledger`."""
        self._closed = True
        for tail in tuple(self._tails):
            tail.close()


def _consecutive(batch: list[Arrival], after: int) -> list[Entry]:
    """The entries of `batch` that go on from `after` without a gap; what stands before is known already."""
    if batch[0].sequence != after + 1 or batch[-1].sequence != after + len(batch):
        news = [arrival for arrival in batch if arrival.sequence > after]
        batch = [arrival for index, arrival in enumerate(news) if arrival.sequence == after + 1 + index]
    return [Entry(sequence, body) for sequence, _, body, _ in batch]


def _judge(reply: Reply) -> tuple[Said, int, str]:
    """What the answer to an append says, and what there is to complain about."""
    if reply.status:
        return Said.NOTHING, 0, f"status {reply.status}"
    try:
        answer = msgspec.json.decode(reply.body, type=api.PublishReply)
    except msgspec.DecodeError:
        return Said.NOTHING, 0, f"answered with {reply.body[:200]!r}"
    if answer.error is None:
        return (Said.STORED, answer.seq, "") if answer.seq > 0 else (Said.NOTHING, 0, "an answer without a sequence")
    if answer.error.err_code == api.WRONG_LAST_SEQUENCE:
        named = _LAST.search(answer.error.description)
        return Said.REFUSED, int(named[1]) if named else 0, ""
    if answer.error.err_code == api.WRONG_LAST_SEQUENCE_IN_FLIGHT:
        return Said.REFUSED, 0, ""
    return Said.NOTHING, 0, f"{answer.error.description} ({answer.error.err_code})"
