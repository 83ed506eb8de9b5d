"""One guest: QEMU as a process, its monitor, and whoever serves us inside.

Always emulated (TCG): what looks like /dev/kvm may be a software one in which a stock kernel does not get as far as its
first process, and nothing here needs speed.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError

from leasehold.services.lifeline import tied_to_us
from tests.support.tree import ROOT
from tests.vm.image import Parts

BOOT_S: Final = 300.0
ASK_S: Final = 120.0
_PROCESSORS: Final = 2
_MEMORY_MB: Final = 2_048
_CLOCK_ASKED: Final = 40
_LINE_BYTES_MAX: Final = 16 * 1024 * 1024
_POLL_S: Final = 0.1
UPLINK_MAC: Final = "52:54:00:12:34:56"
PORTS: Final = 5
"""PCI Express ports, `port1` to `port5`, on the buses 0000:01 to 0000:05, empty at the start but for two: the card with
virtual functions and the USB controller."""
_FUNCTIONS_PORT: Final = 2
_USB_PORT: Final = 4
_KERNEL_WORDS: Final = (
    "console=ttyS0 quiet loglevel=4 panic=-1 intel_iommu=on mitigations=off random.trust_cpu=on no_timer_check"
)


class Uevent:
    """One uevent as it was told inside. `at_ns`: when it was read, by the guest's clock; `values`: its variables."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.source: str = told["source"]
        self.action: str = told["action"]
        self.path: str = told["path"]
        self.at_ns: int = told["at_ns"]
        self.values: dict[str, str] = told["values"]

    @property
    def subsystem(self) -> str:
        """The device's."""
        return self.values.get("SUBSYSTEM", "")

    def __repr__(self) -> str:
        return f"{self.source} {self.action} {self.path}"


class GuestHungError(AssertionError):
    """Nobody inside answers, or it has not booted."""


class Guest:
    """A running guest."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self._folder = folder
        self._process = process
        self._monitor = QMPClient("guest")
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._moved = asyncio.Condition()
        self._plugged: list[str] = []
        self.uevents: list[Uevent] = []
        """All that were told so far, in order."""
        self.clock_offset_ns = 0
        """The guest's clock minus ours."""
        self.clock_error_ns = 0
        """By how much that may be wrong."""
        self.booted_s = 0.0

    async def open(self) -> None:
        """Wait until it has booted. Raises GuestHungError with the console's last words."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(BOOT_S):
                await self._connected(self._folder / "qmp", self._monitor.connect)
                reader, self._writer = await self._connected(
                    self._folder / "agent", lambda path: asyncio.open_unix_connection(path, limit=_LINE_BYTES_MAX)
                )
                self._reading = asyncio.create_task(self._read(reader))
                waiting = [asyncio.create_task(each) for each in (self._process.wait(), self._ready.wait())]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in waiting:
                    task.cancel()
                if not self._ready.is_set():
                    raise GuestHungError(f"the guest ended while it booted:\n{self.console()}")
        except TimeoutError:
            raise GuestHungError(f"the guest has not booted after {BOOT_S:.0f} s:\n{self.console()}") from None
        self.booted_s = time.monotonic() - begun
        await self.set_clock()

    async def _connected(self, path: Path, connect: Callable[[str], Any]) -> Any:
        """QEMU makes its sockets when it has read its arguments."""
        while True:
            code = self._process.returncode
            assert code is None, f"QEMU ended with code {code}:\n{self.console()}"
            try:
                return await connect(str(path))
            except (OSError, QMPError):
                await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """End it."""
        with contextlib.suppress(QMPError, OSError, EOFError):
            async with asyncio.timeout(5):
                await self._monitor.execute("quit")
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._monitor.disconnect()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self._writer is not None:
            self._writer.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def console(self) -> str:
        """The last that the kernel and QEMU said."""
        texts = []
        for name in ("console.log", "qemu.log"):
            with contextlib.suppress(OSError):
                texts.append((self._folder / name).read_text(errors="replace")[-3_000:])
        return "\n".join(texts)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            told = json.loads(line)
            if "id" in told:
                if (asked := self._asked.pop(told["id"], None)) is not None and not asked.done():
                    asked.set_result(told)
            elif "uevent" in told:
                self.uevents.append(Uevent(told["uevent"]))
                async with self._moved:
                    self._moved.notify_all()
            elif "ready" in told:
                self._ready.set()

    # --- what is asked of whoever serves us inside ------------------------------------------------------------------

    async def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Have something done inside; `inside.Inside.do_…` says what there is."""
        number = next(self._ids)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        assert self._writer is not None, "the guest has not booted"
        self._writer.write(json.dumps({"id": number, "do": do, **values}).encode() + b"\n")
        try:
            async with asyncio.timeout(ASK_S):
                answer: dict[str, Any] = await asked
        except TimeoutError:
            raise GuestHungError(f"no answer from inside to {do} {values}:\n{self.console()}") from None
        assert "failed" not in answer, f"{do} {values}: {answer.get('failed')}"
        return answer

    async def run(self, *argv: str, timeout_s: float = 60) -> str:
        """Run a command inside that must do well; what it wrote."""
        done = await self.ask("run", argv=argv, timeout_s=timeout_s)
        assert done["code"] == 0, f"{' '.join(argv)}: {done['code']} {done['out']}{done['err']}"
        return str(done["out"])

    async def write(self, path: str, text: str) -> None:
        """Write a file inside that must take it."""
        number = (await self.ask("write", path=path, text=text))["errno"]
        assert number == 0, f"{text!r} > {path}: {os.strerror(number)}"

    async def read(self, path: str) -> str | None:
        """A file's text inside; `None` if it cannot be read."""
        text: str | None = (await self.ask("read", path=path))["text"]
        return text

    async def link(self, path: str) -> str:
        """The last part of where a link inside leads to; empty if there is none."""
        return str((await self.ask("link", path=path))["target"]).rpartition("/")[2]

    async def names(self, path: str) -> list[str]:
        """The names in a folder inside."""
        return list((await self.ask("list", path=path))["names"])

    async def set_clock(self) -> None:
        """Find out what the guest's clock shows, from the quickest of some answers."""
        best = None
        for _ in range(_CLOCK_ASKED):
            before_ns = time.time_ns()
            theirs_ns = (await self.ask("clock"))["now_ns"]
            after_ns = time.time_ns()
            found = (after_ns - before_ns, theirs_ns - (before_ns + after_ns) // 2)
            best = found if best is None else min(best, found)
        assert best is not None
        self.clock_error_ns, self.clock_offset_ns = best[0] // 2, best[1]

    def ours_ns(self, theirs_ns: int) -> int:
        """A time of the guest's clock by ours."""
        return theirs_ns - self.clock_offset_ns

    async def start_udevd(self) -> None:
        """Start udevd inside, unless it runs."""
        await self.run("sh", "-c", "udevadm control --ping 2>/dev/null || /lib/systemd/systemd-udevd --daemon")

    # --- its devices ------------------------------------------------------------------------------------------------

    async def plug(self, driver: str, name: str, **values: object) -> None:
        """Plug a device in; returns when QEMU has done it."""
        await self._monitor.execute("device_add", {"driver": driver, "id": name, **values})
        self._plugged.append(name)

    async def unplug(self, name: str) -> None:
        """Ask for a device to be given back; PCI devices go when the guest's kernel has let go of them."""
        await self._monitor.execute("device_del", {"id": name})
        self._plugged.remove(name)

    async def unplug_all(self) -> None:
        """Give back whatever is still plugged in."""
        for name in reversed(self._plugged):
            with contextlib.suppress(QMPError):
                await self._monitor.execute("device_del", {"id": name})
        self._plugged.clear()

    async def monitor(self, command: str, **values: object) -> object:
        """Any other command of QEMU's monitor."""
        return await self._monitor.execute(command, dict(values))

    async def hmp(self, command: str) -> str:
        """What QEMU's monitor for people answers."""
        return str(await self._monitor.execute("human-monitor-command", {"command-line": command}))

    async def uevent(self, wanted: Callable[[Uevent], bool], *, since: int, timeout_s: float = 60) -> Uevent:
        """The first uevent behind the `since`-th that is wanted."""
        begin = since
        async with self._moved:
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        for each in self.uevents[begin:]:
                            if wanted(each):
                                return each
                        begin = len(self.uevents)
                        await self._moved.wait()
            except TimeoutError:
                told = "\n".join(map(repr, self.uevents[since:][-40:]))
                raise AssertionError(f"no such uevent in {timeout_s:.0f} s, only:\n{told}") from None


def _machine(parts: Parts) -> list[str]:
    """The machine, what it starts, and what can be plugged in and out."""
    words = ["-cpu", "max,la57=off", "-m", str(_MEMORY_MB)]
    words += ["-kernel", str(parts.kernel), "-initrd", str(parts.initrd), "-append", _KERNEL_WORDS]
    words += ["-device", "intel-iommu,intremap=on,caching-mode=on", "-device", "virtio-rng-pci"]
    words += ports(PORTS)
    words += ["-device", f"igb,bus=port{_FUNCTIONS_PORT},mac=52:54:00:aa:00:02,romfile="]
    words += ["-device", f"qemu-xhci,id=usb,bus=port{_USB_PORT}", "-device", "usb-hub,id=hub,bus=usb.0,port=1"]
    return words


def ports(count: int) -> list[str]:
    """PCI Express ports, `port1` and so on; the card in one of them is on the bus of its number."""
    words = []
    for number in range(1, count + 1):
        words += ["-device", f"pcie-root-port,id=port{number},chassis={number},slot={number},bus=pcie.0"]
    return words


def _arguments(parts: Parts, folder: Path, machine: list[str], virtio: str) -> list[str]:
    words = [*parts.program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-machine", "q35", "-accel", "tcg,thread=multi", "-smp", str(_PROCESSORS)]
    words += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off", "-serial", f"file:{folder}/console.log"]
    words += ["-drive", f"file={parts.disk},if=none,id=root,format=raw,snapshot=on,cache=unsafe"]
    words += ["-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off"]
    devices = ["virtio-blk-pci,drive=root", "virtio-serial-pci"]
    for tag, path in (("repo", str(ROOT)), ("site", sysconfig.get_path("purelib"))):
        words += ["-fsdev", f"local,id={tag},path={path},security_model=none,readonly=on,multidevs=remap"]
        devices.append(f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")
    words += ["-netdev", "user,id=uplink"]
    devices.append(f"virtio-net-pci,netdev=uplink,mac={UPLINK_MAC},romfile=")
    for device in devices:
        words += ["-device", device + virtio]
    return [*words, "-device", "virtserialport,chardev=agent,name=leasehold", *machine]


@asynccontextmanager
async def booted(
    parts: Parts, folder: Path, machine: list[str] | None = None, virtio: str = ""
) -> AsyncIterator[Guest]:
    """A guest that has booted; it is ended in the end.

    Args:
        parts: what it is started from.
        folder: for its sockets and what it says.
        machine: QEMU's arguments for another processor, memory, kernel and devices.
        virtio: further properties of the devices with which we speak with it.
    """
    arguments = _arguments(parts, folder, _machine(parts) if machine is None else machine, virtio)
    with (folder / "qemu.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *("nice", "-n", "5", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **parts.environment},
            preexec_fn=tied_to_us(),
        )
    guest = Guest(folder, process)
    try:
        await guest.open()
        yield guest
    finally:
        await guest.close()


def main() -> None:
    """Boot one, for a look: `python -m tests.vm.guest 'command'`."""
    from tests.vm import image  # noqa: PLC0415 - only for this

    look(image.parts(print))


def look(parts: Parts, machine: list[str] | None = None, virtio: str = "") -> None:
    """Boot a guest, and run the commands of our own command line in it."""

    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="leasehold-vm-") as folder:
            async with booted(parts, Path(folder), machine, virtio) as guest:
                print(f"booted in {guest.booted_s:.1f} s")
                for command in sys.argv[1:]:
                    done = await guest.ask("run", argv=["sh", "-c", command], timeout_s=100)
                    print(f"$ {command}\n{done['out']}{done['err']}[{done['code']}]", flush=True)

    asyncio.run(run())


if __name__ == "__main__":
    main()
