"""The log of a data directory that nobody uses. A server that starts on a damaged store changes it: a copy is read."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from leasehold.events.errors import CorruptLedgerError, StorageError, UnavailableError
from leasehold.events.subjects import Subjects
from leasehold.services import permissions
from leasehold.services.client import Client
from leasehold.services.connection import connect, disconnect
from leasehold.services.credentials import new_credential
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Ledger
from leasehold.services.natsserver import NatsServer
from leasehold.services.verifying.archives import ArchiveFiles
from leasehold.services.verifying.checks import Progress, Report, check_ledger
from leasehold.services.verifying.models import working_directory
from leasehold.services.verifying.witnesses import Witness, stores_in, witnesses_in


async def verify_at_rest(data: Path, cluster: str, progress: Progress, archive: ArchiveFiles | None = None) -> Report:
    """Check the ledger of a data directory that nobody uses, on a copy of it, and compare it with an archive.

    Raises:
        LeaseholdError: it is in use, cannot be read, or a server cannot be started on it.
    """
    async with _copy_of(data) as folder:
        witnesses, problem = await witnesses_in(folder)
        async with _ledger_in(folder, cluster) as ledger:
            report = await _check(ledger, witnesses, progress, archive)
    # What is wrong with the log matters more than what is wrong with what was made of it.
    return report if report.problem else msgspec.structs.replace(report, problem=problem)


async def verify_live(
    client: Client, witnesses: list[Witness], progress: Progress, archive: ArchiveFiles | None = None
) -> Report:
    """Check the ledger behind an open client while it is in use, and compare it with an archive.

    Raises:
        LeaseholdError: it cannot be reached.
    """
    ledger = client.ledger()
    try:
        return await _check(ledger, witnesses, progress, archive)
    finally:
        await ledger.close()


@asynccontextmanager
async def ledger_at_rest(data: Path, cluster: str) -> AsyncIterator[Ledger]:
    """The ledger of a data directory that nobody uses, read from a copy.

    Raises:
        LeaseholdError: it is in use, cannot be read, or a server cannot be started on it.
    """
    async with _copy_of(data) as folder, _ledger_in(folder, cluster) as ledger:
        yield ledger


@asynccontextmanager
async def _ledger_in(folder: Path, cluster: str) -> AsyncIterator[Ledger]:
    reader = new_credential("query", "verify", cluster)
    users = permissions.render([reader.user], cluster)
    async with NatsServer(folder, users=users, probe=reader, sync_always=False) as server:
        connection = await connect(server.url, credential=reader, name="verify")
        ledger = JetStreamLedger(connection, Subjects(cluster))
        try:
            yield ledger
        finally:
            await ledger.close()
            await disconnect(connection)


@asynccontextmanager
async def _copy_of(data: Path) -> AsyncIterator[Path]:
    """A copy of a data directory that nobody uses.

    Raises:
        StoreInUseError: somebody uses it.
        StorageError: it cannot be read, or there is no room for a copy.
        UnavailableError: there is nothing to copy.
    """
    if not (data / "jetstream").exists() and not stores_in(data):
        raise UnavailableError(f"{data} holds no ledger: nothing was started there")
    # The lock is held while the copy is made, so that nothing starts in between.
    server = NatsServer(data, users={}, lock_wait_s=0.5)
    try:
        async with working_directory(data) as folder:
            await _copy_locked(server, data, folder)
            yield folder
    finally:
        await server.stop()


async def _copy_locked(server: NatsServer, data: Path, folder: Path) -> None:
    try:
        await server.take_lock()
        await asyncio.to_thread(_copy, data, folder)
    except OSError as error:
        raise StorageError(f"{data} cannot be copied for the check: {error}") from error


def _copy(data: Path, folder: Path) -> None:
    stores = stores_in(data)
    for name in ("jetstream", *stores, *(f"{store}-wal" for store in stores)):
        if (data / name).is_dir():
            shutil.copytree(data / name, folder / name)
        elif (data / name).exists():
            shutil.copy2(data / name, folder / name)


async def _check(ledger: Ledger, witnesses: list[Witness], progress: Progress, archive: ArchiveFiles | None) -> Report:
    try:
        return await check_ledger(ledger, witnesses, progress, archive)
    except CorruptLedgerError as error:
        sequence = error.sequence or 1
        return Report(
            records=0, events=0, chain="", ledger_id="", folded_only=0,
            witnesses=tuple(witness.name for witness in witnesses), problem=str(error), sequence=sequence,
        )  # fmt: skip
