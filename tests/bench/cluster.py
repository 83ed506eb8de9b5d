"""A cluster for measurements: real servers with fsync, a real allocator process, real permissions, devices on paper."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from leasehold.events import codec
from leasehold.events.answers import Heard, Heartbeat
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import UnavailableError
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.subjects import Subjects
from leasehold.projections.reporting import Reporter
from leasehold.services import credentials, home, permissions
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.credentials import Credential
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.lifeline import tied_to_us
from leasehold.services.natsserver import ClusterPeer, NatsServer
from tests.support.cluster import free_ports

HOST: Final = HostName("bench")
CLUSTER: Final = "bench"
PRINCIPAL: Final = "bench"
START_S: Final = 60.0
"""Until a service answers, unless it has a long log to read."""
_DEVICES_PER_BUS: Final = 32
_POLL_S: Final = 0.002


def paper_device(number: int) -> DeviceDescription:
    """A PCI function that exists on paper only."""
    address = f"0000:{number // _DEVICES_PER_BUS:02x}:{number % _DEVICES_PER_BUS:02x}.0"
    return DeviceDescription(
        key=DeviceKey(f"pci/{address}"),
        name="pci_" + address.replace(":", "_").replace(".", "_"),
        kind="pci",
        sysfs_path=f"/sys/devices/pci0000:00/0000:00:01.0/{address}",
        driver="igb",
        pci_class=0x020000,
        vendor_id="8086",
        product_id="10c9",
        vendor_name="Intel Corporation",
        product_name="82576 Gigabit Network Connection",
        iommu_group=number,
        numa_node=0,
        attributes={"revision": "0x01", "subsystem_product_id": "a03c", "subsystem_vendor_id": "8086"},
    )


class Bus:
    """Servers that keep one log, and who may speak to them."""

    def __init__(self, data: Path, urls: list[str], anybody: Credential) -> None:
        self.data = data
        self.urls = urls
        self.subjects = Subjects(CLUSTER)
        self.anybody = anybody
        self.server_pids: list[int] = []
        """Of account `ledger`, without bounds: for what no role may do."""
        self._info = home.ConnectionInfo(url=",".join(urls), cluster=CLUSTER, data=str(data))
        home.write_connection(data, self._info)

    @asynccontextmanager
    async def connected(self, role: str) -> AsyncIterator[Connection]:
        """A connection with the rights of `operator`, `agent`, …, or with all (`anybody`)."""
        credential = self.anybody if role == "anybody" else credentials.own_credential(self._info, role)
        connection = await connect(self.urls, credential=credential, name=f"bench {role}")
        try:
            yield connection
        finally:
            await disconnect(connection)

    @asynccontextmanager
    async def process(self, role: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A real allocator, query service or watcher; ended in good order."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold.services.processes", role, "--data", str(self.data), "--host", HOST,
            preexec_fn=tied_to_us(),
        )  # fmt: skip
        try:
            yield process
        except BaseException:
            if process.returncode is not None:
                log = (self.data / f"{role}.log").read_text()
                print(f"the {role} has ended with code {process.returncode}:\n{log[-2_000:]}", file=sys.stderr)
            raise
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


@asynccontextmanager
async def bus(data: Path, *, servers: int = 1, sync_always: bool = True) -> AsyncIterator[Bus]:
    """So many servers and their streams, replicated on all of them.

    Args:
        sync_always: Without it the streams may be filled fast; to be opened again with it.
    """
    data.mkdir(mode=0o700, exist_ok=True)
    register = credentials.ensure_own(data, cluster=CLUSTER, host=HOST, operator=PRINCIPAL)
    anybody = credentials.new_credential("keeper", "anybody", CLUSTER)
    users = permissions.render(register.users, CLUSTER)
    boundless = f"users: [\n  {{nkey: {anybody.user.public_key}}}\n"
    users["ledger"] = users["ledger"].replace("users: [\n", boundless, 1)
    ports = free_ports(servers)
    started = [
        NatsServer(folder, users=users, probe=anybody, peer=peer, sync_always=sync_always)
        for folder, peer in _peers(data, ports)
    ]
    async with AsyncExitStack() as stack:
        for server in started:
            stack.push_async_callback(server.stop)
        await asyncio.gather(*(server.start() for server in started))
        found = Bus(data, [server.url for server in started], anybody)
        found.server_pids = [server.pid for server in started]
        async with found.connected("keeper") as keeper:
            await ensure_streams(keeper, found.subjects, replicas=servers)
        yield found


def _peers(data: Path, ports: list[int]) -> list[tuple[Path, ClusterPeer | None]]:
    if len(ports) == 1:
        return [(data, None)]
    routes = tuple(f"127.0.0.1:{port}" for port in ports)
    return [
        (
            data / f"s{number}",
            ClusterPeer(name=CLUSTER, server_name=f"s{number}", port=port, routes=routes, secret="between-servers"),
        )
        for number, port in enumerate(ports)
    ]


@asynccontextmanager
async def cluster(data: Path, devices: int, *, servers: int = 1) -> AsyncIterator[Bus]:
    """A bus, an allocator, and a host with so many devices."""
    async with bus(data, servers=servers) as found, found.process("allocator"), found.connected("agent") as agent:
        async with asyncio.timeout(START_S):
            reporter = await report_devices(agent, found.subjects, devices)
        beating = asyncio.create_task(beat(agent, found.subjects, reporter))
        try:
            yield found
        finally:
            beating.cancel()
            await asyncio.wait({beating})


async def ask_until(connection: Connection, subject: str, body: bytes, kind: Any, patience_s: float = START_S) -> Any:
    """Ask until a service answers, and decode that as `kind`."""
    async with asyncio.timeout(patience_s):
        while True:
            try:
                reply = await connection.ask(subject, body, timeout_s=1.0)
            except UnavailableError:
                pass  # nobody listens yet
            else:
                if not reply.status:
                    return msgspec.json.decode(reply.body, type=kind)
            await asyncio.sleep(_POLL_S)


async def heard(connection: Connection, subjects: Subjects, reporter: Reporter) -> Heard:
    """What the ledger has of our source; waits until an allocator answers."""
    body = codec.encode(Heartbeat(run=reporter.run, counter=reporter.counter))
    answer: Heard = await ask_until(connection, subjects.alive(reporter.host, "watcher"), body, Heard)
    return answer


async def report_devices(
    connection: Connection, subjects: Subjects, devices: int, host: HostName = HOST
) -> Reporter:
    """Report so many devices, as a watcher would, and wait until the ledger has them."""
    reporter = Reporter(host, "watcher", 1)
    subject = subjects.observed(host, "watcher")
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
