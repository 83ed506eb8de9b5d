"""Looking: devices, leases, hosts, histories, reasons, as they are now."""

import time
from collections.abc import AsyncIterator
from typing import Final

import click
import msgspec

from leasehold.events.questions import Moment
from leasehold.events.views import DeviceView, HistoryRow, HostView, LeaseView
from leasehold.services.cli import render
from leasehold.services.cli.archiving import archive_view, tell_archive
from leasehold.services.cli.common import asynchronous, client_of, common, complete_device, listing
from leasehold.services.cli.feeding import standing_of, tell_feed
from leasehold.services.cli.moments import Asked, MomentType
from leasehold.services.cli.rows import form_of, write, write_each
from leasehold.services.cli.values import time_text
from leasehold.services.client import Client
from leasehold.services.past import Past

_KINDS: Final = ("device", "lease", "queued", "host", "domain", "holder", "class", "principal")


@click.command()
@click.argument("name", shell_complete=complete_device)
@click.option("--host", default="", help="On which host.")
@common
@asynchronous
async def show(data: str | None, as_json: bool, name: str, host: str) -> None:
    """Show one device (by name, key, address or sysfs path) or one lease (L4352)."""
    async with client_of(data) as client:
        row = await client.show(name, host=host)
    if as_json:
        render.json_line(row)
    elif isinstance(row, DeviceView):
        render.device(row)
    else:
        render.lease(row)


@click.command()
@click.option("--holder", default="", help="Only this holder's.")
@click.option("--all", "ended", is_flag=True, help="Those that have ended, too.")
@listing
@asynchronous
async def leases(data: str | None, as_json: bool, as_csv: bool, holder: str, ended: bool) -> None:
    """List the leases, in the order of their grants."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        rows = await client.leases(holder=holder, ended=ended)
    write(rows, LeaseView, form, render.leases)


@click.command()
@listing
@asynchronous
async def hosts(data: str | None, as_json: bool, as_csv: bool) -> None:
    """List the hosts, and whether what is known of them is up to date."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        rows = await client.hosts()
    write(rows, HostView, form, render.hosts)


@click.command()
@click.argument("name", shell_complete=complete_device)
@click.option("--host", default="", help="On which host.")
@click.option("--kind", default="", type=click.Choice(("", *_KINDS)), help="What NAME is.")
@click.option("--since", type=MomentType(is_end=False), metavar="TIME|POSITION", default=None, help="Begin behind it.")
@click.option("--until", type=MomentType(is_end=True), metavar="TIME|POSITION", default=None, help="End there.")
@listing
@asynchronous
async def history(
    data: str | None,
    as_json: bool,
    as_csv: bool,
    name: str,
    host: str,
    kind: str,
    since: Asked | None,
    until: Asked | None,
) -> None:
    """Tell what happened to a device, a domain, a lease, a holder, a host or a principal."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        after, last = [await _position_of(client, asked) for asked in (since, until)]
        rows = client.history(name, host=host, kind=kind, after=after or 0)
        await write_each(_until(rows, last), HistoryRow, form, render.history_row)


async def _position_of(client: Client, asked: Asked | None) -> int | None:
    """The position that is asked for; of a time the archive knows it."""
    if asked is None or asked.moment == Moment():
        return None
    return asked.moment.position or (await Past(client).place(asked.moment)).at_position


async def _until(rows: AsyncIterator[HistoryRow], last: int | None) -> AsyncIterator[HistoryRow]:
    async for row in rows:
        if last is not None and row.position > last:
            return
        yield row


@click.command()
@click.argument("name")
@click.option("--host", default="", help="On which host.")
@click.option("--for", "holder", default="", help="For whom a lease of the device is considered.")
@common
@asynchronous
async def explain(data: str | None, as_json: bool, name: str, host: str, holder: str) -> None:
    """Say why a device can or cannot be leased now, or how a request (by its id) was decided."""
    async with client_of(data) as client:
        reading = await client.explain(name, host=host, holder=holder)
    if as_json:
        render.json_line(reading)
        return
    if reading.message and reading.explanation is None:
        render.line(reading.message)
    for blocker in reading.blockers:
        render.line(f"  {blocker.rule}: {blocker.why}" + (f" (what helps: {blocker.help})" if blocker.help else ""))
    if reading.explanation is not None:
        from leasehold.services.cli.render_scheduling import explanation

        explanation(reading.explanation)
    for lease_row in reading.leases:
        render.lease(lease_row)
    if reading.answer is not None:
        render.answered(reading.answer, as_json=False)


@click.command()
@common
@asynchronous
async def status(data: str | None, as_json: bool) -> None:
    """Show how it stands: the log, its archive and feed, the hosts, the leases."""
    async with client_of(data) as client:
        row = await client.status()
        archive, feed = await archive_view(client), await standing_of(client)
    if as_json:
        render.json_line({**msgspec.to_builtins(row), "archive": archive, "feed": feed})
        return
    stale = f" (out of date: {', '.join(row.hosts_stale)})" if row.hosts_stale else ""
    click.echo(f"cluster   {row.cluster}, ledger {row.ledger_id}, era {row.era}")
    click.echo(f"log       {row.sequence} records, the last of {time_text(row.decided_at_ns)}, chain {row.chain[:16]}…")
    tell_archive(archive, row.sequence)
    tell_feed(feed, row.sequence)
    click.echo(f"decider   {row.decider}")
    if row.grace_until_ns > time.time_ns():
        click.echo(f"grace     no lease expires before {time_text(row.grace_until_ns)}")
    click.echo(f"hosts     {row.hosts}{stale}")
    click.echo(f"devices   {row.devices}")
    click.echo(f"leases    {row.living_leases} living, {row.ending_devices} devices not free yet")


COMMANDS: Final = (show, leases, hosts, history, explain, status)
