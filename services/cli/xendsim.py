"""`leasehold xend-sim`: a stand-in for xend, to try things out without Xen."""

import asyncio
import ipaddress
import json
import signal
from pathlib import Path

import click

from leasehold.events.errors import InvalidInputError
from leasehold.services import home
from leasehold.services.cli.common import asynchronous

_DIR = click.option("--dir", "directory", metavar="DIR", help="Where its sockets and its host are kept.")


def _directory(given: str | None) -> Path:
    return Path(given).absolute() if given else home.default_data_dir().with_name("leasehold-xend-sim")


def _place(text: str | None, field: str) -> tuple[str, int] | None:
    """Address and port to listen on; only of this machine, since whoever comes in may do everything."""
    if text is None:
        return None
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") or "127.0.0.1"
    try:
        if not ipaddress.ip_address(address).is_loopback:
            raise InvalidInputError(f"{address} is no address of this machine alone, like 127.0.0.1", field=field)
        if not 0 <= int(port) <= 65_535:
            raise ValueError
    except ValueError as error:
        raise InvalidInputError(f"{text[:80]!r} is not ADDRESS:PORT, like 127.0.0.1:8000", field=field) from error
    return address, int(port)


@click.group("xend-sim", invoke_without_command=True)
@_DIR
@click.option("--http", metavar="ADDRESS:PORT", help="Speak HTTP there, too; port 0: any.")
@click.option("--xmlrpc", metavar="ADDRESS:PORT", help="Speak XML-RPC there, too.")
@click.option("--no-http", is_flag=True, help="As xend comes: no HTTP, only XML-RPC on its Unix socket.")
@click.option("--domains", type=click.IntRange(0, 4_000), default=0, help="So many domains to begin with.")
@click.option("--scenario", metavar="FILE", help="What to begin with, as JSON.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of what is made up; not 0: keys in any order, too.")
@click.pass_context
def xend_sim(
    context: click.Context,
    directory: str | None,
    http: str | None,
    xmlrpc: str | None,
    no_http: bool,
    domains: int,
    scenario: str | None,
    seed: int,
) -> None:
    """Play xend of Xen 4.4 before a little hypervisor; until Ctrl-C. It survives being killed, as guests do."""
    if context.invoked_subcommand is not None:
        return
    from leasehold.services.xendsim.server import Options

    options = Options(
        directory=home.make_private_dir(_directory(directory)),
        http=_place(http, "http"),
        xmlrpc=_place(xmlrpc, "xmlrpc"),
        with_http=not no_http,
        domains=domains,
        seed=seed,
        scenario=Path(scenario) if scenario else None,
    )
    asyncio.run(_run(options))


async def _run(options: "object") -> None:
    from leasehold.services.xendsim.server import Options, Stand

    assert isinstance(options, Options)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    stand = Stand(options)
    async with stand.listening():
        for address in stand.addresses:
            click.echo(f"xend on {address}")
        click.echo("ready")
        await stopping.wait()


@xend_sim.command("do", context_settings={"ignore_unknown_options": True})
@_DIR
@click.argument("words", nargs=-1, required=True, metavar="ORDER…")
@asynchronous
async def do(directory: str | None, words: tuple[str, ...]) -> None:
    """Make something happen in the stand-in that runs: crash DOM, reboot DOM, down MS, …; `do help` lists all."""
    from leasehold.services.xendsim.control import HELP
    from leasehold.services.xendsim.server import give_order

    if words == ("help",):
        width = max(map(len, HELP))
        for order, meaning in HELP.items():
            click.echo(f"{order:{width}}  {meaning}")
        return
    said = await give_order(_directory(directory), list(words))
    click.echo(said if isinstance(said, str) else json.dumps(said, indent=2))
