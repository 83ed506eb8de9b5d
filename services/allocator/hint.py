"""The hint who decides, on the bus and in memory, and the task that keeps an eye on it.

Allocators share one bucket of NATS's key-value store (a stream `KV_<bucket>`), with one key. Three requests are all
that is needed, each with a short time-out, so they are made here as they are.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from leasehold.events import limits
from leasehold.events.errors import UnavailableError
from leasehold.projections.leading import Leading, Seat
from leasehold.services.allocator.contact import monotonic_ns
from leasehold.services.connection import Connection
from leasehold.services.ledger import api
from leasehold.services.ledger.streams import HINT_STREAM, hint_config

_log: Final = logging.getLogger(__name__)

HINT_SUBJECT: Final = "$KV.HINT.decider"
HINT_TIMEOUT_S: Final = 0.4


class Hint(Protocol):
    """Where allocators tell each other who decides. `tests/conformance/test_hint.py` holds implementations to this."""

    async def look(self) -> Seat:
        """What stands there.

        Raises:
            UnavailableError: it cannot be known now.
        """
        ...

    async def put(self, expected: int, writer: str) -> int | None:
        """Write `writer` (empty: nobody) if the revision is still `expected`; the new revision, `None` if it was not.

        Raises:
            UnavailableError: it is not known whether that was done.
        """
        ...


class MemoryHint:
    """A hint within one process, for tests."""

    def __init__(self) -> None:
        self.seat = Seat()
        self.is_silent = False

    async def look(self) -> Seat:
        """See `Hint`."""
        await self._reach()
        return self.seat

    async def put(self, expected: int, writer: str) -> int | None:
        """See `Hint`."""
        await self._reach()
        if self.seat.revision != expected:
            return None
        self.seat = Seat(expected + 1, writer)
        return self.seat.revision

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.is_silent:
            raise UnavailableError("the hint is silent")


class KvHint:
    """The hint in a bucket that is kept in the servers' memory: it may be gone after a restart, and is made again."""

    def __init__(self, connection: Connection) -> None:
        """`streams.ensure_streams` makes the bucket."""
        self._connection = connection

    async def look(self) -> Seat:
        """See `Hint`."""
        request = {"last_by_subj": HINT_SUBJECT}
        try:
            async with asyncio.timeout(HINT_TIMEOUT_S):
                reply = await api.call(self._connection, f"STREAM.MSG.GET.{HINT_STREAM}", request, api.StoredReply)
                if reply.error is not None and reply.error.err_code == api.STREAM_NOT_FOUND:
                    await api.call(self._connection, f"STREAM.CREATE.{HINT_STREAM}", hint_config(1), api.StreamInfo)
                    return Seat()
        except TimeoutError as error:
            raise UnavailableError(f"{HINT_SUBJECT} cannot be read within {HINT_TIMEOUT_S:g} s") from error
        if reply.error is None:
            return Seat(reply.message.seq, reply.message.data.decode(errors="replace"))
        if reply.error.err_code == api.MESSAGE_NOT_FOUND:
            return Seat()
        raise UnavailableError(f"{HINT_SUBJECT} cannot be read: {reply.error.description}")

    async def put(self, expected: int, writer: str) -> int | None:
        """See `Hint`."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        reply = await self._connection.ask(HINT_SUBJECT, writer.encode(), timeout_s=HINT_TIMEOUT_S, headers=headers)
        try:
            answer = msgspec.json.decode(reply.body, type=api.PublishReply)
        except msgspec.DecodeError as error:
            raise UnavailableError(f"{HINT_SUBJECT} was answered with status {reply.status}") from error
        if answer.error is None and answer.seq > 0:
            return answer.seq
        if answer.error is not None and answer.error.err_code in (
            api.WRONG_LAST_SEQUENCE,
            api.WRONG_LAST_SEQUENCE_IN_FLIGHT,
        ):
            return None
        raise UnavailableError(f"{HINT_SUBJECT} cannot be written: {answer.error}")


class HintKeeper:
    """Looks at the hint, takes it, refreshes it and gives it back for one allocator."""

    def __init__(self, hint: Hint, writer: str, *, able: Callable[[], str], moved: Callable[[], None]) -> None:
        """Nothing is asked before `run` or `look`.

        Args:
            able: Why we could not decide now; empty if we could.
            moved: Called when it may have changed who decides.
        """
        self._hint = hint
        self._leading = Leading(writer)
        self._able = able
        self._moved = moved
        self._looking = asyncio.Lock()
        self.is_silent = False
        """The store did not answer the last time."""

    @property
    def decides(self) -> bool:
        """Whether we are the one that decides, as far as is known just now."""
        return self._leading.decides(monotonic_ns())

    @property
    def decider(self) -> str:
        """Who is said to decide; empty: nobody."""
        return self._leading.seat.writer

    async def run(self) -> None:
        """Keep an eye on it until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(limits.HINT_LOOK_MS / 1_000)

    async def look(self) -> None:
        """Look once, and put our name there if that is called for."""
        async with self._looking:
            before = self.decides
            asked_ns = monotonic_ns()
            try:
                seat = await self._hint.look()
                is_able = not self._able()
                answered_ns = monotonic_ns()
                expected = self._leading.looked(seat, asked_ns=asked_ns, answered_ns=answered_ns, able=is_able)
                if expected is not None:
                    asked_ns = monotonic_ns()
                    revision = await self._hint.put(expected, self._leading.writer)
                    self._leading.put(revision, asked_ns=asked_ns, answered_ns=monotonic_ns())
                self._tell_silence("")
            except UnavailableError as error:
                self._leading.silent(monotonic_ns())
                self._tell_silence(str(error))
            if self.decides != before:
                self._moved()

    def _tell_silence(self, why: str) -> None:
        if bool(why) != self.is_silent:
            self.is_silent = bool(why)
            if why:
                _log.warning("nobody can say who decides, so all do: %s", why)
            else:
                _log.info("who decides can be told again")

    async def give_back(self) -> None:
        """Let another decide at once, if it is us who do."""
        async with self._looking:
            revision = self._leading.give_back()
            if revision is None:
                return
            try:
                if await self._hint.put(revision, "") is None:
                    # A refresh of ours was cut short, and may have been taken.
                    seat = await self._hint.look()
                    if seat.writer == self._leading.writer:
                        await self._hint.put(seat.revision, "")
            except UnavailableError as error:
                _log.info("the hint is left to time: %s", error)
