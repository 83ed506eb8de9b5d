"""A ledger in memory: the contract of `port` without a server, for tests and simulations."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from leasehold.events.errors import CorruptLedgerError
from leasehold.events.record import chain_hash
from leasehold.projections.appending import Said
from leasehold.services.ledger.port import Entry, check_body, check_stored

BATCH_RECORDS_MAX: Final = 256


class MemoryLog:
    """The log itself; any number of handles share it within one event loop. It grows for as long as it lives."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._places: dict[str, int] = {}
        self._waiting: set[asyncio.Event] = set()

    def append(self, body: bytes) -> int:
        """Add a record, unless it is there already, and wake up who follows; where it stands."""
        place = self._places.setdefault(chain_hash(body), len(self.bodies) + 1)
        if place > len(self.bodies):
            self.bodies.append(body)
            self.wake()
        return place

    def wake(self) -> None:
        """Let all who follow look again."""
        for event in self._waiting:
            event.set()

    async def wait(self) -> None:
        """Wait for the next `wake`."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            await event.wait()
        finally:
            self._waiting.discard(event)


class MemoryLedger:
    """One handle on a log in memory."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._closed = False

    async def last_sequence(self) -> int:
        """See `port.Ledger`."""
        return len(self._log.bodies)

    async def append(self, expected: int, body: bytes, *, timeout_s: float) -> tuple[Said, int]:
        """See `port.Ledger`; there is nothing here that `timeout_s` could end."""
        check_body(body)
        # As from a server, an answer never comes within the same turn of the loop.
        await asyncio.sleep(0)
        last = len(self._log.bodies)
        if last != expected:
            return Said.REFUSED, last
        place = self._log.append(body)
        check_stored(Said.STORED, place, expected)
        return Said.STORED, place

    async def read(self, sequence: int) -> bytes | None:
        """See `port.Ledger`."""
        await asyncio.sleep(0)
        assert sequence >= 1, sequence
        return self._log.bodies[sequence - 1] if sequence <= len(self._log.bodies) else None

    async def follow(self, after: int) -> AsyncGenerator[list[Entry], None]:
        """See `port.Ledger`."""
        if after > len(self._log.bodies):
            raise CorruptLedgerError(
                f"the log ends at {len(self._log.bodies)}, but {after} was read from it before",
                sequence=len(self._log.bodies) + 1,
            )
        while not self._closed:
            bodies = self._log.bodies[after : after + BATCH_RECORDS_MAX]
            if bodies:
                yield [Entry(after + 1 + index, body) for index, body in enumerate(bodies)]
                after += len(bodies)
            else:
                await self._log.wait()

    async def close(self) -> None:
        """See `port.Ledger`."""
        self._closed = True
        self._log.wake()
