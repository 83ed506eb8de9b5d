"""Looking: devices, leases, hosts, histories, reasons, as they are now."""

import time
from typing import Final

import click

from leasehold.events.views import DeviceView
from leasehold.services.cli import render
from leasehold.services.cli.common import asynchronous, client_of, common, complete_device
from leasehold.services.cli.values import time_text

_KINDS: Final = ("device", "lease", "holder", "host", "principal")


@click.command()
@click.option("--host", default="", help="Only this host's.")
@common
@asynchronous
async def devices(data: str | None, as_json: bool, host: str) -> None:
    """List the devices: each below its parent, with its state and why."""
    async with client_of(data) as client:
        rows = await client.devices(host=host)
    if as_json:
        for row in rows:
            render.json_line(row)
    else:
        render.devices(rows)


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
@common
@asynchronous
async def leases(data: str | None, as_json: bool, holder: str, ended: bool) -> None:
    """List the leases, in the order of their grants."""
    async with client_of(data) as client:
        rows = await client.leases(holder=holder, ended=ended)
    if as_json:
        for row in rows:
            render.json_line(row)
    else:
        render.leases(rows)


@click.command()
@common
@asynchronous
async def hosts(data: str | None, as_json: bool) -> None:
    """List the hosts, and whether what is known of them is up to date."""
    async with client_of(data) as client:
        rows = await client.hosts()
    if as_json:
        for row in rows:
            render.json_line(row)
    else:
        render.hosts(rows)


@click.command()
@click.argument("name", shell_complete=complete_device)
@click.option("--host", default="", help="On which host.")
@click.option("--kind", default="", type=click.Choice(("", *_KINDS)), help="What NAME is.")
@common
@asynchronous
async def history(data: str | None, as_json: bool, name: str, host: str, kind: str) -> None:
    """Tell what happened to a device, a lease, a holder, a host or a principal."""
    async with client_of(data) as client:
        async for row in client.history(name, host=host, kind=kind):
            if as_json:
                render.json_line(row)
            else:
                render.history_row(row)


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
    if reading.message:
        render.line(reading.message)
    for blocker in reading.blockers:
        render.line(f"  {blocker.rule}: {blocker.why}" + (f" (what helps: {blocker.help})" if blocker.help else ""))
    for lease_row in reading.leases:
        render.lease(lease_row)
    if reading.answer is not None:
        render.answered(reading.answer, as_json=False)


@click.command()
@common
@asynchronous
async def status(data: str | None, as_json: bool) -> None:
    """Show how it stands: the log, the hosts, the leases."""
    async with client_of(data) as client:
        row = await client.status()
    if as_json:
        render.json_line(row)
        return
    stale = f" (out of date: {', '.join(row.hosts_stale)})" if row.hosts_stale else ""
    click.echo(f"cluster   {row.cluster}, ledger {row.ledger_id}, era {row.era}")
    click.echo(f"log       {row.sequence} records, the last of {time_text(row.decided_at_ns)}, chain {row.chain[:16]}…")
    click.echo(f"decider   {row.decider}")
    if row.grace_until_ns > time.time_ns():
        click.echo(f"grace     no lease expires before {time_text(row.grace_until_ns)}")
    click.echo(f"hosts     {row.hosts}{stale}")
    click.echo(f"devices   {row.devices}")
    click.echo(f"leases    {row.living_leases} living, {row.ending_devices} devices not free yet")


COMMANDS: Final = (devices, show, leases, hosts, history, explain, status)
