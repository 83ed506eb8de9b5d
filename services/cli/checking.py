"""`leasehold verify` and `leasehold replay`: whether the past is what it was, and follows from itself."""

import gc
import sys
from pathlib import Path
from typing import Final

import click

from leasehold.services import home
from leasehold.services.cli.common import EXIT_FAILED, asynchronous, client_of, common, names_ledger

_RECORD: Final = click.IntRange(1, 2**45 - 1)


@click.command()
@click.option("--archive", metavar="DIR", help="An archive to compare with; alone: to check by itself, without a bus.")
@click.option("--models", is_flag=True, help="Build the archive's read models anew, too, and compare them.")
@common
@asynchronous
async def verify(data: str | None, as_json: bool, archive: str | None, models: bool) -> None:
    """Check the whole log: chain, order, decisions, owners, and what was kept of it elsewhere.

    Without --archive the data directory's own archive is compared record by record.
    """
    from leasehold.services.cli import verifying

    _look_for_cycles_rarely()
    directory = Path(archive) if archive is not None else None
    how = verifying.How(as_json=as_json, models=models)
    client = client_of(data)
    if directory is not None and not names_ledger(data):
        is_sound = await verifying.verify_archive(directory, how)
    elif client.has_key:
        is_sound = await verifying.verify_through(client, directory, how)
    else:
        is_sound = await verifying.run_verify(home.find_data_dir(data), directory, how)
    if not is_sound:
        sys.exit(EXIT_FAILED)


@click.command()
@click.argument("archive", required=False, metavar="[ARCHIVE]")
@click.option("--ledger", is_flag=True, help="Read the log itself instead, in use or not.")
@click.option("--from", "first", type=_RECORD, default=1, metavar="RECORD", help="Decide nothing before it again.")
@click.option("--to", "last", type=_RECORD, default=None, metavar="RECORD", help="Stop behind it.")
@common
@asynchronous
async def replay(
    data: str | None, as_json: bool, archive: str | None, ledger: bool, first: int, last: int | None
) -> None:
    """Decide every recorded input again, and compare what comes out to the byte.

    ARCHIVE is the directory of an archive; it is read offline, without a bus.
    """
    from leasehold.services.cli import verifying

    if (archive is None) != ledger:
        raise click.UsageError("name either the directory of an archive, or --ledger")
    _look_for_cycles_rarely()
    span = verifying.Span(first, last or 0)
    client = client_of(data)
    if archive is not None:
        is_sound = await verifying.replay_archive(Path(archive), span, as_json=as_json)
    elif client.has_key:
        is_sound = await verifying.replay_through(client, span, as_json=as_json)
    else:
        is_sound = await verifying.run_replay(home.find_data_dir(data), span, as_json=as_json)
    if not is_sound:
        sys.exit(EXIT_FAILED)


def _look_for_cycles_rarely() -> None:
    """As the services do: rows and records make none, and a large state would be walked again and again."""
    gc.set_threshold(100_000, 50, 100)


COMMANDS: Final = (verify, replay)
