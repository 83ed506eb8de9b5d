"""The past: who had what when, what changed, why, and how much; asked of the archives, or of one's files alone."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import click

from leasehold.events.errors import InvalidInputError
from leasehold.events.questions import Moment
from leasehold.events.views import CauseView, ChangeView, OwnerView, UsageView
from leasehold.services.cli import render, render_past
from leasehold.services.cli.common import asynchronous, client_of, complete_device, has_credentials, listing
from leasehold.services.cli.moments import Asked, MomentType
from leasehold.services.cli.rows import form_of, write_past
from leasehold.services.cli.values import Duration
from leasehold.services.past import Past

NOW: Final = Asked(Moment())
_METAVAR: Final = "TIME|POSITION"


def at_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--at`, `None` if it is not given."""
    help_text = "As it was then: 2026-11-03T14:05Z, 14:05, yesterday, '2h ago', or a position like 4352."
    return click.option("--at", type=MomentType(is_end=True), metavar=_METAVAR, help=help_text)(function)


def archive_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--archive`."""
    help_text = "Ask the archive in this directory, without a bus."
    return click.option("--archive", metavar="DIR", help=help_text)(function)


def _asking(function: Callable[..., Any]) -> Callable[..., Any]:
    """What all questions about the past take."""
    return archive_option(listing(function))


@asynccontextmanager
async def past_of(data: str | None, archive: str | None) -> AsyncIterator[Past]:
    """Who is asked: the archives on the bus, or a directory.

    Raises:
        InvalidInputError: both are named.
    """
    if archive is None:
        async with client_of(data) as client:
            yield Past(client)
        return
    if data or has_credentials():
        raise InvalidInputError(
            "an archive's files are asked without a bus: without --data, --credentials", field="archive"
        )
    from leasehold.services.offline import OfflineArchive

    async with OfflineArchive(Path(archive), say=lambda text: render.line(text, err=True)) as source:
        yield Past(source)


@click.command()
@at_option
@click.option("--host", default="", help="Only this host's devices.")
@click.option("--device", default="", help="Only this device, by any name that it had then.")
@_asking
@asynchronous
async def owners(
    data: str | None, archive: str | None, at: Asked | None, host: str, device: str, as_json: bool, as_csv: bool
) -> None:
    """List who has which device, or had it at a moment."""
    form, asked = form_of(as_json=as_json, as_csv=as_csv), at or NOW
    async with past_of(data, archive) as past:
        rows = past.owners(asked.moment, host=host, device=device)
        await write_past(rows, OwnerView, form, render_past.owners, asked=[asked])


@click.command()
@click.option(
    "--from", "since", type=MomentType(is_end=False), metavar=_METAVAR, required=True, help="The earlier one."
)
@click.option(
    "--to", type=MomentType(is_end=True), metavar=_METAVAR, default=NOW, help="The later one; by default now."
)
@click.option("--host", default="", help="Only this host's devices.")
@_asking
@asynchronous
async def diff(
    data: str | None, archive: str | None, since: Asked, to: Asked, host: str, as_json: bool, as_csv: bool
) -> None:
    """List what is different between two moments: owners, presence, descriptions of devices."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with past_of(data, archive) as past:
        rows = past.diff(since.moment, to.moment, host=host)
        await write_past(rows, ChangeView, form, render_past.changes, asked=[since, to])


@click.command()
@click.argument("device", shell_complete=complete_device)
@click.option(
    "--between", type=(MomentType(is_end=False), MomentType(is_end=True)), metavar=f"{_METAVAR} {_METAVAR}",
    help="From one moment to another, like `--between yesterday today`; by default all of its past.",
)  # fmt: skip
@click.option("--host", default="", help="On which host it is.")
@_asking
@asynchronous
async def who(
    data: str | None,
    archive: str | None,
    device: str,
    between: tuple[Asked, Asked] | None,
    host: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """List who had a device, one after the other."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with past_of(data, archive) as past:
        if between is None:
            rows = past.who(device, host=host)
        else:
            rows = past.who(device, host=host, since=between[0].moment, to=between[1].moment)
        await write_past(rows, OwnerView, form, render_past.owners_of_one, asked=between or ())


@click.command()
@click.argument("request", metavar="REQUEST")
@click.option("--principal", default="", help="Whose request; by default your own, else the only one of this id.")
@_asking
@asynchronous
async def blame(
    data: str | None, archive: str | None, request: str, principal: str, as_json: bool, as_csv: bool
) -> None:
    """Say why a request (by its id) was decided as it was: the chain of causes."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with past_of(data, archive) as past:
        await write_past(past.blame(request, principal=principal), CauseView, form, render_past.causes)


@click.command()
@click.option(
    "--from", "since", type=MomentType(is_end=False), metavar=_METAVAR, default="1d ago", show_default=True,
    help="Where the span begins.",
)  # fmt: skip
@click.option("--to", type=MomentType(is_end=True), metavar=_METAVAR, default=NOW, help="Its end; by default now.")
@click.option("--every", "every_ms", type=Duration(), default=None, help="In spans of so much time each, like 1h.")
@click.option("--by", type=click.Choice(("device", "holder")), default="device", show_default=True, help="Whose use.")
@click.option("--host", default="", help="Only this host's devices.")
@click.option("--device", default="", help="Only this device.")
@click.option("--holder", default="", help="Only this holder's leases.")
@_asking
@asynchronous
async def utilisation(
    data: str | None,
    archive: str | None,
    since: Asked,
    to: Asked,
    every_ms: int | None,
    by: str,
    host: str,
    device: str,
    holder: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show how much devices were held, or how much holders held, over time."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    table = render_past.usage_of_devices if by == "device" else render_past.usage_of_holders
    async with past_of(data, archive) as past:
        rows = past.utilisation(
            since.moment, to.moment, every_ms=every_ms, by=by, host=host, device=device, holder=holder
        )
        await write_past(rows, UsageView, form, table, asked=[since, to])


COMMANDS: Final = (owners, diff, who, blame, utilisation)
