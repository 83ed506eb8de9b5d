"""`leasehold verify`: what it checks, its progress on a terminal, and its closing statement."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from leasehold.events.errors import StoreInUseError, UnavailableError
from leasehold.services import home, verify
from leasehold.services.cli.render import json_line
from leasehold.services.client import Client


@contextmanager
def _progress() -> Iterator[verify.Progress]:
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TextColumn("records"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


async def run_verify(data: Path, *, as_json: bool) -> bool:
    """Check the ledger of a data directory, in use or not; `True` if nothing was found.

    Raises:
        LeaseholdError: it cannot be read.
    """
    try:
        info = home.read_connection(data)
    except UnavailableError:
        info = None
    with _progress() as progress:
        if info is not None and not info.own_server:
            return _show(await _verify_live(Client(data), progress), data, as_json=as_json)
        try:
            # A copied directory still names the bus of the original, so being in use counts, not being named.
            report = await verify.verify_at_rest(data, info.cluster if info else home.DEFAULT_CLUSTER, progress)
        except StoreInUseError:
            if info is None:
                raise
            report = await _verify_live(Client(data), progress)
    return _show(report, data, as_json=as_json)


async def verify_through(client: Client, *, as_json: bool) -> bool:
    """As `run_verify`, with a key instead of a data directory."""
    with _progress() as progress:
        return _show(await _verify_live(client, progress), "the log", as_json=as_json)


def _show(report: verify.Report, where: object, *, as_json: bool) -> bool:
    if as_json:
        json_line(report)
    else:
        _tell(report, where)
    return not report.problem


async def _verify_live(client: Client, progress: verify.Progress) -> verify.Report:
    async with client:
        status = await client.status()
        witness = verify.Witness(
            name="the query service", ledger_id=status.ledger_id, sequence=status.sequence, chain=status.chain
        )
        return await verify.verify_live(client, [witness], progress)


def _tell(report: verify.Report, where: object) -> None:
    if report.problem:
        click.echo(f"NOT VERIFIED: {report.problem}", err=True)
        click.echo(f"  {where}: {report.records} records before it are in order", err=True)
        return
    click.echo(f"verified: {report.records} records, {report.events} events of ledger {report.ledger_id}")
    click.echo(f"  chain     unbroken, ends in {report.chain}")
    again = report.records - report.folded_only
    others = f"; {report.folded_only} of other rules only folded" if report.folded_only else ""
    click.echo(f"  decisions {again} records decided again, all the same{others}")
    click.echo(f"  witnesses {', '.join(report.witnesses) or 'none: a cut end would not show'}")
