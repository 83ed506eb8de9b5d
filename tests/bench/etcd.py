"""etcd as a lease manager: one session, whose lease is kept alive, and one transaction for each step.

Spoken to through gRPC, which is etcd's own protocol: its HTTP gateway would add a hop within the server, and the Python
clients for it are not kept up. `etcd.proto` has the few messages that are needed.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.bench import peers
from tests.support.cluster import free_ports

_PROTO: Final = "tests/bench/etcd.proto"
_SESSION_S: Final = peers.TTL_MS // 1_000


def _program() -> str:
    return peers.program("/usr/bin/etcd", "/usr/local/bin/etcd")


class _Etcd:
    name = "etcd"

    def __init__(self, channel: Any, messages: Any) -> None:
        def call(path: str, request: Any, response: Any, kind: str = "unary_unary") -> Any:
            return getattr(channel, kind)(
                f"/etcdserverpb.{path}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )

        m = self._messages = messages
        self._txn = call("KV/Txn", m.TxnRequest, m.TxnResponse)
        self._grant = call("Lease/LeaseGrant", m.LeaseGrantRequest, m.LeaseGrantResponse)
        self._alive = call(
            "Lease/LeaseKeepAlive", m.LeaseKeepAliveRequest, m.LeaseKeepAliveResponse, kind="stream_stream"
        )
        self._session = 0

    async def begin(self) -> None:
        """Make the session."""
        self._session = (await self._grant(self._messages.LeaseGrantRequest(TTL=_SESSION_S), timeout=5)).ID

    async def keep_alive(self) -> None:
        """Until cancelled."""
        stream = self._alive()
        while True:
            await stream.write(self._messages.LeaseKeepAliveRequest(ID=self._session))
            await stream.read()
            await asyncio.sleep(_SESSION_S / 3)

    async def _step(self, key: bytes, create_revision: int, **change: Any) -> Any:
        m = self._messages
        compare = m.Compare(target="CREATE", key=key, create_revision=create_revision)
        return await self._txn(m.TxnRequest(compare=[compare], success=[m.RequestOp(**change)]), timeout=10)

    async def lease(self, device: int) -> int | None:
        key = b"host/device-%d" % device
        put = self._messages.PutRequest(key=key, value=b"bench", lease=self._session)
        done = await self._step(key, 0, request_put=put)
        return done.header.revision if done.succeeded else None

    async def release(self, device: int, held: int) -> None:
        key = b"host/device-%d" % device
        done = await self._step(key, held, request_delete_range=self._messages.DeleteRangeRequest(key=key))
        assert done.succeeded


def _commands(folder: Path, members: int) -> Iterator[tuple[Path, int, Sequence[str]]]:
    """For each member its directory, port and command."""
    ports = free_ports(2 * members)
    peer_urls = [f"http://127.0.0.1:{port}" for port in ports[members:]]
    together = ",".join(f"m{number}={url}" for number, url in enumerate(peer_urls))
    for number in range(members):
        own, client = folder / f"m{number}", f"http://127.0.0.1:{ports[number]}"
        own.mkdir()
        options = {
            "name": f"m{number}", "data-dir": own / "data", "log-level": "error",
            "listen-client-urls": client, "advertise-client-urls": client,
            "listen-peer-urls": peer_urls[number], "initial-advertise-peer-urls": peer_urls[number],
            "initial-cluster": together,
        }  # fmt: skip
        yield own, ports[number], (_program(), *(f"--{name}={value}" for name, value in options.items()))


@asynccontextmanager
async def _run_members(folder: Path, members: int) -> AsyncIterator[_Etcd]:
    os.environ |= {"GRPC_ENABLE_FORK_SUPPORT": "false", "GRPC_VERBOSITY": "ERROR"}
    grpc = peers.client_library("grpc")
    aio = peers.client_library("grpc.aio")
    peers.client_library("grpc_tools")
    messages = grpc.protos(_PROTO)
    async with AsyncExitStack() as stack:
        started = list(_commands(folder, members))
        for own, _, command in started:
            await stack.enter_async_context(peers.server(command, own))
        channel = await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{started[0][1]}"))
        etcd = _Etcd(channel, messages)
        await peers.until_ready(etcd.begin)
        keeping = asyncio.create_task(etcd.keep_alive())
        try:
            yield etcd
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})


@asynccontextmanager
async def _run(folder: Path, _in_flight: int) -> AsyncIterator[_Etcd]:
    async with _run_members(folder, 1) as etcd:
        yield etcd


@asynccontextmanager
async def _run_three(folder: Path, _in_flight: int) -> AsyncIterator[_Etcd]:
    async with _run_members(folder, 3) as etcd:
        etcd.name = "etcd R3"
        yield etcd


def _peer(name: str, where: str, run: Any) -> peers.Peer:
    return peers.Peer(
        name=name,
        job="lease: one transaction (create if absent, under the session's lease, which is kept alive); release: one "
        f"transaction (delete if mine); gRPC (grpcio), one channel; {where}",
        durable="as it comes: the log is synced before a transaction is answered, and what waits together shares that",
        lacks="no history beyond its compaction, refusals are not kept and have no reason, a repeated request is "
        "decided again, devices have no rules between them; all leases of a session end together",
        version=lambda: peers.first_line(_program(), "--version"),
        run=run,
    )


PEER: Final = _peer("etcd", "one member", _run)
THREE: Final = _peer("etcd R3", "three members", _run_three)
