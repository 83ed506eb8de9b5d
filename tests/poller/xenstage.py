"""The stand-in for xend as a stage: it is asked over its own HTTP, as `xm` would; what no protocol does, it is told."""

import asyncio
import sys
import uuid as uuids
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from leasehold.events.identities import parse_pci_address
from leasehold.services.lifeline import tied_to_us
from leasehold.services.poller.xend import XendSource
from leasehold.services.xend import answers
from leasehold.services.xend.address import Address
from leasehold.services.xend.http import Request, exchange
from leasehold.services.xendsim.server import HTTP_SOCKET, XMLRPC_SOCKET, Options, Stand, give_order

TIMEOUT_S: Final = 10.0
START_S: Final = 60.0
SOON: Final = {
    "guest_ms": 0,
    "ended_ms": 0,
    "crash_ms": 0,
    "destroy_ms": 0,
    "gap_ms": 200,
    "dying_ms": 50,
    "restart_after_ms": 0,
}
"""How long things take here."""
NO_SYSFS: Final = Path("/nonexistent")


class XenStage:
    """A host with its xend. See `conformance.Stage`."""

    cannot: Mapping[str, str] = {}
    pci: Sequence[str] = ("pci/0000:03:00.0", "pci/0000:06:00.0")
    usb: Sequence[str] = ("usb-port/1-1", "usb-port/2-1.4")

    def __init__(self, directory: Path, protocol: str, *, domains: int = 0, seed: int = 1) -> None:
        """`protocol`: of the sources, `unix` (HTTP) or `xmlrpc`; `domains`: so many to begin with; `seed`: chance."""
        self._options = Options(directory=directory, seed=seed, domains=domains)
        self.socket = directory / HTTP_SOCKET
        self.http = Address("http", path=str(self.socket))
        socket = {"unix": HTTP_SOCKET, "xmlrpc": XMLRPC_SOCKET}[protocol]
        self.url = f"{protocol}:{directory / socket}"
        self._running = AsyncExitStack()
        self.cannot = {"destroy_slowly": "HTTP does not tell what is held"} if protocol == "unix" else {}

    async def open(self) -> None:
        """Begin."""
        await self.find()
        for name, ms in SOON.items():
            await self.order("timing", name, str(ms))

    async def order(self, *words: str) -> Any:
        """Have something happen that no protocol asks for; what is said of it."""
        return await give_order(self._options.directory, list(words))

    def source(self) -> XendSource:
        """One that has looked at nothing yet."""
        return XendSource(self.url, sysfs=NO_SYSFS)

    async def start(self, name: str, *, devices: Sequence[str] = (), managed: bool = False) -> str:
        """Start a guest, and let it run."""
        if managed:
            uuid = await self.define(name, devices=devices)
            await self._ask(uuid, op="start", paused="0")
            return uuid
        uuid = str(uuids.uuid4())
        await self._ask("", op="create", config=_config(name, uuid, devices))
        await self._ask(uuid, op="unpause")
        return uuid

    async def define(self, name: str, *, devices: Sequence[str] = ()) -> str:
        """One that is managed."""
        uuid = str(uuids.uuid4())
        await self._ask("", op="new", config=_config(name, uuid, devices))
        return uuid

    async def reboot(self, uuid: str) -> None:
        """By its own wish."""
        await self._ask(uuid, op="shutdown", reason="reboot")

    async def halt(self, uuid: str) -> None:
        """By force."""
        await self._ask(uuid, op="destroy")

    async def destroy(self, uuid: str) -> None:
        """By force."""
        await self._ask(uuid, op="destroy")

    async def destroy_slowly(self, uuid: str) -> None:
        """xend forgets it at once, and Xen does not."""
        await self.order("linger", uuid, "-1")
        await self.destroy(uuid)

    async def let_go(self, uuid: str) -> None:
        """Xen forgets it, too."""
        await self.order("bury", uuid)

    async def rename(self, uuid: str, name: str) -> None:
        """Call it otherwise."""
        await self._ask(uuid, op="rename", name=name)

    async def pause(self, uuid: str) -> None:
        """Take it off the CPU."""
        await self._ask(uuid, op="pause")

    async def unpause(self, uuid: str) -> None:
        """Put it back."""
        await self._ask(uuid, op="unpause")

    async def crash(self, uuid: str) -> None:
        """All of ours stay when they crash."""
        await self.order("crash", uuid)

    async def set_memory(self, uuid: str, memory_bytes: int) -> None:
        """In MiB."""
        await self._ask(uuid, op="mem_target_set", target=str(memory_bytes >> 20))

    async def attach(self, uuid: str, device: str) -> None:
        """Plug it in."""
        await self._plug(uuid, device, "Initialising")

    async def detach(self, uuid: str, device: str) -> None:
        """Pull it out."""
        await self._plug(uuid, device, "Closing")

    async def _plug(self, uuid: str, device: str, state: str) -> None:
        kind, _, name = device.partition("/")
        if kind == "pci":
            config = f"(pci {_function(name)} (state '{state}'))"
        else:
            config = f"(vusb (port (1 {name if state == 'Initialising' else chr(39) * 2})))"
        await self._ask(uuid, op="device_configure", dev="0", config=config)

    async def lose(self) -> None:
        """xend ends; what the hypervisor has stays in its file."""
        await self._running.aclose()

    async def find(self) -> None:
        """xend begins, and finds what the hypervisor has."""
        await self._running.enter_async_context(Stand(self._options).listening())

    async def close(self) -> None:
        """End."""
        await self.lose()

    async def _ask(self, uuid: str, **fields: str) -> None:
        target = f"/xend/domain/{uuid}".rstrip("/")
        request = Request(fields["op"], "POST", target, urlencode(fields).encode())
        answers.value_of(await exchange(self.http, request, timeout_s=TIMEOUT_S), fields["op"])


class XenProcess(XenStage):
    """The same as a process of its own, `leasehold xend-sim`; it is lost by being killed."""

    _process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process, which must run."""
        assert self._process is not None
        return self._process.pid

    async def find(self) -> None:
        """Start it, and wait until it listens."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold", "xend-sim", "--dir", str(self._options.directory),
            "--domains", str(self._options.domains), "--seed", str(self._options.seed),
            stdout=asyncio.subprocess.PIPE, preexec_fn=tied_to_us(),
        )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(START_S):
            while b"ready" not in (line := await self._process.stdout.readline()):
                assert line, "the stand-in ended"

    async def lose(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            await self._process.communicate()
            self._process = None


def _config(name: str, uuid: str, devices: Sequence[str]) -> str:
    functions = "".join(_function(word.removeprefix("pci/")) for word in devices if word.startswith("pci/"))
    ports = [word.partition("/")[2] for word in devices if word.startswith("usb-port/")]
    parts = [
        f"(name {name}) (uuid {uuid}) (memory 64) (maxmem 64) (vcpus 1)",
        "(on_poweroff destroy) (on_reboot restart) (on_crash preserve) (image (linux (kernel /boot/vmlinuz-pv)))",
        f"(device (vusb (usb-ver 2) (num-ports 2) (port (1 {ports[0] if ports else chr(39) * 2}) (2 ''))))",
        f"(device (pci {functions}))" if functions else "",
    ]
    return f"(vm {' '.join(parts)})"


def _function(address: str) -> str:
    at = parse_pci_address(address)
    return (
        f"(dev (domain {at.domain:#06x}) (bus {at.bus:#04x}) (slot {at.slot:#04x}) (func {at.function:#x}) "
        "(vdevfn 0x100))"
    )
