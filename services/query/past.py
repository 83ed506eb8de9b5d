"""Histories: positions from the index, records from the log, a sentence for each event."""

import asyncio
import time
from collections.abc import Iterable
from itertools import groupby
from typing import Final

import msgspec

from leasehold.events import codec
from leasehold.events.errors import CorruptLedgerError, UnavailableError
from leasehold.events.event_types import Event
from leasehold.events.identities import split_domain_id, uuid_of
from leasehold.events.position import end_of_record, index_of, sequence_of
from leasehold.events.questions import History, Reading
from leasehold.events.record import Record
from leasehold.events.views import HistoryRow
from leasehold.projections import domains
from leasehold.projections.history import called, leases_for, of_uuid
from leasehold.projections.naming import resolve
from leasehold.projections.telling import tell
from leasehold.services.ledger.port import Ledger
from leasehold.services.looking import several_text
from leasehold.services.query.answering import parse_lease_name, parse_queued_name, part_of, unresolved_text
from leasehold.services.query.decoding import KINDS
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore

HISTORIES_AT_ONCE: Final = 4
READS_AT_ONCE: Final = 16
READ_BYTES_MAX: Final = 16 * 1024 * 1024
READ_S_MAX: Final = 0.5
"""Past one of both a page ends early and says that there is more; who asks gives up soon after a second."""
QUEUE_S_MAX: Final = 0.4
ID_SLASHES: Final = 2
"""In a domain's id; its key has one."""


_IDS: Final = {"lease": parse_lease_name, "queued": parse_queued_name}


def _may_be(kind: str, name: str) -> bool:
    """Whether something of this kind can be called so: ids of some kinds have a form."""
    return kind not in _IDS or bool(_IDS[kind](name))


class Past:
    """Answers histories."""

    def __init__(self, reader: LedgerReader, ledger: Ledger, store: FoldStore) -> None:
        self._reader = reader
        self._ledger = ledger
        self._store = store
        self._room = asyncio.Semaphore(HISTORIES_AT_ONCE)

    async def answer(self, question: History) -> Reading:
        """The events that tell of what is named, oldest first.

        Raises:
            UnavailableError: too many ask at once, or the log cannot be read now.
            CorruptLedgerError: a record that was read before is not there any more.
            StorageError: the index cannot be read.
        """
        try:
            async with asyncio.timeout(QUEUE_S_MAX):
                await self._room.acquire()
        except TimeoutError:
            raise UnavailableError("too many histories are asked for at once") from None
        try:
            return await self._answer(question)
        finally:
            self._room.release()

    async def _answer(self, question: History) -> Reading:
        as_of = end_of_record(self._reader.state.head.sequence)
        kind, names, said = await self._find(question)
        if not names:
            return Reading(outcome="not_found", as_of=as_of, message=said)
        found: set[int] = set()
        for name in names:
            found |= set(await self._positions(kind, name, question.after, question.limit + 1))
        positions = sorted(position for position in found if position <= as_of)
        rows, is_cut = await self._rows(positions[: question.limit])
        return Reading(
            outcome="ok",
            as_of=as_of,
            subject=f"{kind} {said}",
            history=rows,
            more=is_cut or len(positions) > question.limit,
        )

    async def _find(self, question: History) -> tuple[str, tuple[str, ...], str]:
        """Kind of what is asked for, its names in the index, and what it is; no names, and why, if nothing is known."""
        state, name = self._reader.state, question.name
        for kind in KINDS if not question.kind else (question.kind,):
            if kind == "device":
                resolved = resolve(state, name, question.host)
                if resolved.device is not None:
                    devices = part_of(state, resolved.device)
                    return kind, devices, ", a part of ".join(devices)
                if resolved.candidates or question.kind:
                    return kind, (), unresolved_text(resolved)
            elif kind == "domain":
                names, said = await self._find_domain(name, question.host)
                if names or said:
                    return kind, names, said
            elif _may_be(kind, name) and await self._positions(kind, name, 0, 1):
                return kind, (name,), name
        return "", (), f"nothing is known of {f'{question.kind} {name}' if question.kind else name}"

    async def _find_domain(self, text: str, host: str) -> tuple[tuple[str, ...], str]:
        """A domain's names in the index, and its id; or no names, and which domains it could be.

        One that has vanished is found by its id, and on all hosts alike by what it was called.
        """
        state = self._reader.state
        known = [domain for domain in domains.all_named(state, text) if host in ("", state.domains[domain].host)]
        if len(known) > 1:
            return (), several_text(text, known)
        if known:
            return (known[0], leases_for(uuid_of(split_domain_id(known[0])[1]))), known[0]
        uuid = domains.spelling(text.rpartition("/")[2])
        own = text if text.count("/") == ID_SLASHES else of_uuid(uuid)
        candidates = (own, called(text), leases_for(uuid)) if not host else ()
        names = [name for name in candidates if await self._positions("domain", name, 0, 1)]
        return tuple(names), text if names else ""

    async def _positions(self, kind: str, name: str, after: int, limit: int) -> list[int]:
        # In this order: a row moves from the reader to the store, never back.
        fresh = [position for position in self._reader.unnoted(kind, name) if position > after]
        stored = await self._store.positions(kind, name, after, limit)
        return sorted({*fresh, *stored})[:limit]

    async def _rows(self, positions: list[int]) -> tuple[list[HistoryRow], bool]:
        """The rows of as many of these positions as time and room allow; whether that was not all."""
        by_record = [(sequence, list(group)) for sequence, group in groupby(positions, sequence_of)]
        rows: list[HistoryRow] = []
        size, begun_s = 0, time.monotonic()
        for start in range(0, len(by_record), READS_AT_ONCE):
            if size > READ_BYTES_MAX or time.monotonic() - begun_s > READ_S_MAX:
                return rows, True
            some = by_record[start : start + READS_AT_ONCE]
            bodies = await asyncio.gather(*(self._read(sequence) for sequence, _ in some))
            for (sequence, group), body in zip(some, bodies, strict=True):
                rows += self._rows_of(codec.decode_record(body, sequence), group)
                size += len(body)
                await asyncio.sleep(0)
        return rows, False

    async def _read(self, sequence: int) -> bytes:
        body = await self._ledger.read(sequence)
        if body is None:
            raise CorruptLedgerError("it was read before, and is not there any more", sequence=sequence)
        return body

    def _rows_of(self, record: Record, positions: list[int]) -> Iterable[HistoryRow]:
        events: list[Event] = [event for step in record.steps for event in step.events]
        for position in positions:
            event = events[index_of(position)]
            yield HistoryRow(
                position=position,
                decided_at_ns=record.decided_at_ns,
                type=str(event.__struct_config__.tag),
                text=tell(event, position, self._reader.state),
                event=msgspec.Raw(codec.encode(event)),
            )
