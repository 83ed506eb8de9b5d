"""`leasehold watch`: what happens, as it happens."""

import contextlib
from collections.abc import AsyncGenerator

import click
import msgspec

from leasehold.events import codec
from leasehold.events.errors import InvalidInputError
from leasehold.events.position import position_of, sequence_of
from leasehold.events.record import Record
from leasehold.events.views import DeviceView, HistoryRow
from leasehold.projections.telling import tell
from leasehold.services.cli import render
from leasehold.services.cli.common import asynchronous, client_of, common
from leasehold.services.client import Client
from leasehold.services.feedevents import FeedEvent


@click.command()
@click.option("--since", type=click.IntRange(0, 2**53), default=None, metavar="POSITION", help="Begin behind it.")
@click.option("--host", default="", help="Only what is told of this host.")
@click.option("--kind", default="", help="Only events of this type, like lease_granted.")
@click.option("--device", default="", help="Only of this device (any of its names).")
@click.option("--lease", default="", help="Only of this lease, like L4352.")
@click.option("--tenant", default="", help="Only of this tenant's leases, and of refusals to it.")
@click.option("--ledger", "from_ledger", is_flag=True, help="Read the ledger itself, where there is no feed.")
@common
@asynchronous
async def watch(
    data: str | None,
    as_json: bool,
    since: int | None,
    host: str,
    kind: str,
    device: str,
    lease: str,
    tenant: str,
    from_ledger: bool,
) -> None:
    """Tell what happens, as it happens, until Ctrl-C."""
    if from_ledger and any((host, kind, device, lease, tenant)):
        raise click.UsageError("--ledger tells everything: nothing can be chosen with it")
    async with client_of(data) as client:
        if from_ledger:
            rows = _in_ledger(client, since)
        else:
            rows = _in_feed(client, since, host=host, kind=kind, device=device, lease=lease, tenant=tenant)
        async with contextlib.aclosing(rows):
            async for row in rows:
                if as_json:
                    render.json_line(row)
                else:
                    render.history_row(row)


async def _in_feed(
    client: Client, since: int | None, *, host: str, kind: str, device: str, lease: str, tenant: str
) -> AsyncGenerator[HistoryRow, None]:
    if device:
        shown = await client.show(device, host=host)
        if not isinstance(shown, DeviceView):
            raise InvalidInputError(f"{device[:80]!r} is a lease", field="device")
        device = shown.device
    chosen = client.events(since, host=host, kind=kind, device=device, lease=lease, tenant=tenant)
    async with contextlib.aclosing(chosen) as events:
        async for event in events:
            yield _row(event)


def _row(event: FeedEvent) -> HistoryRow:
    return HistoryRow(
        position=event.position,
        decided_at_ns=event.at_ns,
        type=event.type,
        text=tell(event.event, event.position) if event.event is not None else f"{event.type}, from a newer build",
        event=event.data,
    )


async def _in_ledger(client: Client, since: int | None) -> AsyncGenerator[HistoryRow, None]:
    """Every event behind position `since` (`None`: from now on), for ever."""
    ledger = client.ledger()
    try:
        last = await ledger.last_sequence()
        after = last if since is None else max(0, sequence_of(since) - 1)
        if after > last:
            raise InvalidInputError(f"the log ends at record {last}, before position {since}", field="since")
        async with contextlib.aclosing(ledger.follow(after)) as batches:
            async for entries in batches:
                for entry in entries:
                    for row in _rows_of(entry.sequence, codec.decode_record(entry.body, entry.sequence)):
                        if since is None or row.position > since:
                            yield row
    finally:
        await ledger.close()


def _rows_of(sequence: int, record: Record) -> list[HistoryRow]:
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
