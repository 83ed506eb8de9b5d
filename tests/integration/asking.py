"""A query service on a real server, beside a log that grows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from leasehold.events import codec
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey
from leasehold.events.position import end_of_record
from leasehold.events.questions import QUESTIONS, Question, Reading
from leasehold.services.connection import Connection
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.query.service import QueryService
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore
from tests.integration.growing import Grower, pci
from tests.support.servers import SUBJECTS, connected, ledger_at, server_at

WAIT_S = 10.0
ASK_S = 3.0
DEVICE = "h1/pci/0000:00:05.0"
NIC = "h1/pci/0000:00:05.0/net/0"


def nic() -> DeviceDescription:
    """The network interface of one of the cards."""
    return DeviceDescription(
        key=DeviceKey("pci/0000:00:05.0/net/0"),
        name="net_eth0_52_54_00_aa_bb_cc",
        kind="net",
        parent="pci/0000:00:05.0",
    )


class Running:
    """A log that grows, and a query service that reads it."""

    def __init__(self, grower: Grower, reader: LedgerReader, service: QueryService, client: Connection) -> None:
        self.url = ""
        self.grower = grower
        self.reader = reader
        self.service = service
        self.client = client

    async def raw(self, verb: str, body: bytes, principal: str = "alice") -> Reading:
        reply = await self.client.ask(SUBJECTS.request(principal, verb), body, timeout_s=ASK_S)
        assert reply.status == 0
        return msgspec.json.decode(reply.body, type=Reading)

    async def ask(self, question: Question, principal: str = "alice", *, behind: bool = False) -> Reading:
        """The answer, from behind everything that was decided unless `behind` does not matter."""
        (verb,) = (verb for verb, kind in QUESTIONS.items() if kind is type(question))
        if not behind and not question.min_position:
            seen = end_of_record(self.grower.state.head.sequence)
            question = msgspec.structs.replace(question, min_position=seen)
        return await self.raw(verb, codec.encode(question), principal)

    async def ok(self, question: Question, principal: str = "alice") -> Reading:
        reading = await self.ask(question, principal)
        assert reading.outcome == "ok", reading
        return reading


@asynccontextmanager
async def asking_at(tmp_path: Path) -> AsyncIterator[Running]:
    """A host with eight cards, one of them with a NIC, and the service beside it."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(server_at(tmp_path / "data"))
        client = await stack.enter_async_context(connected(server.url))
        await ensure_streams(client, SUBJECTS)
        grower = Grower(await stack.enter_async_context(ledger_at(server.url)))
        await grower.start()
        await grower.report("h1", *(pci(slot) for slot in range(1, 9)), nic())
        ledger = await stack.enter_async_context(ledger_at(server.url))
        store = await FoldStore.open(tmp_path / "query.sqlite")
        stack.push_async_callback(store.close)
        reader = LedgerReader(ledger, store)
        stack.push_async_callback(reader.stop)
        await reader.start()
        async with asyncio.timeout(WAIT_S):
            await reader.caught_up.wait()
        bus = await stack.enter_async_context(connected(server.url, "query"))
        service = QueryService(bus, SUBJECTS, reader, ledger, store)
        stack.push_async_callback(service.stop)
        await service.start()
        running = Running(grower, reader, service, client)
        running.url = server.url
        yield running


