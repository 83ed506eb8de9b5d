"""A small cluster for measurements: a real server with fsync, a real allocator process, and devices on paper."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from leasehold.events import codec
from leasehold.events.answers import Heard, Heartbeat
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.subjects import Subjects
from leasehold.projections.reporting import Reporter
from leasehold.services import home, permissions
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.credentials import ensure_own
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.lifeline import tied_to_us
from leasehold.services.natsserver import NatsServer
from tests.support.servers import TESTER

HOST = HostName("bench")
_DEVICES_PER_BUS = 32


def paper_device(number: int) -> DeviceDescription:
    """A PCI function that exists on paper only."""
    address = f"0000:{number // _DEVICES_PER_BUS:02x}:{number % _DEVICES_PER_BUS:02x}.0"
    return DeviceDescription(
        key=DeviceKey(f"pci/{address}"),
        name="pci_" + address.replace(":", "_").replace(".", "_"),
        kind="pci",
        vendor_id="8086",
        product_id="10c9",
        iommu_group=number,
    )


@asynccontextmanager
async def cluster(data: Path, devices: int) -> AsyncIterator[tuple[Connection, Subjects]]:
    """A server, an allocator, and a host with so many devices; a connection to it all."""
    subjects = Subjects("bench")
    data.mkdir(exist_ok=True)
    texts = dict(permissions.render(ensure_own(data, cluster="bench", host=HOST, operator="bench"), "bench"))
    # Who measures speaks as everybody, from the account of the streams.
    texts["ledger"] = texts["ledger"].replace("[\n", f"[\n  {{nkey: {TESTER.user.public_key}}}\n", 1)
    async with NatsServer(data, users=texts, probe=TESTER) as server:
        home.write_connection(data, home.ConnectionInfo(url=server.url, cluster="bench", data=str(data)))
        connection = await connect(server.url, credential=TESTER, name="bench")
        await ensure_streams(connection, subjects)
        allocator = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold.services.processes", "allocator", "--data", str(data), "--host", HOST,
            preexec_fn=tied_to_us(),
        )  # fmt: skip
        beating: asyncio.Task[None] | None = None
        try:
            reporter = await report_devices(connection, subjects, devices)
            beating = asyncio.create_task(beat(connection, subjects, reporter))
            yield connection, subjects
        finally:
            if beating is not None:
                beating.cancel()
            allocator.terminate()
            await allocator.wait()
            await disconnect(connection)


async def heard(connection: Connection, subjects: Subjects, reporter: Reporter) -> Heard:
    """What the ledger has of our source; waits until an allocator answers."""
    body = codec.encode(Heartbeat(run=reporter.run, counter=reporter.counter))
    while True:
        try:
            reply = await connection.ask(subjects.alive(HOST, "watcher"), body, timeout_s=1.0)
        except Exception:  # whatever it is, the allocator is not up yet
            reply = None
        if reply is not None and not reply.status:
            return msgspec.json.decode(reply.body, type=Heard)
        await asyncio.sleep(0.05)


async def report_devices(connection: Connection, subjects: Subjects, devices: int) -> Reporter:
    """Report so many devices, as a watcher would, and wait until the ledger has them."""
    reporter = Reporter(HOST, "watcher", 1)
    subject = subjects.observed(HOST, "watcher")
    await heard(connection, subjects, reporter)
    await connection.ask(subject, codec.encode(reporter.starts()), timeout_s=5.0)
    picture = {device.key: device for device in map(paper_device, range(devices))}
    while (await heard(connection, subjects, reporter)).run != reporter.run:
        pass
    for message in reporter.synced({}, picture):
        await connection.ask(subject, codec.encode(message), timeout_s=5.0)
    while not (await heard(connection, subjects, reporter)).complete:
        pass
    return reporter


async def beat(connection: Connection, subjects: Subjects, reporter: Reporter) -> None:
    """Keep the paper host's watcher alive until cancelled."""
    while True:
        await heard(connection, subjects, reporter)
        await asyncio.sleep(1.0)
