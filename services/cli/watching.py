"""Following the log for `leasehold watch`."""

import contextlib
from collections.abc import AsyncIterator

import msgspec

from leasehold.events import codec
from leasehold.events.position import position_of, sequence_of
from leasehold.events.record import Record
from leasehold.events.views import HistoryRow
from leasehold.projections.telling import tell
from leasehold.services.client import Client


async def follow(client: Client, since: int | None) -> AsyncIterator[HistoryRow]:
    """Every event behind position `since` (`None`: from now on), for ever."""
    ledger = client.ledger()
    after = await ledger.last_sequence() if since is None else max(0, sequence_of(since) - 1)
    try:
        async with contextlib.aclosing(ledger.follow(after)) as batches:
            async for entries in batches:
                for entry in entries:
                    for row in rows_of(entry.sequence, codec.decode_record(entry.body, entry.sequence)):
                        if since is None or row.position > since:
                            yield row
    finally:
        await ledger.close()


def rows_of(sequence: int, record: Record) -> list[HistoryRow]:
    """The events of one record."""
    events = [event for step in record.steps for event in step.events]
    return [
        HistoryRow(
            position=position_of(sequence, index),
            decided_at_ns=record.decided_at_ns,
            type=str(event.__struct_config__.tag),
            text=tell(event, position_of(sequence, index)),
            event=msgspec.Raw(codec.encode(event)),
        )
        for index, event in enumerate(events)
    ]
