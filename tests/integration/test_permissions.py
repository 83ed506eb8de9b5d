"""Who may do what, tried over the wire: a test for each forbidden cell of the table, and for each allowed one.

The table below is written apart from `permissions.toml`, so that a list there that became too long fails here.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from leasehold.events import cloudevents
from leasehold.events.errors import UnavailableError
from leasehold.events.subjects import LEDGER_STREAM, OBSERVED_STREAM, Subjects
from leasehold.services import connection, permissions
from leasehold.services.bus import Refusals, refused_in, take_up
from leasehold.services.connection import Connection, Reply
from leasehold.services.credentials import Credential, changing, let_in, new_credential
from leasehold.services.ledger import api
from leasehold.services.ledger.direct import DirectTail
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.natsserver import NatsServer
from leasehold.services.parser import Handler

CLUSTER: Final = "test"
SUBJECTS: Final = Subjects(CLUSTER)
WAIT_S: Final = 20.0
ROLES: Final = {
    "keeper": "keeper",
    "allocator": "allocator",
    "launcher": "n1",
    "query": "query",
    "archive": "archive",
    "feed": "feed",
    "subscriber": "dash",
    "scheduler": "sched",
    "operator": "olga",
    "auditor": "audit",
    "agent": "h1",
}
"""The name of the one that tries, by its role."""
OWN: Final = {role: f"agent-{name}" if role == "agent" else name for role, name in ROLES.items()}

KEEPING: Final = ("renew_many", "withdraw", "transfer", "reserve", "switch")
REQUESTS: Final = ("lease", "renew", "release", "prepare", "reattach", *KEEPING)
MAKING: Final = ("create_device", "destroy_device", "operate_device")
NAMING: Final = ("set_class", "remove_class", "set_quota")
MARKING: Final = ("cordon", "uncordon", "taint", "untaint", "set_policy", "confirm_clean", "heal")
OPERATORS: Final = ("confirm_free", *MAKING, "retire_agent", "revoke", "declare_dead", *NAMING, *MARKING)
LISTS: Final = (
    *("list_devices", "list_leases", "list_hosts", "list_orders", "list_domains"),
    *("list_hostdevs", "list_drifts", "list_classes", "list_quotas", "list_queue", "list_taints"),
)
QUESTIONS: Final = (*LISTS, "consider", "show", "history", "explain", "status", "sync")
PAST_QUESTIONS: Final = ("owners", "devices_at", "domains_at", "diff", "who", "blame", "utilisation", "archived")
CLIENTS: Final = {"scheduler", "operator", "auditor", "subscriber"}
READERS: Final = {"operator", "auditor"}
OURS: Final = {"keeper", "allocator", "query", "archive", "feed"}
ANSWERING: Final = {"allocator", "query", "archive"}
FOLLOWERS: Final = ANSWERING | {"feed"}

# What can be published, and by which roles. {own} is who tries.
PUBLISH: Final[dict[str, set[str]]] = {
    **{f"leasehold.test.req.{{own}}.{verb}": {"scheduler", "operator"} for verb in REQUESTS},
    **{f"leasehold.test.req.{{own}}.{verb}": {"operator"} for verb in OPERATORS},
    **{f"leasehold.test.req.{{own}}.{verb}": CLIENTS for verb in QUESTIONS if verb != "sync"},
    **{f"leasehold.test.req.{{own}}.{verb}": CLIENTS for verb in PAST_QUESTIONS},
    "leasehold.test.req.{own}.sync": CLIENTS | {"agent"},
    # In another's name.
    **{f"leasehold.test.req.victim.{verb}": set() for verb in (*REQUESTS, *OPERATORS, "show", "sync")},
    "leasehold.test.req.agent-h2.sync": set(),
    "leasehold.other.req.{own}.lease": set(),
    "leasehold.test.req.{own}.unheard_of": set(),
    # For a host.
    "leasehold.test.obs.h1.watcher": {"agent"},
    "leasehold.test.alive.h1.watcher": {"agent"},
    "leasehold.test.obs.h1.creator": {"agent"},
    "leasehold.test.alive.h1.creator": {"agent"},
    "leasehold.test.obs.h1.poller": {"agent"},
    "leasehold.test.alive.h1.poller": {"agent"},
    "leasehold.test.obs.h1.binder": {"agent"},
    "leasehold.test.alive.h1.binder": {"agent"},
    "leasehold.test.obs.h2.watcher": set(),
    "leasehold.test.obs.h2.poller": set(),
    "leasehold.test.obs.h2.creator": set(),
    "leasehold.test.obs.h2.binder": set(),
    "leasehold.test.alive.h2.watcher": set(),
    "leasehold.other.obs.h1.watcher": set(),
    # Room on a server's disk.
    "leasehold.test.room.n1": {"launcher"},
    "leasehold.test.room.n2": set(),
    # What is kept: the inbox, the ledger, and the hint who decides.
    "leasehold.test.inbox.h1.watcher": {"allocator"},
    "leasehold.other.inbox.h1.watcher": set(),
    "leasehold.test.ledger": {"allocator"},
    "leasehold.other.ledger": set(),
    "$KV.HINT.decider": {"allocator"},
    "$KV.HINT.other": set(),
    # The feed: on its way in; and as it comes out, which only the server does.
    "leasehold.test.told.h1.lease_granted._._._": {"feed"},
    "leasehold.other.told.h1.lease_granted._._._": set(),
    "leasehold.test.evt.h1.lease_granted._._._": set(),
    "leasehold.test.evt._.grace_started._._._": set(),
    # Answers to others, and inboxes of others.
    "_INBOX_victim.x": set(),
    "_R_.abcdef.ghijkl": set(),
    # Reading from the world.
    "leasehold-read.STREAM.INFO.LEDGER": READERS,
    "leasehold-read.STREAM.MSG.GET.LEDGER": READERS,
    "leasehold-read.DIRECT.GET.LEDGER": READERS,
    "leasehold-read.STREAM.INFO.OBSERVED": set(),
    "leasehold-read.STREAM.INFO.EVENTS": CLIENTS,
    "leasehold-read.DIRECT.GET.EVENTS": CLIENTS,
    "leasehold-read.STREAM.MSG.GET.EVENTS": CLIENTS,
    "leasehold-read.DIRECT.GET.EVENTS.leasehold.test.evt.>": set(),
    "leasehold-read.STREAM.PURGE.EVENTS": set(),
    "$JS.API.DIRECT.GET.LEDGER": set(),
    # JetStream's own subjects.
    "$JS.API.INFO": OURS,
    "$JS.API.STREAM.INFO.LEDGER": OURS,
    "$JS.API.STREAM.INFO.OBSERVED": {"keeper", "allocator"},
    "$JS.API.STREAM.INFO.KV_HINT": {"keeper"},
    "$JS.API.STREAM.MSG.GET.LEDGER": OURS,
    "$JS.API.STREAM.MSG.GET.OBSERVED": set(),
    "$JS.API.STREAM.MSG.GET.KV_HINT": {"allocator"},
    "$JS.API.STREAM.CREATE.LEDGER": {"keeper"},
    "$JS.API.STREAM.CREATE.OBSERVED": {"keeper"},
    "$JS.API.STREAM.CREATE.KV_HINT": {"keeper", "allocator"},
    "$JS.API.STREAM.CREATE.EVENTS": {"keeper"},
    "$JS.API.STREAM.INFO.EVENTS": {"keeper", "feed"},
    "$JS.API.STREAM.MSG.GET.EVENTS": {"feed"},
    "$JS.API.STREAM.PURGE.EVENTS": {"feed"},
    "$JS.API.CONSUMER.CREATE.EVENTS": set(),
    "$JS.API.STREAM.CREATE.OVERLAPS": set(),
    "$JS.API.STREAM.PURGE.OBSERVED": {"allocator"},
    "$JS.API.CONSUMER.CREATE.LEDGER": FOLLOWERS,
    "$JS.API.CONSUMER.CREATE.OBSERVED": {"allocator"},
    "$JS.API.CONSUMER.CREATE.LEDGER.name": set(),
    "$JS.API.CONSUMER.DURABLE.CREATE.LEDGER.name": set(),
    "$JS.API.CONSUMER.DELETE.LEDGER.name": set(),
    "$JS.API.CONSUMER.MSG.NEXT.LEDGER.name": set(),
    **{
        f"$JS.API.STREAM.{verb}.{stream}": set()
        for verb in ("UPDATE", "DELETE", "MSG.DELETE", "RESTORE", "SNAPSHOT", "LEADER.STEPDOWN", "PEER.REMOVE")
        for stream in ("LEDGER", "OBSERVED", "EVENTS", "KV_HINT")
    },
    "$JS.API.STREAM.PURGE.LEDGER": set(),
    "$JS.API.STREAM.NAMES": set(),
    "$JS.API.META.LEADER.STEPDOWN": set(),
    "$JS.API.ACCOUNT.PURGE.ledger": set(),
    "$JS.ACK.LEDGER.c.1.1.1.1.0": set(),
    "$JS.FC.LEDGER.c.x": FOLLOWERS,
    "$JS.FC.OBSERVED.c.x": {"allocator"},
    "$SYS.REQ.SERVER.PING": set(),
    "$SYS.REQ.ACCOUNT.ledger.CONNZ": set(),
    "anything.else": set(),
}
LISTEN: Final[dict[str, set[str]]] = {
    "_INBOX_{own}.>": set(ROLES),
    "_INBOX_victim.>": set(),
    "_INBOX.>": set(),
    ">": set(),
    "*.>": set(),
    "_R_.>": set(),
    "$SYS.>": set(),
    "$KV.>": set(),
    "$JS.>": set(),
    "$JS.API.>": set(),
    "leasehold.>": set(),
    "leasehold.test.ledger": set(),
    "leasehold.test.told.>": set(),
    "leasehold.test.evt.>": CLIENTS,
    "leasehold.test.evt.*.*.*.L512.*": CLIENTS,
    "leasehold.test.evt.h1.>": CLIENTS | {"agent"},
    "leasehold.test.evt.h1.lease_granted.*.*.*": CLIENTS | {"agent"},
    "leasehold.test.evt._.>": CLIENTS | {"agent"},
    "leasehold.test.evt.h2.>": CLIENTS,
    "leasehold.test.evt.*.lease_granted.>": CLIENTS,
    "leasehold.other.evt.h1.>": set(),
    "leasehold.test.obs.*.*": {"allocator"},
    "leasehold.test.inbox.*.*": set(),
    "leasehold.test.room.*": {"allocator"},
    "leasehold.test.alive.*.*": {"allocator"},
    "leasehold.test.req.*.*": set(),
    **{f"leasehold.test.req.*.{verb}": {"allocator"} for verb in (*REQUESTS, *OPERATORS)},
    **{f"leasehold.test.req.*.{verb}": {"query"} for verb in QUESTIONS},
    **{f"leasehold.test.req.*.{verb}": {"archive"} for verb in PAST_QUESTIONS},
    "$SRV.PING": ANSWERING,
}


class Bus:
    """A real server with the real configuration, and one of each role on it."""

    def __init__(self, server: NatsServer, data: Path, credentials: dict[str, Credential]) -> None:
        self.server = server
        self.data = data
        self.credentials = credentials
        self.refusals = Refusals(data)

    @asynccontextmanager
    async def speaking(self, role: str) -> AsyncIterator["Speaker"]:
        speaker = Speaker(self, role)
        speaker.client = await connection.connect(
            self.server.url, credential=self.credentials[role], name=role, on_error=speaker.errors.append
        )
        try:
            yield speaker
        finally:
            await connection.disconnect(speaker.client)

    async def last(self, stream: str) -> int:
        async with self.speaking("keeper") as keeper:
            return (await api.stream_info(keeper.client, stream)).state.last_seq


class Speaker:
    """One connection, and what the server has complained about to it."""

    client: Connection

    def __init__(self, bus: Bus, role: str) -> None:
        self._bus = bus
        self.role = role
        self.own = OWN[role]
        self.errors: list[Exception] = []

    async def settle(self) -> None:
        """Wait until the server has taken all that was sent, and said what it has to say to it."""
        # The client's ping goes ahead of what still waits for the socket; the second one is behind all of it.
        for _ in range(2):
            await self.client.flush(10)

    async def is_refused(self, kind: str, subject: str) -> bool:
        """Whether the server refuses it, to us and in its log, and whether it is counted."""
        self.errors.clear()
        before = self._count()
        if kind == "publish":
            await self.client.publish(subject, b"not even JSON", f"_INBOX_{self.own}.tried")
        else:
            await self.client.subscribe(subject)
        await self.settle()
        told = [str(error).lower() for error in self.errors]
        is_told = any("permissions violation" in text and f'"{subject.lower()}"' in text for text in told)
        self._bus.refusals.look()
        is_counted = self._count() == before + 1 and subject in self._bus.refusals.counts[self.own].last
        assert is_told == is_counted, f"{self.role} {kind} {subject}: told {told}, counted {is_counted}"
        return is_told

    def _count(self) -> int:
        counted = self._bus.refusals.counts.get(self.own)
        return counted.count if counted else 0


@asynccontextmanager
async def bus_at(data: Path) -> AsyncIterator[Bus]:
    """A server that lets in one of each role."""
    data.mkdir(parents=True)
    credentials = {role: new_credential(role, name, CLUSTER) for role, name in ROLES.items()}
    with changing(data, CLUSTER) as register:
        for credential in credentials.values():
            let_in(register, credential.user)
    users = permissions.render(register.users, CLUSTER)
    async with NatsServer(data, users=users, probe=credentials["keeper"]) as server:
        bus = Bus(server, data, credentials)
        async with bus.speaking("keeper") as keeper:
            await ensure_streams(keeper.client, SUBJECTS)
        yield bus


@pytest.mark.parametrize("role", ROLES)
async def test_publishing(tmp_path: Path, role: str) -> None:
    """Each subject of the table: published by those who may, refused to all others, told, logged and counted."""
    found = {}
    async with bus_at(tmp_path / "data") as bus, bus.speaking(role) as speaker:
        for subject in PUBLISH:
            found[subject] = not await speaker.is_refused("publish", subject.format(own=speaker.own))
    assert found == {subject: role in allowed for subject, allowed in PUBLISH.items()}


@pytest.mark.parametrize("role", ROLES)
async def test_listening(tmp_path: Path, role: str) -> None:
    """Each subject of the table: listened to by those who may, refused to all others, told, logged and counted."""
    found = {}
    async with bus_at(tmp_path / "data") as bus, bus.speaking(role) as speaker:
        for subject in LISTEN:
            found[subject] = not await speaker.is_refused("subscribe", subject.format(own=speaker.own))
    assert found == {subject: role in allowed for subject, allowed in LISTEN.items()}


def test_nothing_is_allowed_that_the_table_does_not_have() -> None:
    """Every subject that `permissions.toml` allows stands in the table of this page: none slips in beside it."""
    for name, role in permissions.roles().items():
        user = permissions.User(role=name, name=ROLES[name], public_key="U")
        told = permissions.permissions_of(user, CLUSTER)
        for kind, table in (("publish", PUBLISH), ("subscribe", LISTEN)):
            of_kind = told[kind]
            assert isinstance(of_kind, dict)
            tried = {subject.format(own=OWN[name]) for subject, allowed in table.items() if name in allowed}
            for pattern in of_kind["allow"]:
                assert any(_matches(pattern, subject) for subject in tried), f"{name} may {kind} {pattern}: not tried"
        assert ("allow_responses" in told) == (name in ANSWERING) == role.answers


def _matches(pattern: str, subject: str) -> bool:
    if pattern == subject:
        return True
    if pattern.endswith(".>"):
        return subject.startswith(pattern[:-1])
    parts, others = pattern.split("."), subject.split(".")
    return len(parts) == len(others) and all(a in ("*", b) for a, b in zip(parts, others, strict=True))


REPLIES: Final = (
    "leasehold.test.ledger",
    "leasehold.test.obs.h2.watcher",
    "leasehold.test.req.victim.lease",
    "$JS.API.STREAM.DELETE.OBSERVED",
    "$JS.API.STREAM.PURGE.OBSERVED",
    "$KV.HINT.decider",
)


@pytest.mark.parametrize("reply", REPLIES)
async def test_the_server_writes_nowhere_for_the_world(tmp_path: Path, reply: str) -> None:
    """Whatever subject is named for the answer: no answer of the server or of a service gets there from the world."""
    async with bus_at(tmp_path / "data") as bus, AsyncExitStack() as stack:
        agent, auditor, allocator = [
            await stack.enter_async_context(bus.speaking(role)) for role in ("agent", "auditor", "allocator")
        ]
        heard: list[tuple[bytes, bytes]] = []
        for verb in (*REQUESTS, *OPERATORS):
            await allocator.client.listen(
                f"leasehold.test.req.*.{verb}", lambda subject, to, _body, _headers: heard.append((subject, to))
            )

        def keep(_subject: bytes, to: bytes, _body: bytes, _headers: bytes | None) -> None:
            answers.append(asyncio.ensure_future(allocator.client.publish(to.decode(), b"kept")))

        answers: list[asyncio.Future[None]] = []
        await allocator.client.listen("leasehold.test.obs.*.*", keep)
        await allocator.settle()
        assert (await allocator.client.ask("leasehold.test.ledger", b"a record", timeout_s=5)).status == 0
        before = [await bus.last(stream) for stream in (LEDGER_STREAM, OBSERVED_STREAM, "KV_HINT")]
        await agent.client.publish("leasehold.test.obs.h1.watcher", b"{}", reply)
        await agent.client.publish("leasehold.test.alive.h1.watcher", b"{}", reply)
        await auditor.client.publish("leasehold-read.STREAM.INFO.LEDGER", b"", reply)
        await auditor.client.publish("leasehold-read.STREAM.MSG.GET.LEDGER", b'{"seq":1}', reply)
        await auditor.client.publish("leasehold-read.DIRECT.GET.LEDGER", b'{"seq":1,"batch":9}', reply)
        for speaker in (agent, auditor):
            await speaker.settle()
        # The same ways are open, and what was sent before on them has been dealt with.
        assert (await agent.client.ask("leasehold.test.obs.h1.watcher", b"{}", timeout_s=5)).body == b"kept"
        assert (await auditor.client.ask("leasehold-read.STREAM.INFO.LEDGER", b"", timeout_s=5)).status == 0
        await allocator.settle()
        after = [await bus.last(stream) for stream in (LEDGER_STREAM, OBSERVED_STREAM, "KV_HINT")]
        assert after == before
        assert heard == []


async def test_nobody_tells_for_the_feed(tmp_path: Path) -> None:
    """What a subscriber takes for an event has been told by a feed: the answer to a question, which can be sent to any
    subject within the world, does not look like one.

    An event bears the feed's attributes, and the server says that it is kept under the very subject it came at.
    """
    async with bus_at(tmp_path / "data") as bus, AsyncExitStack() as stack:
        agent, scheduler, feed, query, dash = [
            await stack.enter_async_context(bus.speaking(role))
            for role in ("agent", "scheduler", "feed", "query", "subscriber")
        ]
        told = f"NATS/1.0\r\n{FEED_LINES}\r\n".encode()
        headers = cloudevents.raw_headers(told)
        reply = await feed.client.ask("leasehold.test.told.h2.tick._._._", b"{}", timeout_s=WAIT_S, headers=headers)
        assert json.loads(reply.body)["seq"] == 1
        heard: list[tuple[bytes, bytes | None]] = []
        await dash.client.listen(
            "leasehold.test.evt.>", lambda subject, _reply, _body, headers: heard.append((subject, headers))
        )
        await query.client.listen("leasehold.test.req.*.sync", _answering(query.client))
        for speaker in (dash, query):
            await speaker.settle()
        forged = "leasehold.test.evt.h1.tick._._._"
        await agent.client.publish("leasehold.test.req.agent-h1.sync", b"{}", forged)
        await scheduler.client.publish("leasehold-read.DIRECT.GET.EVENTS", b'{"seq":1}', forged)
        await scheduler.client.publish("leasehold-read.STREAM.INFO.EVENTS", b"", forged)
        await scheduler.client.publish(
            "leasehold-read.DIRECT.GET.EVENTS", b'{"seq":1}', "leasehold.test.told.h1.x._._._"
        )
        async with asyncio.timeout(WAIT_S):
            while len(heard) < 3:
                await dash.settle()
        for subject, raw in heard:
            assert subject == forged.encode()
            assert cloudevents.raw_headers(raw).get(cloudevents.STREAM_SUBJECT_HEADER) != forged
        assert await bus.last("EVENTS") == 1


def _answering(client: Connection) -> Handler:
    def answer(_subject: bytes, to: bytes, _body: bytes, _headers: bytes | None) -> None:
        client.publish_at_once([(to, b"an answer")])

    return answer


FEED_LINES: Final = cloudevents.header_lines(
    cloudevents.Attributes(
        cluster=CLUSTER, ledger_id="0" * 16, era=0, position=256, part=0, parts=1, previous=0, tag="tick.v1", at_ns=1
    )
)


async def test_what_is_allowed_works_across_the_accounts(tmp_path: Path) -> None:
    """A request is heard with an answer's address that the server made, and answered; the ledger is read to its end."""
    async with bus_at(tmp_path / "data") as bus, AsyncExitStack() as stack:
        allocator, scheduler, auditor = [
            await stack.enter_async_context(bus.speaking(role)) for role in ("allocator", "scheduler", "auditor")
        ]
        asked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        await allocator.client.listen(
            "leasehold.test.req.*.lease", lambda _subject, to, _body, _headers: asked.set_result(to)
        )
        await allocator.settle()
        asking = asyncio.ensure_future(scheduler.client.ask("leasehold.test.req.sched.lease", b"{}", timeout_s=WAIT_S))
        to = (await asyncio.wait_for(asked, WAIT_S)).decode()
        assert to.startswith("_R_.")
        await allocator.client.publish(to, b"granted")
        assert (await asking).body == b"granted"
        # An answer is an answer once, and nothing else can be sent there.
        await allocator.client.publish(to, b"again")
        await allocator.settle()
        assert any("permissions violation" in str(error).lower() for error in allocator.errors)
        writer = JetStreamLedger(allocator.client, SUBJECTS)
        for expected in range(5):
            await writer.append(expected, b"record %d" % expected, timeout_s=5)
        reader = JetStreamLedger(auditor.client, SUBJECTS, tail=DirectTail)
        assert await reader.read(3) == b"record 2"
        assert await reader.read(6) is None
        bodies: list[bytes] = []
        async with contextlib.aclosing(reader.follow(0)) as batches, asyncio.timeout(WAIT_S):
            async for batch in batches:
                bodies += [entry.body for entry in batch]
                if len(bodies) == 5:
                    await writer.append(5, b"news", timeout_s=5)
                if len(bodies) == 6:
                    break
        assert bodies == [*(b"record %d" % number for number in range(5)), b"news"]
        await reader.close()


async def test_a_consumer_cannot_be_told_to_write_the_ledger(tmp_path: Path) -> None:
    """A query service that was taken over cannot have the ledger delivered into the ledger."""
    async with bus_at(tmp_path / "data") as bus, bus.speaking("query") as query:
        config = {"deliver_subject": SUBJECTS.ledger, "ack_policy": "none", "deliver_policy": "all"}
        body = json.dumps({"stream_name": LEDGER_STREAM, "config": config}).encode()
        reply: Reply = await query.client.ask(f"$JS.API.CONSUMER.CREATE.{LEDGER_STREAM}", body, timeout_s=5)
        assert b'"error"' in reply.body, reply.body
        assert await bus.last(LEDGER_STREAM) == 0


async def test_who_is_removed_is_cut_off(tmp_path: Path) -> None:
    """Added while the server runs, one gets in; removed, his connection is cut and he gets in no more, counted."""
    async with bus_at(tmp_path / "data") as bus:
        late = new_credential("scheduler", "late", CLUSTER)
        with changing(bus.data) as register:
            let_in(register, late.user)
        assert await asyncio.to_thread(take_up, bus.data)
        client = await connection.connect(bus.server.url, credential=late, name="late")
        gone = asyncio.Event()
        watching = asyncio.ensure_future(_until_cut(client, gone))
        with changing(bus.data) as register:
            register.users = [user for user in register.users if user.name != "late"]
        assert await asyncio.to_thread(take_up, bus.data)
        await asyncio.wait_for(gone.wait(), WAIT_S)
        await watching
        await connection.disconnect(client)
        with pytest.raises(UnavailableError, match="does not let 'late' in"):
            await connection.connect(bus.server.url, credential=late, name="late")
        bus.refusals.look()
        assert bus.refusals.counts["nobody"].count >= 1
        assert refused_in(bus.data)["nobody"].last == "coming in"
        # The others have not noticed.
        async with bus.speaking("auditor") as auditor:
            assert not await auditor.is_refused("publish", "leasehold.test.req.audit.status")


async def _until_cut(client: Connection, gone: asyncio.Event) -> None:
    while True:
        try:
            # Nobody answers, or the wire is cut.
            await client.ask("leasehold.test.req.late.status", b"{}", timeout_s=1)
        except UnavailableError:
            if not client.is_connected:
                gone.set()
                return
