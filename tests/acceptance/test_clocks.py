"""Clocks that are wrong, in real processes: an allocator's own an hour off, a server's that steps, time that we missed.

libfaketime moves the clock that a process sees (`CLOCK_REALTIME` alone); a proxy moves the time that the server tells.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

import msgspec
import pytest

from leasehold.events import codec, inputs, limits
from leasehold.events.answers import Answer
from leasehold.events.errors import UnavailableError
from leasehold.events.event_types import Event, GraceStarted, LeaseExpired, LeaseGranted, LeaseRenewed
from leasehold.events.identities import Holder, RequestId
from leasehold.events.inputs import Request
from leasehold.services import credentials, home
from leasehold.services.connection import Connection
from leasehold.services.credentials import new_credential
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.lifeline import tied_to_us
from leasehold.services.natsserver import NatsServer
from tests.bench.cluster import HOST, beat, paper_device, report_devices
from tests.support.not_run import not_run
from tests.support.proxy import Direction, Link, Proxy
from tests.support.servers import SUBJECTS, TESTER, connected, ledger_at, users_for

LIBRARY: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
if not LIBRARY.exists():
    not_run(f"{LIBRARY} is not here (Debian: libfaketime)")

SECOND_NS: Final = 10**9
GRACE_MS: Final = 3_000
OUTAGE_MS: Final = 1_500
WAIT_S: Final = 30.0
_POLL_S: Final = 0.02
PROGRAM: Final = f"""
import sys
from leasehold.events import limits
limits.GRACE_MS, limits.OUTAGE_MS = {GRACE_MS}, {OUTAGE_MS}
from leasehold.services import processes
sys.exit(processes.main(sys.argv[1:]))
"""
"""The process as it is, but for shorter waits."""


class Machine:
    """What an allocator runs on: a clock of its own, and one process at a time."""

    def __init__(self, folder: Path, name: str, url: str) -> None:
        self.name = name
        self._data = folder / name
        self._clock = folder / f"{name}.faketime"
        self._process: subprocess.Popen[bytes] | None = None
        self._data.mkdir()
        (self._data / credentials.FOLDER).mkdir()
        info = home.ConnectionInfo(url=url, cluster=SUBJECTS.cluster, data=str(self._data))
        home.write_connection(self._data, info)
        credentials.write_credential(credentials.path_of(info, "allocator"), _ALLOCATOR)
        self.set_off(0)

    def set_off(self, off_s: int) -> None:
        """Set the machine's clock: so far beside the truth."""
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(f"{off_s:+d}\n")
        fresh.replace(self._clock)

    @property
    def environment(self) -> dict[str, str]:
        """That of a process here."""
        return {
            **os.environ,
            "LEASEHOLD_HOST": self.name,
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def start(self) -> None:
        """Start the allocator."""
        command = [sys.executable, "-c", PROGRAM, "allocator", "--data", str(self._data)]
        self._process = subprocess.Popen(command, env=self.environment, preexec_fn=tied_to_us())  # noqa: PLW1509

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        """What it has said so far."""
        path = self._data / "allocator.log"
        return path.read_text() if path.exists() else ""

    async def says(self, text: str) -> None:
        """Wait until it has said this."""
        async with asyncio.timeout(WAIT_S):
            while text not in self.log:  # noqa: ASYNC110 - a log tells nobody
                await asyncio.sleep(_POLL_S)


_ALLOCATOR: Final = new_credential("allocator", "allocator", SUBJECTS.cluster)
_TIME: Final = re.compile(rb'(?<="ts":")\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d')


class TimeProxy(Proxy):
    """A wire on which the server tells another time: that of `$JS.API.STREAM.INFO` is moved by `off_s`."""

    off_s = 0

    async def _carry(self, reader: asyncio.StreamReader, link: Link, direction: Direction) -> None:
        moved = _Moved(reader, self) if direction is self.down else reader
        await super()._carry(moved, link, direction)  # type: ignore[arg-type]


class _Moved:
    def __init__(self, reader: asyncio.StreamReader, proxy: TimeProxy) -> None:
        self._reader = reader
        self._proxy = proxy

    async def read(self, size: int) -> bytes:
        """What came in up to the end of a message, with its times moved. Nothing changes in length."""
        data = await self._reader.read(size)
        while data and not data.endswith(b"\r\n") and (more := await self._reader.read(size)):
            data += more
        return _TIME.sub(self._move, data)

    def _move(self, found: re.Match[bytes]) -> bytes:
        moved = datetime.fromisoformat(found[0].decode()) + timedelta(seconds=self._proxy.off_s)
        return moved.isoformat(timespec="seconds").encode()


class Site:
    """A server behind a wire that moves its time, machines with allocators, and one client that sees all."""

    def __init__(self, folder: Path, server: NatsServer, proxy: TimeProxy, client: Connection) -> None:
        self.proxy = proxy
        self._folder = folder
        self._server = server
        self._client = client
        self._count = 0

    def machine(self, name: str) -> Machine:
        """A machine with an allocator that is not started."""
        return Machine(self._folder, name, self.proxy.url)

    def step(self, off_s: int, *machines: Machine) -> None:
        """The server's clock steps, and the machines' with it."""
        self.proxy.off_s = off_s
        for machine in machines:
            machine.set_off(off_s)

    async def ask(self, request: Request) -> Answer:
        """Ask until it is decided."""
        async with asyncio.timeout(WAIT_S):
            while True:
                answer = await self.ask_once(request)
                if answer is not None and answer.outcome not in ("unavailable", "outcome_unknown"):
                    return answer
                await asyncio.sleep(_POLL_S)

    async def ask_once(self, request: Request) -> Answer | None:
        """Ask; `None` if nobody answers."""
        subject = SUBJECTS.request("alice", codec.verb_of(request))
        try:
            reply = await self._client.ask(subject, codec.encode(request), timeout_s=2.0)
        except UnavailableError:
            return None
        return None if reply.status else msgspec.json.decode(reply.body, type=Answer)

    async def lease(self, device: int, ttl_ms: int, *, issued_off_s: int = 0) -> Answer:
        """Lease a device."""
        self._count += 1
        return await self.ask(
            inputs.LeaseRequest(
                request_id=RequestId(f"lease-{self._count}"),
                issued_at_ns=time.time_ns() + issued_off_s * SECOND_NS,
                devices=(f"{HOST}/{paper_device(device).key}",),
                holder=Holder("vm1"),
                ttl_ms=ttl_ms,
            )
        )

    async def renew(self, held: Answer) -> Answer:
        """Renew a lease."""
        self._count += 1
        return await self.ask(
            inputs.RenewRequest(
                request_id=RequestId(f"renew-{self._count}"),
                issued_at_ns=time.time_ns(),
                lease=held.lease,
                token=held.token,
            )
        )

    async def events(self) -> list[tuple[int, Event]]:
        """All events, each with when it was decided. The log's time never goes back."""
        found: list[tuple[int, Event]] = []
        async with ledger_at(self._server.url) as ledger:
            last, done = await ledger.last_sequence(), 0
            async with aclosing(ledger.follow(0)) as batches:
                while done < last:
                    for entry in await anext(batches):
                        record = codec.decode_record(entry.body, entry.sequence)
                        assert not found or record.decided_at_ns >= found[-1][0]
                        found += [(record.decided_at_ns, event) for step in record.steps for event in step.events]
                        done = entry.sequence
        return found

    async def until(self, holds: Callable[[list[tuple[int, Event]]], bool]) -> list[tuple[int, Event]]:
        """Wait until something holds of the ledger."""
        async with asyncio.timeout(WAIT_S):
            while not holds(found := await self.events()):  # noqa: ASYNC110 - what is looked for may be anything
                await asyncio.sleep(_POLL_S)
        return found

    async def until_expired(self, lease: Answer) -> float:
        """Wait until a lease is seen to have expired; the monotonic time of that."""
        await self.until(lambda found: lease.lease in expired(found))
        return time.monotonic()

    async def until_begun(self, reason: str, times: int) -> None:
        """Wait until so many have begun to decide for this reason."""
        await self.until(lambda found: _starts(found).count(reason) >= times)

    @asynccontextmanager
    async def reported(self) -> AsyncIterator[None]:
        """With a host that reports, and goes on to live."""
        async with asyncio.timeout(WAIT_S):
            reporter = await report_devices(self._client, SUBJECTS, 4)
        beating = asyncio.create_task(beat(self._client, SUBJECTS, reporter))
        try:
            yield
        finally:
            beating.cancel()


def _starts(found: list[tuple[int, Event]]) -> list[str]:
    return [event.reason for _, event in found if isinstance(event, GraceStarted)]


def expired(found: list[tuple[int, Event]]) -> dict[int, int]:
    """Lease -> when its end was decided."""
    return {event.lease: at_ns for at_ns, event in found if isinstance(event, LeaseExpired)}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A server with empty streams."""
    server = NatsServer(tmp_path / "nats", users=users_for(TESTER, _ALLOCATOR), probe=TESTER)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        client = await stack.enter_async_context(connected(server.url))
        await ensure_streams(client, SUBJECTS)
        port = urlparse(server.url).port
        assert port is not None
        proxy = TimeProxy(port)
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.url = f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        try:
            yield Site(tmp_path, server, proxy, client)
        finally:
            listener.close()
            await proxy.close()
            await listener.wait_closed()


@asynccontextmanager
async def running(*machines: Machine) -> AsyncIterator[None]:
    """Allocators on these machines, ended in the end."""
    try:
        for machine in machines:
            machine.start()
        yield
    finally:
        for machine in machines:
            machine.kill()


def test_only_the_wall_clock_is_moved(site: Site) -> None:
    """What the tests here rest on: a process sees another time of day, and the same time since boot."""
    machine = site.machine("m")
    machine.set_off(3_600)
    program = "import time; print(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic())"
    done = subprocess.run([sys.executable, "-c", program], env=machine.environment, capture_output=True, check=True)
    wall_s, boot_s, monotonic_s = map(float, done.stdout.split())
    assert 3_590 < wall_s - time.time() < 3_610
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - boot_s < 10
    assert 0 <= time.monotonic() - monotonic_s < 10


@pytest.mark.parametrize("off_s", [3_600, -3_600])
async def test_an_allocator_an_hour_off_leaves_it_to_another(site: Site, off_s: int) -> None:
    """Its clock jumps: it says why it stops deciding, a right one does, nothing expires; then it may again."""
    first, second = site.machine("first"), site.machine("second")
    async with running(first), site.reported():
        held = await site.lease(0, 60_000)
        second.start()
        try:
            await second.says("the clock is a new one")
            first.set_off(off_s)
            await first.says("this machine's clock differs from the server's by")
            await site.until_begun("takeover", 1)
            assert (await site.lease(1, 60_000, issued_off_s=3_500)).outcome == "granted"
            assert (await site.lease(2, 60_000, issued_off_s=-3_600)).outcome == "granted"
            refused = await site.lease(3, 60_000, issued_off_s=3_700)
            assert refused.refusal is not None
            assert refused.refusal.code == "request_from_future"
            assert (await site.renew(held)).outcome == "renewed"
            # Alone, it still does not decide; and once its clock is right, it does.
            first.set_off(0)
            second.kill()
            await site.until_begun("takeover", 2)
            assert (await site.renew(held)).outcome == "renewed"
        finally:
            second.kill()
    assert expired(await site.events()) == {}


async def test_a_server_that_steps_forward_ends_no_lease_early(site: Site) -> None:
    """Server and machine step by an hour: a lease lives out its time, even if the allocator is killed after that."""
    machine = site.machine("first")
    async with running(machine), site.reported():
        began_s = time.monotonic()
        short, long = await site.lease(0, 5_000), await site.lease(1, 9_000)
        site.step(3_600, machine)
        ended_s = await site.until_expired(short)
        assert ended_s - began_s >= 5.0
        machine.kill()
        machine.start()
        await machine.says("the clock is carried on")
        ended_s = await site.until_expired(long)
        assert ended_s - began_s >= 9.0
        print(f"ended {ended_s - began_s - 9:.1f} s after its time")
        ends = expired(await site.events())
        assert ends[long.lease] < time.time_ns() + 60 * SECOND_NS, "the log's time has jumped"


async def test_a_new_clock_behind_a_step_gives_each_lease_its_whole_time(site: Site) -> None:
    """The same on another machine, which cannot know: from its start on a lease gets its whole time, grace or not."""
    first, second = site.machine("first"), site.machine("second")
    async with running(first), site.reported():
        held = await site.lease(0, 9_000)
        began_s = time.monotonic()
        first.kill()
        site.step(3_600, second)
        async with running(second):
            await site.until_begun("takeover", 1)
            ended_s = await site.until_expired(held)
    assert ended_s - began_s >= 9.0


async def test_a_server_that_steps_back_stops_the_logs_time(site: Site) -> None:
    """An hour back: decisions go on, at a time that stands still, and leases last; an hour forth again: all goes on."""
    machine = site.machine("first")
    async with running(machine), site.reported():
        held = await site.lease(0, 2_000)
        site.step(-3_600, machine)
        began_s = time.monotonic()
        while time.monotonic() - began_s < 2 + GRACE_MS / 1_000:
            renewed = await site.renew(held)
            assert renewed.outcome == "renewed"
        last_ns = max(at_ns for at_ns, event in await site.events() if isinstance(event, LeaseRenewed))
        assert last_ns < time.time_ns() - SECOND_NS, "the log's time did not stand still"
        site.step(0, machine)
        began_s = time.monotonic()
        ended_s = await site.until_expired(held)
        assert ended_s - began_s < 2 + GRACE_MS / 1_000 + 5


@pytest.mark.parametrize("fault", ["outage", "takeover"])
async def test_nobody_loses_a_lease_because_we_were_down(site: Site, fault: str) -> None:
    """Down for longer than the TTL: whoever renews within the grace time keeps the lease, and it ends for the rest."""
    first, second = site.machine("first"), site.machine("second")
    async with running(first), site.reported():
        kept, lost = await site.lease(0, 1_500), await site.lease(1, 1_500)
        down_s = time.monotonic()
        if fault == "outage":
            site.proxy.freeze()
            await first.says("the log does not answer")
        else:
            first.kill()
        while time.monotonic() - down_s < 2.5:
            assert await site.ask_once(inputs.RenewRequest(
                request_id=RequestId("x"), issued_at_ns=time.time_ns(), lease=lost.lease, token=0
            )) is None or fault == "outage"  # fmt: skip
        site.proxy.thaw()
        if fault == "takeover":
            second.start()
        try:
            await site.until_begun(fault, 1)
            back_s = time.monotonic()
            renewed = await site.renew(kept)
            assert (renewed.outcome, renewed.state) == ("renewed", "living")
            ended_s = await site.until_expired(lost)
            assert ended_s - back_s >= GRACE_MS / 1_000 - 1
            found = await site.events()
            grace_ns = max(event.until_ns for _, event in found if isinstance(event, GraceStarted))
            ends = expired(found)
            assert ends[lost.lease] >= grace_ns
            granted = {event.expires_at_ns for _, event in found if isinstance(event, LeaseGranted)}
            assert max(granted) < grace_ns - GRACE_MS * 1_000_000, "its time was not over before we were back"
            print(f"ended {(ends[lost.lease] - grace_ns) / 1e6:.0f} ms after the grace time")
        finally:
            second.kill()


assert GRACE_MS < limits.GRACE_MS
