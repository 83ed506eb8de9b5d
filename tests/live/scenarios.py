"""What a watcher makes of real links in a network namespace: `python -m tests.live.scenarios <scenario> <folder>`.

Each scenario ends with code 0 if all that it claims is so; what it measured, it prints.
"""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from leasehold.events.event_types import (
    DeviceAppeared,
    DeviceChanged,
    DeviceFlapped,
    DeviceMissing,
    DeviceReappeared,
    DeviceReplaced,
)
from leasehold.services.watcher.links import BUFFER_BYTES, LinkEvents, LinkNews
from leasehold.services.watcher.monitor import UeventMonitor
from tests.live.watched import (
    WAIT_S,
    Watched,
    how_of,
    ip,
    key_of,
    links_in,
    links_of_kernel,
    state_of,
    uevents_so_far,
    watched,
)

UEVENTS: Final = 10_000
BRIDGE_LOSSES: Final = 30
LINK_LOSSES: Final = 10
UDEVD: Final = "/lib/systemd/systemd-udevd"


def shrink_buffers(monitor: UeventMonitor) -> None:
    """Let the socket of uevents have room for two or three, and that of links for one or two."""
    assert monitor._links is not None
    for descriptor in (monitor.fileno(), monitor._links.fileno()):
        with socket.socket(fileno=os.dup(descriptor)) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


def burst() -> list[str]:
    """Commands that make some 12,000 events: links that come, and go, and are renamed, joined and put up."""
    pairs = list(range(600))
    random.shuffle(pairs)
    gone, left = pairs[:500], pairs[500:]
    made = [f"link add v{n} group {7 if n in gone else 0} type veth peer name w{n}" for n in pairs]
    bridges = [f"link add b{n} type bridge" for n in range(300)]
    changes = [f"link set b{n} name c{n}" for n in range(0, 300, 3)]
    changes += [f"link set v{n} master b{4 + 3 * (n % 50)} up" for n in left]
    changes += [f"link set w{n} up" for n in left[::2]]
    return [*made, *bridges, "link del group 7", *changes]


async def a_burst(host: Watched) -> None:
    """What is in the log in the end is what the kernel has, whatever was lost on the way; and how often that was."""
    async with host.watcher() as monitor:
        await host.until_equal()
        for is_small in (False, True):
            if is_small:
                shrink_buffers(monitor)
            before, lost_before, begun_s = uevents_so_far(), monitor.overflows, time.monotonic()
            await asyncio.to_thread(ip, *burst())
            made_s, uevents = time.monotonic() - begun_s, uevents_so_far() - before
            right = await host.until_equal()
            took_s = time.monotonic() - begun_s
            lost = monitor.overflows - lost_before
            await host.log.until(lambda: host.log.missed() == monitor.overflows, "all losses are told")
            how = "with room for three" if is_small else "with the usual room"
            print(f"{uevents} uevents in {made_s:.1f} s {how}: {len(right)} links after {took_s:.1f} s, {lost} resyncs")
            assert uevents >= UEVENTS
            assert bool(lost) == is_small
            if is_small:
                assert any(how_of(event).why == "lost_events" for event in host.log.of_devices())
            ip(*(f"link set {name} group 9" for name in right if name != "lo"), "link del group 9")
            await host.until_equal()


async def restarts(host: Watched) -> None:
    """A run that finds nothing new tells no device; one that does tells exactly that."""
    ip("link add stays type bridge", "link add goes type bridge", "link add turns type veth peer name end")
    async with host.watcher():
        await host.until_equal()
    told = len(host.log.events)
    for _ in range(2):
        async with host.watcher():
            await host.until_equal()
    assert host.log.of_devices(told) == []
    ip("link del goes", "link add new type bridge", "link set turns up", "link set end up")
    told = len(host.log.events)
    async with host.watcher():
        await host.until_equal()
    found = {(type(event), key_of(event).rpartition("/")[2]) for event in host.log.of_devices(told)}
    assert found == {
        (DeviceMissing, "goes"), (DeviceAppeared, "new"), (DeviceChanged, "turns"), (DeviceChanged, "end")
    }  # fmt: skip
    assert len(host.log.of_devices(told)) == len(found)
    assert {how_of(event).why for event in host.log.of_devices(told)} == {"start"}


async def words(host: Watched) -> None:
    """Each change is told with what the kernel said of it, and since when that was known."""
    async with host.watcher():
        await host.until_equal()
        started_ns = time.time_ns()
        for commands, name, kind, actions in (
            (["link add v0 type veth peer name v1"], "v0", DeviceAppeared, {"add"}),
            (["link set v0 up"], "v0", DeviceChanged, {"link"}),
            (["link set v1 up"], "v0", DeviceChanged, {"link_up"}),
            (["link set v1 down"], "v0", DeviceChanged, {"link_down"}),
            (["link set v0 down", "link set v0 name w0"], "v0", DeviceMissing, {"move"}),
            ([], "w0", DeviceAppeared, {"move"}),
            (["link add br0 type bridge", "link set w0 master br0"], "w0", DeviceChanged, {"link"}),
            (["link del w0"], "v1", DeviceMissing, {"remove"}),
        ):
            told = len(host.log.events)
            if commands:
                await asyncio.to_thread(ip, *commands)
            await host.until_equal()
            events = host.log.of_devices(0 if not commands else told, name)
            assert isinstance(events[-1], kind), (commands, name, events)
            how = how_of(events[-1])
            print(name, kind.__name__, how)
            assert (how.why, how.source, how.flaps) == ("event", "kernel", 0)
            assert actions <= set(how.actions)
            assert started_ns < how.heard_at_ns < time.time_ns()


async def overrun(_host: Watched) -> None:
    """What rtnetlink could not keep is told as lost, once; after that each word is understood by how it is now."""
    ip("link add v0 type veth peer name v1", "link set v0 up")
    ear = LinkEvents()
    with contextlib.closing(ear), socket.socket(fileno=os.dup(ear.fileno())) as same:
        assert list(_all_news(ear)) == []
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        ip(*(f"link add b{number} type bridge" for number in range(100)), "link set v1 up")
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        heard = [ear.read() for _ in range(100)]
        assert sum(each.lost for each in heard) == 1
        ip("link set v1 down")
        said = {news.name: news for news in _all_news(ear)}
        print(said)
        assert said["v1"].action == "link_down"
        assert not said["v1"].is_new


async def flaps(host: Watched) -> None:
    """A bridge that comes and goes, and a link that keeps failing: told seldom, each loss counted, the end as it is."""
    ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up", "link add br0 type bridge")
    async with host.watcher():
        await host.until_equal()
        told, other_ear = len(host.log.events), LinkEvents()
        assert list(_all_news(other_ear)) == []
        for number in range(BRIDGE_LOSSES):
            await asyncio.to_thread(ip, "link del br0")
            await asyncio.to_thread(ip, "link add br0 type bridge")
            if number % (BRIDGE_LOSSES // LINK_LOSSES) == 0:
                await asyncio.to_thread(_pull_and_plug)
        # The kernel may pass some over, or say one more at the other end.
        said = Counter(news.name for news in _all_news(other_ear) if news.action == "link_down")
        other_ear.close()
        for name, count in (("br0", BRIDGE_LOSSES), ("v0", said["v0"]), ("v1", said["v1"])):

            def losses(name: str = name) -> int:
                return sum(_losses(event) for event in host.log.of_devices(told, name))

            # What is as it was before may be held back for a while, with its number.
            await host.log.until(lambda: losses() >= count, f"{count} losses of {name} are told")  # noqa: B023
            events = len(host.log.of_devices(told, name))
            print(f"{name}: {count} losses are {events} events")
            assert losses() == count >= LINK_LOSSES // 2, f"{losses()} of {name} are told"
            assert events <= 4 * count // 3
        assert await host.until_equal() == links_of_kernel()


def _all_news(ear: LinkEvents) -> Iterator[LinkNews]:
    while news := ear.read().news:
        yield from news


def _pull_and_plug() -> None:
    for command, state in (("link set v1 down", "down"), ("link set v1 up", "up")):
        ip(command)
        give_up_s = time.monotonic() + WAIT_S
        while links_of_kernel()["v1"][1] != state:
            assert time.monotonic() < give_up_s, f"v1 does not go {state}"


def _losses(event: object) -> int:
    """How many losses an event tells: those that were not told singly, and its own."""
    match event:
        case DeviceMissing(how=how):
            return 1 + (how.flaps if how else 0)
        case DeviceChanged(how=how, device=device, changed=changed):
            is_loss = any("link_state" in name for name in changed) and state_of(device) != "up"
            return is_loss + (how.flaps if how else 0)
        case DeviceAppeared(how=how) | DeviceReappeared(how=how) | DeviceReplaced(how=how) | DeviceFlapped(how=how):
            return how.flaps if how else 0
    return 0


def _start_udevd() -> "subprocess.Popen[bytes]":
    daemon = subprocess.Popen([UDEVD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ping = ["udevadm", "control", "--ping", "--timeout=5"]
    give_up_s = time.monotonic() + WAIT_S
    while subprocess.run(ping, check=False, capture_output=True, timeout=WAIT_S).returncode:
        assert time.monotonic() < give_up_s, "udevd does not answer"
    return daemon


async def udevd(host: Watched) -> None:
    """While udevd runs its word counts; when it has ended, the kernel's, and the change of ears is told as a loss."""
    daemon = await asyncio.to_thread(_start_udevd)
    try:
        async with host.watcher(interval_ms=1_000) as monitor:
            assert monitor.source == "udev"
            await asyncio.to_thread(ip, "link add br0 type bridge")
            await host.log.until(lambda: bool(host.log.of_devices(0, "br0")), "br0 is in the log")
            how = how_of(host.log.of_devices(0, "br0")[0])
            print(how)
            assert (how.why, how.source) == ("event", "udev")
            daemon.terminate()
            daemon.wait(WAIT_S)
            Path("/run/udev/control").unlink(missing_ok=True)
            await asyncio.to_thread(ip, "link add br1 type bridge")
            await host.until_equal()
            await asyncio.to_thread(ip, "link set br1 up")
            await host.log.until(lambda: host.log.missed() >= 1, "the change of ears is told")
            assert monitor.source == "kernel"
            await host.until_equal()
            await asyncio.to_thread(ip, "link set br1 address 02:00:00:00:00:07")
            await host.until_equal()
            assert any("link" in how_of(event).actions for event in host.log.of_devices(0, "br1"))
            await asyncio.to_thread(ip, "link add br2 type bridge")
            await host.until_equal()
            assert how_of(host.log.of_devices(0, "br2")[0]).source == "kernel"
    finally:
        daemon.kill()
        daemon.wait()


SCENARIOS: Final = {each.__name__: each for each in (a_burst, restarts, words, overrun, flaps, udevd)}


async def main(name: str, folder: Path, seed: str) -> None:
    """Run one of them."""
    random.seed(seed)
    print(f"seed {seed}")
    async with watched(folder) as host:
        await SCENARIOS[name](host)
    assert links_in({}) == {}


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
