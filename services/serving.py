"""`leasehold run nats`: our NATS server alone, started again when it ends by itself."""

import asyncio
import contextlib
import logging
import re
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from leasehold.events.errors import InvalidInputError
from leasehold.services import credentials, home, permissions
from leasehold.services.bus import Refusals
from leasehold.services.natsserver import ClusterPeer, NatsServer, Tls, check_tls
from leasehold.services.room import keep_room

_log: Final = logging.getLogger(__name__)

CALM_S: Final = 10.0
RESTART_S: Final = 1.0
SERVER_NAME: Final = "nats"
CLUSTER_NAME: Final = "leasehold"
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{8,128}")
_SERVER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def address_of(text: str, field: str) -> tuple[str, int]:
    """Address and port of `127.0.0.1:4222` or `[::1]:4222`.

    Raises:
        InvalidInputError: it is neither.
    """
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not address or not address.isprintable() or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise InvalidInputError(f"{text[:80]!r} is not ADDRESS:PORT, like 127.0.0.1:4222", field=field)
    return address, int(port) or -1


def tls_of(cert: str | None, key: str | None, ca: str | None) -> Tls | None:
    """Raises InvalidInputError if one is given without the other, or is not there."""
    if not cert and not key and not ca:
        return None
    for field, value in (("tls_cert", cert), ("tls_key", key)):
        if not value:
            raise InvalidInputError("a certificate and its key are needed, both", field=field)
    for field, value in (("tls_cert", cert), ("tls_key", key), ("tls_ca", ca)):
        if value and not Path(value).is_file():
            raise InvalidInputError(f"{value} is no file", field=field)
    return Tls(cert=Path(cert or ""), key=Path(key or ""), ca=Path(ca) if ca else None)


def peer_of(listen: str, routes: Sequence[str], secret: str, server_name: str) -> ClusterPeer | None:
    """Raises InvalidInputError if something is missing."""
    if not listen:
        if routes or server_name:
            raise InvalidInputError("a server of a cluster needs an address for the others", field="cluster_listen")
        return None
    address, port = address_of(listen, "cluster_listen")
    for route in routes:
        address_of(route, "cluster_route")
    if not _SECRET.fullmatch(secret):
        raise InvalidInputError(
            "LEASEHOLD_CLUSTER_SECRET must hold 8 to 128 letters, digits, - and _", field="cluster_secret"
        )
    if not _SERVER_NAME.fullmatch(server_name):
        raise InvalidInputError("each server of a cluster needs a name of its own", field="server_name")
    return ClusterPeer(
        name=CLUSTER_NAME, server_name=server_name, address=address, port=port, routes=tuple(routes), secret=secret
    )


async def serve(
    data: Path, *, listen: str, tls: Tls | None, peer: ClusterPeer | None, say: Callable[[str], None]
) -> None:
    """Run until told to end (SIGTERM, SIGINT).

    Raises:
        LeaseholdError: it cannot be started.
    """
    address, port = address_of(listen, "listen")
    check_tls(address, tls, field="listen")
    if peer is not None:
        check_tls(peer.address, tls, field="cluster_listen")
    home.make_private_dir(data)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    logging.basicConfig(level=logging.WARNING, format="leasehold: %(message)s")
    cluster = credentials.registered(data).cluster
    launcher = credentials.ensure_launcher(data, cluster, peer.server_name if peer is not None else SERVER_NAME)
    while not stopping.is_set():
        async with credentials.unchanged(data) as register:
            users = permissions.render(register.users, register.cluster)
            server = NatsServer(data, users=users, address=address, port=port, tls=tls, peer=peer)
            refusals = Refusals(data)
            started_s = time.monotonic()
            await server.start()
        try:
            say(f"listening on {server.url}")
            room = keep_room(data, launcher, url=server.url, restart=server.terminate)
            await _until_end(server, refusals, room, stopping)
        finally:
            await server.stop()
        if not stopping.is_set():
            _log.error("nats-server has ended; starting it again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_S if time.monotonic() - started_s < CALM_S else 0):
                    await stopping.wait()


async def _until_end(
    server: NatsServer, refusals: Refusals, room: Coroutine[Any, Any, None], stopping: asyncio.Event
) -> None:
    tasks = [asyncio.ensure_future(work) for work in (server.wait(), stopping.wait())]
    beside = [asyncio.ensure_future(work) for work in (refusals.run(), room)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*tasks, *beside):
            task.cancel()
        await asyncio.wait({*tasks, *beside})
