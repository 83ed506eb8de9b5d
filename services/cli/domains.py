"""Domains: what runs on the hosts' hypervisors, and which devices that uses; as it is, or was at a moment."""

import asyncio
from typing import Final

import click
import msgspec

from leasehold.events.domains import STATES
from leasehold.events.errors import LeaseholdError
from leasehold.events.views import DomainView
from leasehold.services.cli import render, render_domains
from leasehold.services.cli.common import asynchronous, client_of, common, listing
from leasehold.services.cli.moments import Asked
from leasehold.services.cli.past import NOW, archive_option, at_option, past_of
from leasehold.services.cli.rows import form_of, place_text, write, write_past
from leasehold.services.client import Client
from leasehold.services.looking import the_one


def complete_domain(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Names of domains that begin with `text`; nothing if nobody answers at once."""

    async def names() -> list[str]:
        async with Client(patience_s=0.5) as client:
            return [row.name for row in await client.domains()]

    try:
        return [name for name in asyncio.run(names()) if name and name.startswith(text)]
    except LeaseholdError:
        return []


@click.command()
@click.option("--host", default="", help="Only this host's.")
@click.option("--state", default="", type=click.Choice(("", *STATES)), help="Only those in this state.")
@at_option
@archive_option
@listing
@asynchronous
async def domains(
    data: str | None, as_json: bool, as_csv: bool, archive: str | None, at: Asked | None, state: str, host: str
) -> None:
    """List the domains (virtual machines) with the devices that they use; as they are, or were at a moment."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    if at is None and archive is None:
        async with client_of(data) as client:
            rows = await client.domains(host=host, state=state)
        write(rows, DomainView, form, render_domains.domains)
        return
    at = at or NOW
    async with past_of(data, archive) as past:
        found = past.domains(at.moment, host=host, state=state)
        await write_past(found, DomainView, form, render_domains.domains, asked=[at])


@click.command()
@click.argument("name", shell_complete=complete_domain)
@click.option("--host", default="", help="On which host.")
@at_option
@archive_option
@common
@asynchronous
async def domain(data: str | None, as_json: bool, archive: str | None, at: Asked | None, host: str, name: str) -> None:
    """Describe one domain, by name, uuid, key or id, with all that it uses; as it is, or was at a moment."""
    if at is None and archive is None:
        async with client_of(data) as client:
            row = await client.domain(name, host=host)
        if as_json:
            render.json_line(row)
        else:
            render_domains.domain(row)
        return
    at = at or NOW
    async with past_of(data, archive) as past:
        found = past.domains(at.moment, host=host, domain=name)
        row = the_one(name, await found.all())
    render.line(place_text(found.place, [at]), err=as_json)
    if as_json:
        render.json_line({**msgspec.structs.asdict(row), "place": found.place})
    else:
        render_domains.domain(row)


COMMANDS: Final = (domains, domain)
