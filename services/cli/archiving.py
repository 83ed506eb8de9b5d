"""`leasehold archive`: how it stands with the archive's files, copies of them, and the read models beside them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from leasehold.events.errors import UnavailableError
from leasehold.events.questions import Archived, ArchiveView
from leasehold.services import home
from leasehold.services.cli import render
from leasehold.services.cli.common import asynchronous
from leasehold.services.cli.values import time_text
from leasehold.services.client import Client

if TYPE_CHECKING:
    from leasehold.services.archive.backup import Copied

_FOLDER: Final = "archive"
_ASK_S: Final = 1.0
_MIB: Final = 1024 * 1024


@click.group()
def archive() -> None:
    """The ledger's records again, in files of their own."""


def _placed(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--archive", "directory", metavar="DIR", help="The archive's directory."),
        click.option("--data", metavar="DIR", help="Data directory of the `up` that it belongs to."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object a line."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _place(directory: str | None, data: str | None) -> Path:
    return Path(directory).absolute() if directory else home.find_data_dir(data) / _FOLDER


@archive.command()
@_placed
@asynchronous
async def status(directory: str | None, data: str | None, as_json: bool) -> None:
    """Show how far the archive in a directory goes, and in which files; nothing need run for that."""
    from leasehold.services.archive.ledger import ArchivedLedger

    archived = ArchivedLedger(_place(directory, data))
    if not archived.segments():
        raise UnavailableError(f"{archived.directory} holds no archive")
    view = await archived.view()
    if as_json:
        files = [{"name": each.name, "first": each.first, "sealed": each.is_sealed} for each in archived.segments()]
        render.json_line({**msgspec.to_builtins(view), "files": files})
        return
    render.line(f"archive   {archived.directory}")
    render.line(f"ledger    {view.ledger_id or 'none'}, era {view.era}")
    _tell(view)
    rows = [(each.name, "sealed" if each.is_sealed else "open", str(_bytes(each.path))) for each in archived.segments()]
    render.table(("segment", "state", "bytes"), rows)


@archive.command()
@click.argument("destination", metavar="DEST")
@_placed
@asynchronous
async def backup(destination: str, directory: str | None, data: str | None, as_json: bool) -> None:
    """Copy the archive to the directory DEST, also while it is written to; an earlier copy there is brought up to date.

    Every record of the copy is gone over. `leasehold archive restore`, `verify`, `replay` and `restore-ledger` take it.
    """
    from leasehold.services.archive.backup import back_up

    _copied(await back_up(_place(directory, data), Path(destination)), destination, as_json=as_json)


@archive.command()
@click.argument("source", metavar="FROM")
@_placed
@asynchronous
async def restore(source: str, directory: str | None, data: str | None, as_json: bool) -> None:
    """Copy a copy of an archive, in the directory FROM, back to where it is to be gone on with; nothing may be there.

    This brings back the files. For the ledger itself, see `leasehold restore-ledger`.
    """
    from leasehold.services.archive.backup import restore as put_back

    target = _place(directory, data)
    _copied(await put_back(Path(source), target), str(target), as_json=as_json)


@archive.command()
@_placed
def rebuild(directory: str | None, data: str | None, as_json: bool) -> None:
    """Have the read models, from which questions of the past are answered, built anew from the records."""
    from leasehold.services.archive import rebuilding, segments

    place = _place(directory, data)
    segments.segments_in(place)
    is_now = rebuilding.ask(place)
    if as_json:
        render.json_line({"directory": str(place), "now": is_now})
    elif is_now:
        render.line(f"the read models in {place} are built anew now; until then questions of the past have to wait")
    else:
        render.line(f"the read models in {place} are removed; whatever archives there next builds them anew")


def _copied(copied: "Copied", where: str, *, as_json: bool) -> None:
    if as_json:
        render.json_line(copied)
        return
    render.line(f"{copied.records} records of ledger {copied.ledger_id}, era {copied.era}, stand in {where}")
    render.line(f"  {copied.segments} segments, of which {copied.copied} were copied now; each record was gone over")
    render.line(f"  chain unbroken, ends in {copied.chain}")


def _bytes(path: Path) -> int:
    return path.stat().st_size


async def archive_view(client: Client) -> ArchiveView | None:
    """How it stands with an archive that listens; `None` if none answers within a second."""
    try:
        async with asyncio.timeout(_ASK_S):
            return (await client.question("archived", Archived())).archive
    except (TimeoutError, UnavailableError):
        return None


def tell_archive(view: ArchiveView | None, last: int) -> None:
    """Lines of `leasehold status`; `last`: the ledger's last record."""
    if view is None:
        render.line("archive   nobody answers: what is decided now stands in the ledger alone")
        return
    _tell(view, last)


def _tell(view: ArchiveView, last: int = 0) -> None:
    behind = f", {last - view.sequence} behind the ledger" if last > view.sequence else ""
    size = f"{view.segments} segments, {view.bytes / _MIB:.1f} MiB"
    at = f", the last of {time_text(view.decided_at_ns)}" if view.sequence else ""
    render.line(f"archive   {view.sequence} records{behind}{at}, in {size}")
    if view.modelled and view.modelled < view.sequence:
        render.line(f"          questions of the past are answered up to record {view.modelled}")
    if view.trouble:
        render.line(f"          TROUBLE: {view.trouble}")
