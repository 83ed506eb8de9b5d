"""Runs in the guest as its first process, with nothing but Debian's Python: does what the host asks, tells of uevents.

The host speaks through a serial port, one JSON object a line, and is answered by objects that carry the same `id`:

    {"id": 1, "do": "run", "argv": ["ip", "link"], "timeout_s": 30}  ->  {"id": 1, "code": 0, "out": "…", "err": ""}

Without being asked it tells of each uevent of the kernel and of udevd, in the order in which they were read:

    {"uevent": {"source": "kernel", "action": "add", "path": "/devices/…", "at_ns": …, "values": {…}}}

Times are the guest's own clock since 1970; `clock` tells what it shows.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PORT = "leasehold"
PORTS = Path("/sys/class/virtio-ports")
NETLINK_KOBJECT_UEVENT = 15
KERNEL_GROUP, UDEV_GROUP = 1, 2
BUFFER_BYTES = 128 * 1024 * 1024
SO_RCVBUFFORCE = 33
_UDEV_HEADER = struct.Struct("@8sIIII")
_PORT_WAIT_S = 30.0
PAUSE_S = 0.05


def kernel_uevent(message: bytes) -> tuple[str, str, dict[str, str]] | None:
    """Action, path and values of the kernel's message `add@/devices/…`."""
    head, _, rest = message.partition(b"\0")
    action, at, path = head.decode(errors="replace").partition("@")
    return (action, path, _values(rest)) if at else None


def udev_uevent(message: bytes) -> tuple[str, str, dict[str, str]] | None:
    """The same of udevd's: a header that says where the values begin."""
    if len(message) < _UDEV_HEADER.size:
        return None
    magic, _version, _header, offset, length = _UDEV_HEADER.unpack_from(message)
    if magic != b"libudev\0":
        return None
    values = _values(message[offset : offset + length])
    return values.get("ACTION", ""), values.get("DEVPATH", ""), values


def _values(raw: bytes) -> dict[str, str]:
    pairs = (part.decode(errors="replace").partition("=") for part in raw.split(b"\0") if b"=" in part)
    return {name: value for name, _, value in pairs}


class Inside:
    """One serial port, and what was started over it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._tells = True

    def tell(self, message: dict[str, Any]) -> None:
        """Send one line, whole."""
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._port, line) :]

    def serve(self) -> None:
        """Do what is asked, each thing in a thread of its own."""
        for line in self._lines():
            threading.Thread(target=self._answer, args=(json.loads(line),), daemon=True).start()

    def _lines(self) -> Iterator[bytes]:
        waiting = b""
        while True:
            read = os.read(self._port, 1 << 16)
            if not read:
                # Nobody has the other end open; without a pause this would spin.
                time.sleep(PAUSE_S)
                continue
            *lines, waiting = (waiting + read).split(b"\n")
            yield from lines

    def _answer(self, asked: dict[str, Any]) -> None:
        try:
            answer = getattr(self, f"do_{asked['do']}")(**{k: v for k, v in asked.items() if k not in ("id", "do")})
        except Exception:
            answer = {"failed": traceback.format_exc()}
        self.tell({"id": asked["id"], **answer})

    def do_clock(self) -> dict[str, Any]:
        """What the clock shows."""
        return {"now_ns": time.time_ns()}

    def do_run(self, argv: list[str], timeout_s: float, **environment: str) -> dict[str, Any]:
        """Run a command to its end."""
        done = subprocess.run(
            argv, check=False, capture_output=True, timeout=timeout_s, env={**os.environ, **environment}
        )
        out, err = (each.decode(errors="replace") for each in (done.stdout, done.stderr))
        return {"code": done.returncode, "out": out, "err": err}

    def do_write(self, path: str, text: str, mode: int = 0o644) -> dict[str, Any]:
        """Write a file in one go, as sysfs wants it; `errno` where the kernel refuses."""
        try:
            if path.startswith("/sys/"):
                descriptor = os.open(path, os.O_WRONLY)
            else:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            return {"errno": error.errno}
        return {"errno": 0}

    def do_read(self, path: str) -> dict[str, Any]:
        """A file's text; `None` if it cannot be read."""
        try:
            return {"text": Path(path).read_text(errors="replace")}
        except OSError:
            return {"text": None}

    def do_link(self, path: str) -> dict[str, Any]:
        """Where a link leads to; empty if there is none."""
        try:
            return {"target": os.readlink(path)}
        except OSError:
            return {"target": ""}

    def do_list(self, path: str) -> dict[str, Any]:
        """The sorted names in a folder; none if there is no such folder."""
        try:
            return {"names": sorted(os.listdir(path))}
        except OSError:
            return {"names": []}

    def do_start(self, name: str, argv: list[str], log: str, **environment: str) -> dict[str, Any]:
        """Start what is to go on; its output goes to `log`."""
        with open(log, "ab") as file:
            self._started[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **environment}
            )
        return {"pid": self._started[name].pid}

    def do_signal(self, name: str, number: int) -> dict[str, Any]:
        """Signal what was started."""
        self._started[name].send_signal(number)
        return {}

    def do_end(self, name: str, number: int = signal.SIGTERM, timeout_s: float = 30) -> dict[str, Any]:
        """End what was started, and wait until it has ended."""
        process = self._started.pop(name)
        # A stopped one would not hear of it.
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        return {"code": process.wait(timeout_s)}

    def do_wait(self, name: str, timeout_s: float) -> dict[str, Any]:
        """Wait until what was started has ended by itself."""
        code = self._started[name].wait(timeout_s)
        del self._started[name]
        return {"code": code}

    def do_running(self) -> dict[str, Any]:
        """The names of what was started and has not been ended."""
        return {"names": sorted(self._started)}

    def do_tasks(self) -> dict[str, Any]:
        """Where in the kernel the threads of all that was started are, and those of others that run or cannot be woken:
        the text of some files in /proc, by whose they are.
        """
        started = {process.pid: name for name, process in self._started.items()}
        found = {}
        for folder in Path("/proc").glob("[0-9]*/task/[0-9]*"):
            process = int(folder.parts[2])
            # It may end while it is read.
            with contextlib.suppress(OSError, IndexError):
                comm, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
                state = rest.split()[0]
                is_ours = int(folder.name) == threading.get_native_id()
                if (process in started or state in "RD") and not is_ours:
                    who = f"{started.get(process, 'another process')}: {comm}, {folder.name} of {process}, {state}"
                    found[who] = {name: (folder / name).read_text() for name in ("wchan", "syscall", "stack")}
        return {"tasks": dict(sorted(found.items()))}

    def do_tell(self, uevents: bool) -> dict[str, Any]:
        """Whether uevents are told: a flood of them would fill the port."""
        self._tells = uevents
        return {}

    def do_flood(self, path: str, count: int) -> dict[str, Any]:
        """Have the kernel tell of one device `count` times, as fast as it goes."""
        begun = time.monotonic()
        descriptor = os.open(path, os.O_WRONLY)
        try:
            for _ in range(count):
                os.write(descriptor, b"change")
        finally:
            os.close(descriptor)
        return {"took_s": time.monotonic() - begun}

    def listen(self, group: int, source: str) -> None:
        """Tell of each uevent of one source, for ever."""
        listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
        listening.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        listening.bind((0, group))
        parse = kernel_uevent if group == KERNEL_GROUP else udev_uevent
        while True:
            try:
                message = listening.recv(1 << 16)
            except OSError:
                self.tell({"lost": source})
                continue
            at_ns = time.time_ns()
            found = parse(message) if self._tells else None
            if found is not None:
                action, path, values = found
                uevent = {"source": source, "action": action, "path": path, "at_ns": at_ns, "values": values}
                self.tell({"uevent": uevent})


def _port() -> str:
    """The serial port's node in /dev, as soon as the kernel has been told its name."""
    give_up = time.monotonic() + _PORT_WAIT_S
    while time.monotonic() < give_up:
        for found in PORTS.glob("*/name"):
            if found.read_text().strip() == PORT:
                return f"/dev/{found.parent.name}"
        time.sleep(PAUSE_S)
    raise SystemExit(f"no serial port {PORT}, only {[str(each) for each in PORTS.glob('*')]}")


def main() -> None:
    """Serve until the machine is switched off."""
    inside = Inside(os.open(_port(), os.O_RDWR))
    for group, source in ((KERNEL_GROUP, "kernel"), (UDEV_GROUP, "udev")):
        threading.Thread(target=inside.listen, args=(group, source), daemon=True).start()
    inside.tell({"ready": Path("/proc/uptime").read_text().split()[0]})
    with contextlib.suppress(KeyboardInterrupt):
        inside.serve()


if __name__ == "__main__":
    main()
