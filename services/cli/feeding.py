"""`leasehold feed`: how it stands with the feed, and telling all of it again."""

import asyncio
from pathlib import Path
from typing import Final

import click

from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.position import sequence_of
from leasehold.services import home
from leasehold.services.cli import render
from leasehold.services.cli.common import asynchronous, client_of, common
from leasehold.services.cli.values import time_text
from leasehold.services.client import Client
from leasehold.services.credentials import own_credential, read_credential
from leasehold.services.feed.standing import Standing, feed_standing

_ASK_S: Final = 2.0
_MIB: Final = 1024 * 1024


@click.group()
def feed() -> None:
    """The ledger's events, one message each, for who subscribes to them."""


@feed.command()
@common
@asynchronous
async def status(data: str | None, as_json: bool) -> None:
    """Show what the feed holds, and how far it is behind the ledger."""
    async with client_of(data) as client:
        row = await client.status()
        standing = await feed_standing(client.connection, client.subjects)
    if as_json:
        render.json_line(standing)
        return
    tell_feed(standing, row.sequence)
    if standing.messages:
        render.line(f"ledger    {standing.ledger_id}, era {standing.era}")
        size = f"{standing.messages} messages, {standing.bytes / _MIB:.1f} MiB"
        render.line(f"kept      positions {standing.first} to {standing.last} in {size}")


@feed.command()
@click.option("--data", metavar="DIR", help="Data directory of the `up` whose feed it is.")
@click.option("--credentials", metavar="FILE", help="A feed's key, where there is none in a data directory.")
@click.option("--nats", default="", metavar="URL[,URL]", help="Where the bus is, if not where the key says.")
@asynchronous
async def rebuild(data: str | None, credentials: str | None, nats: str) -> None:
    """Empty the feed, and have it told again from the ledger: the same events under the same positions.

    The feeds that run do that within a second or two. Who subscribes sees old positions again, and passes them over.
    """
    from leasehold.services.connection import connect, disconnect
    from leasehold.services.feed.stream import empty_events, state_of_events

    info = None if credentials else home.read_connection(home.find_data_dir(data))
    key = own_credential(info, "feed") if info is not None else read_credential(Path(str(credentials)))
    if key.role != "feed":
        raise InvalidInputError(f"it is a key of role {key.role}; needed is one of role feed", field="credentials")
    urls = nats.split(",") if nats else list(key.urls) if info is None else info.urls
    if not urls:
        raise InvalidInputError("the key names no address of a bus; name one", field="nats")
    connection = await connect(urls, credential=key, name="feed rebuild")
    try:
        state = await state_of_events(connection)
        await empty_events(connection, state.last_seq)
    finally:
        await disconnect(connection)
    render.line(f"emptied of {state.messages} messages; the feeds that run tell all again")


async def standing_of(client: Client) -> Standing | None:
    """How it stands with the feed; `None` if that cannot be known soon."""
    try:
        async with asyncio.timeout(_ASK_S):
            return await feed_standing(client.connection, client.subjects)
    except (TimeoutError, UnavailableError):
        return None


def tell_feed(standing: Standing | None, last: int) -> None:
    """A line of `leasehold status`; `last`: the ledger's last record."""
    if standing is None:
        render.line("feed      not known")
    elif not standing.messages:
        render.line("feed      nothing is told")
    else:
        behind = max(0, last - sequence_of(standing.last))
        late = f", {behind} records behind the ledger" if behind else ""
        render.line(f"feed      told up to position {standing.last}{late}, of {time_text(standing.at_ns)}")
