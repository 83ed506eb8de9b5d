"""What `leasehold up` shows: what it started, where its data is, what is weaker here, and what to type next."""

import logging

import click

from leasehold.events.inputs import BINDER, POLLER
from leasehold.services.cli.render import line
from leasehold.services.client import Client
from leasehold.services.nodedev.tree import tree
from leasehold.services.up import Options, Up, weaker_promises

_DEVICES_SHOWN_MAX = 40


async def run_up(options: Options) -> None:
    """Start, show, and run until told to end.

    Raises:
        LeaseholdError: it did not come up, or cannot go on.
    """
    logging.basicConfig(level=logging.WARNING, format="leasehold: %(message)s")
    line(f"starting in {options.data} …")
    await Up(options, click.echo).run(_show)
    click.echo("stopped; leases and history are kept")


async def _show(up: Up) -> None:
    info = up.info
    async with Client(info.data) as client:
        status = await client.status()
        rows = await client.devices()
        stale = {row.host: row.stale for row in await client.hosts()}[up.options.host]
    click.echo()
    click.echo(f"  bus         {info.url} (nats-server; log nats-server.log)")
    click.echo(f"  processes   {', '.join(up.titles)} (each has its log there)")
    click.echo(f"  data        {info.data}")
    click.echo(f"  ledger      {status.ledger_id}, {status.sequence} records, cluster {status.cluster}")
    click.echo()
    click.echo("weaker here than it could be:")
    for promise in weaker_promises(up.options):
        click.echo(f"  - {promise}")
    if stale:
        click.echo()
        line(f"nothing of {up.options.host} is granted for now: {stale}")
        for agent, is_wanted in ((POLLER, bool(up.options.domains)), (BINDER, up.options.manage)):
            if not is_wanted and f"{agent}: " in stale:
                line(f"  if no {agent} will come back here: leasehold retire {up.options.host} {agent} --reason WHY")
    click.echo()
    free = [row for row in rows if row.state == "free"]
    click.echo(f"{len(rows)} devices, {len(free)} free:")
    for row, depth in list(tree(rows))[:_DEVICES_SHOWN_MAX]:
        reason = f": {row.reason}" if row.reason else ""
        line(f"  {'  ' * depth}{row.name} [{row.state}{reason}]")
    if len(rows) > _DEVICES_SHOWN_MAX:
        click.echo(f"  … and {len(rows) - _DEVICES_SHOWN_MAX} more: leasehold devices")
    click.echo()
    leasable = [row for row in free if row.kind in ("pci", "usb_device")]
    name = leasable[0].name if leasable else "DEVICE"
    click.echo("what to type next, in another terminal:")
    click.echo("  leasehold devices")
    click.echo(f"  leasehold lease {name} --for me --ttl 10m")
    click.echo(f"  leasehold history {name}")
    click.echo("Ctrl-C ends it; leases and history are kept.")
