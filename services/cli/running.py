"""`leasehold run`: the processes behind `up`, each by itself."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from leasehold.events.errors import InvalidInputError
from leasehold.events.hostdevs import STUBS
from leasehold.services import home

_CREDENTIALS: Final = "LEASEHOLD_CREDENTIALS"


@click.group()
def run() -> None:
    """Run one of the processes behind `up` by itself."""


def sources(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where this host's domains are told."""
    options = (
        click.option("--xend", default="", metavar="URL", help="Tell of the domains of this xend; `auto` finds it."),
        click.option("--libxl", is_flag=True, help="Tell of the domains that `xl` shows."),
        click.option("--libvirt", default="", metavar="URI", help="Tell of libvirt's domains: qemu:///system."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _process(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--data", metavar="DIR", help="Where it keeps its files; of an `up` to join, if no key is named."),
        click.option("--nats", default="", metavar="URL[,URL]", help="Where the bus is, if not where the key says."),
        click.option("--credentials", default="", envvar=_CREDENTIALS, metavar="FILE", help="Its key."),
        click.option("--host", default="", help="Name of this host."),
        click.option("--name", default="", help="Tells it apart from others of its kind in the same directory."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _run(
    role: str,
    data: str | None,
    nats: str,
    credentials: str,
    host: str,
    name: str,
    *,
    source: str = "",
    stub: str = "",
    door: str = "",
) -> None:
    from leasehold.services import processes

    if nats and not credentials:
        raise InvalidInputError("to come in there, a key is needed: name it with --credentials", field="credentials")
    directory = home.chosen_data_dir(data)
    if directory is None:
        if credentials:
            raise InvalidInputError("name a directory for its files with --data", field="data")
        directory = home.find_data_dir(None)
    processes.run_role(
        processes.Place(
            role=role, data=directory, host=host, name=name, nats=nats, credentials=credentials, source=source,
            stub=stub, door=door,
        )
    )
    processes.leave(0)


@run.command()
@_process
def allocator(data: str | None, nats: str, credentials: str, host: str, name: str) -> None:
    """Decide requests; several may run, and one of them decides."""
    _run("allocator", data, nats, credentials, host, name)


@run.command()
@_process
def query(data: str | None, nats: str, credentials: str, host: str, name: str) -> None:
    """Answer questions."""
    _run("query", data, nats, credentials, host, name)


@run.command()
@_process
def archive(data: str | None, nats: str, credentials: str, host: str, name: str) -> None:
    """Keep the ledger's records again in files, and answer questions of the past."""
    _run("archive", data, nats, credentials, host, name)


@run.command()
@_process
def feed(data: str | None, nats: str, credentials: str, host: str, name: str) -> None:
    """Tell the ledger's events to everybody who listens; several may run, and each event is told once."""
    _run("feed", data, nats, credentials, host, name)


@run.command()
@_process
def watcher(data: str | None, nats: str, credentials: str, host: str, name: str) -> None:
    """Watch this machine's devices, and report them."""
    _run("watcher", data, nats, credentials, host, name)


@run.command()
@_process
def creator(data: str | None, nats: str, credentials: str, host: str, name: str) -> None:
    """Make and destroy virtual HBAs and mediated devices on this machine, as operators order it."""
    _run("creator", data, nats, credentials, host, name)


@run.command()
@_process
@click.option("--stub", type=click.Choice(STUBS), help="What PCI functions are bound to, if not what suits.")
@click.option("--door", default="", metavar="PATH", help="Where hooks ask, if not /run/leasehold/binder.sock.")
def binder(
    data: str | None, nats: str, credentials: str, host: str, name: str, stub: str | None, door: str
) -> None:
    """Hand the leased devices of this machine over, and take them back: it binds their drivers, and needs root."""
    _run("binder", data, nats, credentials, host, name, stub=stub or "", door=door)


@run.command()
@_process
@sources
def poller(
    data: str | None,
    nats: str,
    credentials: str,
    host: str,
    name: str,
    xend: str,
    *,
    libxl: bool,
    libvirt: str,
) -> None:
    """Tell of this machine's domains, as its hypervisor shows them: from xend, libxl or libvirt."""
    from leasehold.services.poller.sources import source_word

    source = source_word(xend=xend, libxl=libxl, libvirt=libvirt)
    if not source:
        raise InvalidInputError("say where domains are told: --xend URL, --libxl or --libvirt URI", field="source")
    _run("poller", data, nats, credentials, host, name, source=source)


@run.command()
@click.option("--nats", default="", metavar="URL[,URL]", help="Where the bus is, if not where the key says.")
@click.option("--credentials", required=True, envvar=_CREDENTIALS, metavar="FILE", help="A keeper's key.")
@click.option("--replicas", type=click.IntRange(1, 5), default=1, show_default=True, help="On how many servers.")
def keeper(nats: str, credentials: str, replicas: int) -> None:
    """Make the streams, unless they are there, and see that they can be trusted; then end."""
    from leasehold.services.credentials import read_credential
    from leasehold.services.ledger.streams import make_streams

    asyncio.run(make_streams(read_credential(Path(credentials)), nats.split(",") if nats else [], replicas=replicas))


@run.command()
@click.option("--data", metavar="DIR", required=True, help="Where it keeps the log; who is let in stands there, too.")
@click.option("--listen", default="127.0.0.1:4222", show_default=True, metavar="ADDRESS:PORT", help="For clients.")
@click.option("--tls-cert", metavar="FILE", help="Certificate, in PEM; needed for other addresses than loopback.")
@click.option("--tls-key", metavar="FILE", help="Its key.")
@click.option("--tls-ca", metavar="FILE", help="Whose certificates the other servers must show.")
@click.option("--cluster-listen", default="", metavar="ADDRESS:PORT", help="For the other servers of a cluster.")
@click.option("--cluster-route", multiple=True, metavar="ADDRESS:PORT", help="Where another server listens; repeated.")
@click.option("--server-name", default="", help="This server's own name in the cluster.")
def nats(
    data: str,
    listen: str,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    cluster_listen: str,
    cluster_route: tuple[str, ...],
    server_name: str,
) -> None:
    """Run our NATS server alone; three of them keep a log that survives the loss of one.

    Who is let in: `leasehold credentials add --data DIR --cluster NAME ROLE NAME`. All servers of a cluster need the
    same principals.json, and show each other what LEASEHOLD_CLUSTER_SECRET holds.
    """
    from leasehold.services import serving

    tls = serving.tls_of(tls_cert, tls_key, tls_ca)
    # Not an option: whoever is on this machine can read the words of a command.
    secret = os.environ.get("LEASEHOLD_CLUSTER_SECRET", "")
    peer = serving.peer_of(cluster_listen, cluster_route, secret, server_name)
    asyncio.run(serving.serve(Path(data).absolute(), listen=listen, tls=tls, peer=peer, say=click.echo))
