"""The monitor, on the real netlink socket and real mount tables.

Events are made by writing `change` into the uevent file of the loopback interface, which does nothing else.
"""

import asyncio
import itertools
import os
import resource
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from leasehold.events.errors import UnavailableError
from leasehold.projections import sightings
from leasehold.services.watcher import monitor as monitoring
from leasehold.services.watcher.monitor import LookAgain, UeventMonitor
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot
from tests.support.not_run import not_run

LOOPBACK = "/sys/devices/virtual/net/lo"


def make_event() -> None:
    if not os.access(f"{LOOPBACK}/uevent", os.W_OK):
        not_run("making a kernel event needs root")
    Path(LOOPBACK, "uevent").write_text("change")


@pytest.fixture
async def monitor() -> AsyncIterator[UeventMonitor]:
    async with UeventMonitor() as monitor:
        yield monitor


async def until(monitor: UeventMonitor, told: str) -> LookAgain:
    """The next signal that tells this; other users of the machine make events too."""
    async with asyncio.timeout(20):
        async for signal in monitor:
            if told in signal.words or (told in ("overflow", "mounts", "by_clock") and getattr(signal, told)):
                return signal
    raise AssertionError("the signals ended")


async def test_an_event_is_told(monitor: UeventMonitor) -> None:
    """A kernel event leads to a signal that names the device and when it was heard; how soon is printed."""
    start_ns = time.monotonic_ns()
    make_event()
    signal = await until(monitor, LOOPBACK)
    took_ms = (time.monotonic_ns() - start_ns) / 1e6
    print(f"{took_ms:.1f} ms")
    assert not signal.overflow
    assert start_ns < signal.first_event_ns < time.monotonic_ns()


async def test_a_storm_is_told_while_it_goes_on(monitor: UeventMonitor) -> None:
    """Events that never pause do not put the signal off, and are one signal in 20 ms, not one each."""
    events = 0

    async def storm() -> None:
        nonlocal events
        while True:
            make_event()
            events += 1
            await asyncio.sleep(0.001)

    make_event()
    task = asyncio.create_task(storm())
    signals = [await until(monitor, LOOPBACK) for _ in range(5)]
    task.cancel()
    gaps_ms = [(b.first_event_ns - a.first_event_ns) / 1e6 for a, b in itertools.pairwise(signals)]
    print(f"{events} events, {gaps_ms}")
    assert events > len(signals)
    assert all(gap >= 1 for gap in gaps_ms)
    assert sum(gaps_ms) < 2_000


async def test_what_is_heard_while_nobody_waits_is_kept(monitor: UeventMonitor) -> None:
    """The picture is taken meanwhile; the next call tells at once."""
    make_event()
    await asyncio.wait_for(monitor._heard.wait(), 5)
    assert LOOPBACK in (await until(monitor, LOOPBACK)).words


async def test_after_an_overflow_it_goes_on(monitor: UeventMonitor) -> None:
    """A buffer that ran over is told once, through a new socket, and later events are heard as before."""
    old = monitor.fileno()
    with socket.socket(fileno=os.dup(old)) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(500):
        make_event()
    assert (await until(monitor, "overflow")).overflow
    assert monitor.overflows == 1
    assert monitor.source
    spent = time.process_time()
    make_event()
    signal = await until(monitor, LOOPBACK)
    assert not signal.overflow
    assert time.process_time() - spent < 1


async def test_more_devices_than_a_signal_names(monitor: UeventMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the signal comes all the same, and names fewer."""
    monkeypatch.setattr(sightings, "PLACES_MAX", 0)
    make_event()
    async with asyncio.timeout(20):
        signal = await monitor.next()
    assert not signal.by_clock
    assert not signal.overflow
    assert not signal.words


async def test_without_sockets_the_clock_tells_and_the_monitor_comes_back() -> None:
    """No descriptor is left when the monitor must be replaced: it is tried again until there is one."""
    async with UeventMonitor(interval_ms=50) as monitor:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as highest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(monitor.fileno(), highest.fileno()), limit[1]))
            try:
                monitor._replace()
                assert monitor.source == ""
                assert (await monitor.next()).overflow
                assert (await until(monitor, "by_clock")).by_clock
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert (await until(monitor, "overflow")).overflow
        assert monitor.source
        make_event()
        assert LOOPBACK in (await until(monitor, LOOPBACK)).words


async def test_udevd_is_followed_when_it_starts_and_stops(tmp_path: Path) -> None:
    """Its group is silent without it, so the kernel's is used; the clock looks which is right."""
    root = HostRoot(run=tmp_path)
    control = tmp_path / "udev/control"
    control.parent.mkdir()
    async with UeventMonitor(root, interval_ms=50) as monitor:
        assert monitor.source == "kernel"
        control.touch()
        async with asyncio.timeout(20):
            while monitor.source != "udev":
                assert not (await monitor.next()).overflow
        assert monitor.overflows == 0
        control.unlink()
        await until(monitor, "overflow")
        assert monitor.source == "kernel"
        assert monitor.overflows == 1


async def test_who_tells_stays_while_nobody_can_say_who_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's table of sockets cannot be read for want of file descriptors: nothing is changed for that."""
    control = tmp_path / "udev/control"
    control.parent.mkdir()
    control.touch()
    async with UeventMonitor(HostRoot(run=tmp_path), interval_ms=1) as monitor:
        monkeypatch.setattr(monitoring, "udevd_runs", Mock(side_effect=UnavailableError("no more files")))
        assert (await monitor.next()).by_clock
        assert (monitor.source, monitor.overflows) == ("udev", 0)


async def test_a_mount_is_told_at_once(tmp_path: Path) -> None:
    """In a mount namespace of its own: its table tells each mount and unmount."""
    if os.geteuid() != 0:
        not_run("a mount namespace of its own needs root")
    there = tmp_path / "there"
    there.mkdir()
    script = f"echo; while read step; do $step {there}; echo; done"
    shell = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    await shell.stdout.readline()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/self").symlink_to(f"/proc/{shell.pid}")
    async with UeventMonitor(HostRoot(proc=tmp_path / "proc")) as monitor:
        for step in (b"mount -t tmpfs none\n", b"umount\n"):
            shell.stdin.write(step)
            await shell.stdout.readline()
            assert (await until(monitor, "mounts")).mounts
    shell.stdin.close()
    assert await shell.wait() == 0


async def test_an_idle_monitor_costs_nothing() -> None:
    """Half a second without events takes no processor time worth naming, though the mount table is always readable."""
    async with UeventMonitor(THIS_MACHINE, interval_ms=500) as monitor:
        while True:
            spent = time.process_time()
            signal = await monitor.next()
            spent = time.process_time() - spent
            if signal.by_clock:
                break
    print(f"{spent * 1000:.1f} ms in 500 ms")
    assert spent < 0.05
    assert not signal.words


async def test_closing_twice_and_starting_again() -> None:
    """A closed monitor has let go of all its descriptors, and a new one can be opened."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        monitor = UeventMonitor()
        monitor.start()
        monitor.close()
        monitor.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
