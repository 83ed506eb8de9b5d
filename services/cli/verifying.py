"""What `leasehold verify` and `leasehold replay` do: where they read, their progress, and their closing statements."""

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from leasehold.events.errors import InvalidInputError, StoreInUseError, UnavailableError
from leasehold.services import home
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.cli.render import json_line
from leasehold.services.client import Client
from leasehold.services.ledger.port import Ledger
from leasehold.services.verifying import atrest
from leasehold.services.verifying.archives import ArchiveFiles
from leasehold.services.verifying.checks import Progress, Report, archive_of, check_archive
from leasehold.services.verifying.models import check_models
from leasehold.services.verifying.replaying import Replayed
from leasehold.services.verifying.replaying import replay as replay_ledger
from leasehold.services.verifying.witnesses import Witness

SAY_EVERY_S: Final = 10.0
"""How often a line tells how far it is, where nobody looks at a terminal."""


class Span(msgspec.Struct, frozen=True):
    """Which records are decided again; `last` 0: up to the end."""

    first: int
    last: int


class How(msgspec.Struct, frozen=True, kw_only=True):
    """How a check is to be shown, and whether the read models are to be built anew for it."""

    as_json: bool
    models: bool


class _Rate(ProgressColumn):
    """How many records a second."""

    def render(self, task: Task) -> Text:
        """Of the last half minute, as rich counts it."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield _Lines(what).tell
        return
    columns = (
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("records"), _Rate(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


class _Lines:
    """Progress for a log file: nothing if it is soon over."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._told_s = time.monotonic()

    def tell(self, done: int, total: int) -> None:
        """A line now and then."""
        now_s = time.monotonic()
        if now_s - self._told_s >= SAY_EVERY_S and done < total:
            self._told_s = now_s
            click.echo(f"{self._what}: {done:,} of {total:,} records", err=True)


# --- verify -----------------------------------------------------------------------------------------------------------


async def run_verify(data: Path, archive: Path | None, how: How) -> bool:
    """Check the ledger of a data directory, in use or not, and compare it with an archive: its own, unless another is
    named; `True` if nothing was found.

    Raises:
        LeaseholdError: it cannot be read.
    """
    info = _connection(data)
    files = await ArchiveFiles.open(archive) if archive is not None else await archive_of(data)
    with _progress("checking") as progress:
        if info is not None and not info.own_server:
            return await _show(await _verify_live(Client(data), files, progress), data, files, how)
        try:
            # A copied directory still names the bus of the original, so being in use counts, not being named.
            report = await atrest.verify_at_rest(data, info.cluster if info else home.DEFAULT_CLUSTER, progress, files)
        except StoreInUseError:
            if info is None:
                raise
            report = await _verify_live(Client(data), files, progress)
    return await _show(report, data, files, how)


async def verify_through(client: Client, archive: Path | None, how: How) -> bool:
    """As `run_verify`, with a key instead of a data directory."""
    files = await ArchiveFiles.open(archive) if archive is not None else None
    with _progress("checking") as progress:
        report = await _verify_live(client, files, progress)
    return await _show(report, "the log", files, how)


async def verify_archive(directory: Path, how: How) -> bool:
    """Check an archive by itself, without a bus; `True` if nothing was found.

    Raises:
        LeaseholdError: there is none, or it is in use.
    """
    files = await ArchiveFiles.open(directory)
    with _progress("checking") as progress:
        report = await check_archive(files, progress)
    return await _show(report, directory, files, how)


async def _verify_live(client: Client, archive: ArchiveFiles | None, progress: Progress) -> Report:
    async with client:
        status = await client.status()
        witness = Witness(
            name="the query service", ledger_id=status.ledger_id, sequence=status.sequence, chain=status.chain,
            era=status.era,
        )  # fmt: skip
        return await atrest.verify_live(client, [witness], progress, archive)


def _connection(data: Path) -> home.ConnectionInfo | None:
    with contextlib.suppress(UnavailableError):
        return home.read_connection(data)
    return None


async def _show(report: Report, where: object, archive: ArchiveFiles | None, how: How) -> bool:
    if how.models and not report.problem:
        if archive is None:
            raise InvalidInputError("there is no archive; name one with --archive", field="models")
        found = await check_models(archive.directory)
        report = msgspec.structs.replace(report, problem=found.problem, modelled=found.sequence)
    if how.as_json:
        json_line(report)
    else:
        _tell(report, where)
    return not report.problem


def _tell(report: Report, where: object) -> None:
    if report.problem:
        click.echo(f"NOT VERIFIED: {report.problem}", err=True)
        click.echo(f"  {where}: {report.records} records before it are in order", err=True)
        if report.help:
            click.echo(f"  {report.help}", err=True)
        return
    click.echo(f"verified: {report.records} records, {report.events} events of ledger {report.ledger_id}")
    click.echo(f"  chain     unbroken, ends in {report.chain}")
    again = report.records - report.folded_only
    click.echo(f"  decisions {again} records decided again, all the same{_others(report.folded_only)}")
    click.echo(f"  owners    {report.leases} leases, each as it was asked for, no device of two at a time")
    if report.archived:
        click.echo(f"  archive   {report.archived} records in {report.segments} segments, each the same")
    elif report.segments:
        click.echo(f"  segments  {report.segments}, each behind the one before")
    if report.modelled:
        click.echo(f"  models    up to record {report.modelled} as they are built anew")
    click.echo(f"  witnesses {', '.join(report.witnesses) or 'none: a cut end would not show'}")


def _others(folded_only: int) -> str:
    return f"; {folded_only} only folded" if folded_only else ""


# --- replay -----------------------------------------------------------------------------------------------------------


async def replay_archive(directory: Path, span: Span, *, as_json: bool) -> bool:
    """Decide again what an archive holds, without a bus; `True` if the same comes out.

    Raises:
        LeaseholdError: there is none, or it cannot be read.
    """
    await ArchiveFiles.open(directory)
    return await _replay(ArchivedLedger(directory), directory, span, as_json=as_json)


async def replay_through(client: Client, span: Span, *, as_json: bool) -> bool:
    """As `run_replay`, with a key instead of a data directory."""
    async with client:
        return await _replay(client.ledger(), "the log", span, as_json=as_json)


async def run_replay(data: Path, span: Span, *, as_json: bool) -> bool:
    """Decide again what the ledger of a data directory holds, in use or not; `True` if the same comes out.

    Raises:
        LeaseholdError: it cannot be read.
    """
    async with _ledger_of(data) as ledger:
        return await _replay(ledger, data, span, as_json=as_json)


@asynccontextmanager
async def _ledger_of(data: Path) -> AsyncIterator[Ledger]:
    info = _connection(data)
    async with contextlib.AsyncExitStack() as stack:
        try:
            if info is not None and not info.own_server:
                raise StoreInUseError
            at_rest = atrest.ledger_at_rest(data, info.cluster if info else home.DEFAULT_CLUSTER)
            ledger = await stack.enter_async_context(at_rest)
        except StoreInUseError:
            if info is None:
                raise
            ledger = (await stack.enter_async_context(Client(data))).ledger()
        yield ledger


async def _replay(ledger: Ledger, where: object, span: Span, *, as_json: bool) -> bool:
    try:
        with _progress("deciding again") as progress:
            found = await replay_ledger(ledger, progress, first=span.first, last=span.last)
    finally:
        await ledger.close()
    if as_json:
        json_line(found)
    else:
        _tell_replayed(found, where)
    return not found.problem


def _tell_replayed(found: Replayed, where: object) -> None:
    seconds = found.took_ms / 1_000
    rate = f"{found.events / seconds:,.0f} events/s" if seconds else "at once"
    if not found.problem:
        click.echo(f"replayed: {found.records} records, {found.events} events of ledger {found.ledger_id}")
        click.echo(f"  decisions {found.decided} records decided again, all the same{_others(found.folded_only)}")
        click.echo(f"  chain     unbroken, ends in {found.chain}")
        click.echo(f"  took      {seconds:.1f} s, {rate}")
        return
    difference = found.difference
    click.echo(f"NOT THE SAME: {found.problem if difference is None else _place(found)}", err=True)
    if difference is not None:
        if difference.given:
            click.echo(f"  input         {difference.given}", err=True)
        click.echo(f"  recorded      {difference.recorded}", err=True)
        click.echo(f"  decided again {difference.decided}", err=True)
    click.echo(f"  {where}: {found.records} records before it are as they were decided", err=True)


def _place(found: Replayed) -> str:
    difference = found.difference
    assert difference is not None
    if difference.step < 0:
        return f"record {difference.sequence}: the decisions come out the same, but it would be written otherwise"
    return (
        f"record {difference.sequence}: step {difference.step}, the event at position {difference.position}, is not "
        "what comes out of its input"
    )
