"""`leasehold restore-ledger`: its options, its progress on a terminal, and what it says in the end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from leasehold.events import limits
from leasehold.services import home
from leasehold.services.cli.common import asynchronous
from leasehold.services.cli.render import json_line, shown

if TYPE_CHECKING:
    from leasehold.services.restoring import Options, Restored
    from leasehold.services.rewriting import Progress as Told


@click.command("restore-ledger")
@click.argument("archive", type=click.Path(file_okay=False, resolve_path=True, path_type=Path))
@click.option("--data", metavar="DIR", help="Data directory whose log was lost (or LEASEHOLD_DATA).")
@click.option("--nats", default="", metavar="URL[,URL]", help="Restore into these running NATS servers instead.")
@click.option(
    "--credentials", metavar="DIR", type=click.Path(file_okay=False, resolve_path=True),
    help="The keys for them: keeper.json and allocator.json.",
)  # fmt: skip
@click.option("--replicas", type=click.IntRange(1, 5), default=1, help="On how many of them the log is.")
@click.option("--reason", default="the log was lost", show_default=True, help="Why; it stands in the log for ever.")
@click.option("--accept-loss", is_flag=True, help="Restore although records are known to be lost.")
@click.option(
    "--era", type=click.IntRange(0, limits.ERA_MAX), default=0, metavar="N",
    help="Begin era N at least: above all that were ever begun, if some were lost with all that knew of them.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@asynchronous
async def restore_ledger(
    archive: Path, data: str | None, nats: str, credentials: str | None, replicas: int, reason: str, accept_loss: bool,
    era: int, as_json: bool,
) -> None:  # fmt: skip
    """Write a lost log back from its ARCHIVE, and begin a new era of it.

    Everything must have been ended, and the log be empty: move its store away (DIR/jetstream). Who owned what stays as
    it was; all tokens from before are dead, holders get theirs by asking for their lease again; hosts must report
    again. It may be ended at any time, and run again.
    """
    from leasehold.services.restoring import Options, restore

    options = Options(
        archive=archive,
        data=home.chosen_data_dir(data) or home.default_data_dir(),
        nats=nats,
        credentials=credentials or "",
        replicas=replicas,
        reason=reason,
        era=era,
        accept_loss=accept_loss,
    )
    with _progress() as progress:
        restored = await restore(options, progress)
    if as_json:
        json_line(restored)
    else:
        _tell(restored, options)


@contextmanager
def _progress() -> "Iterator[Told]":
    if not sys.stderr.isatty():
        yield lambda _what, _done, _all: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("records"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _tell(restored: "Restored", options: "Options") -> None:
    click.echo(f"{'was restored before' if restored.was_done else 'restored'}: ledger {restored.ledger_id}")
    click.echo(f"  records   {restored.through} from {shown(str(options.archive))}, each compared")
    click.echo(f"  lost      {shown(restored.lost) or 'nothing that is known of here'}")
    click.echo(f"  era       {restored.era}, from position {restored.position} on; all older tokens are dead")
    start = "start everything again" if options.nats else f"leasehold up --data {shown(str(options.data))}"
    click.echo(f"  next      {start}; holders ask for their leases again, hosts report again")
