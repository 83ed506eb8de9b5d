"""A libvirtd of our own: its directories and sockets in a folder, its mounts its own, the node-device driver alone.

Nothing of the system's libvirt is touched: mounts are private to the process, /run is the folder's, and only the driver
that lists devices is loaded. It ends by its process id.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from leasehold.services.lifeline import tied_to_us
from tests.support.not_run import not_run

DRIVER: Final = "libvirt_driver_nodedev.so"
DRIVER_FOLDERS: Final = ("lib/*/libvirt/connection-driver", "lib*/libvirt/connection-driver")
"""Debian, Fedora."""
STARTS_WITHIN_S: Final = 30.0
LOOKS_EVERY_S: Final = 0.5
"""While it is waited for: whether it has ended."""
ANSWERS_WITHIN_S: Final = 120.0
ASKED_AT_ONCE: Final = 100
"""How many devices one virsh shows."""
BETWEEN: Final = "----"
"""What stands between two answers."""

_INSIDE: Final = """\
set -eu
if [ -n "$MACHINE" ]; then
    mkdir -p "$MACHINE/misc"
    mount --bind "$MACHINE/misc" /usr/share/misc
    for node in null zero full random urandom tty; do
        touch "$MACHINE/dev/$node"
        mount --bind "/dev/$node" "$MACHINE/dev/$node"
    done
    mount --rbind "$MACHINE/dev" /dev
    mount --rbind "$MACHINE/sys" /sys
    mount --bind "$MACHINE/run/udev" "$FOLDER/run/udev"
elif [ -d /run/udev ]; then
    mount --bind /run/udev "$FOLDER/run/udev"
fi
mount --rbind "$FOLDER/run" /run
mount -t tmpfs none /var/lib
mount -t tmpfs none /var/cache
mkdir /var/lib/libvirt /var/cache/libvirt
eval "$PREPARE"
exec "$LIBVIRTD" -f "$FOLDER/libvirtd.conf" -p "$FOLDER/run/libvirtd.pid"
"""
"""Runs in new namespaces. An imitated /sys has a network of its own too, so that nobody asks real interfaces."""


class Libvirt:
    """A libvirtd that looks at this machine, or at an imitated one."""

    def __init__(self, folder: Path, machine: Path | None = None, prepare: str = "") -> None:
        """Starts it, and returns when it says that it is ready.

        Args:
            folder: for all that it writes; short, as sockets lie in it.
            machine: the folder of an imitated machine.
            prepare: what a shell does before, in a network of its own.
        """
        self.folder = folder
        self._log = folder / "libvirtd.log"
        for each in ("run/udev", "run/libvirt", "drivers"):
            (folder / each).mkdir(parents=True)
        (folder / "drivers" / DRIVER).symlink_to(drivers()[0])
        (folder / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{folder}/run/libvirt"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'log_outputs = "3:file:{self._log}"\n'
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(f"{folder}/ready")
            told.settimeout(LOOKS_EVERY_S)
            self.process = self._start(machine, prepare)
            give_up_s = time.monotonic() + STARTS_WITHIN_S
            while not is_told(told):
                if self.process.poll() is not None or time.monotonic() > give_up_s:
                    self.close()
                    raise AssertionError(f"libvirtd does not get ready:\n{self._said()}")

    def _start(self, machine: Path | None, prepare: str) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "FOLDER": str(self.folder),
            "MACHINE": str(machine or ""),
            "PREPARE": prepare,
            "LIBVIRTD": shutil.which("libvirtd") or "libvirtd",
            "LIBVIRT_DRIVER_DIR": str(self.folder / "drivers"),
            "NOTIFY_SOCKET": f"{self.folder}/ready",
            "SYSTEMD_DEVICE_VERIFY_SYSFS": "0",
        }
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen(
                ["unshare", "--mount", *(["--net"] if machine or prepare else []), "sh", "-c", _INSIDE],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                preexec_fn=tied_to_us(),  # noqa: PLW1509 - nothing here has threads
            )  # fmt: skip

    def _said(self) -> str:
        texts = [each.read_text(errors="replace") for each in (self.folder / "output", self._log) if each.exists()]
        return "".join(texts)[-4_000:]

    def virsh(self, *command: str) -> str:
        """Run virsh on it; what it wrote."""
        uri = f"nodedev:///system?socket={self.folder}/run/libvirt/libvirt-sock"
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", uri, *command],
            capture_output=True, text=True, timeout=ANSWERS_WITHIN_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"virsh {command}: {done.stderr}\n{self._said()}"
        return done.stdout

    def devices(self) -> dict[str, str]:
        """The XML of every node device that it lists, by name."""
        names = self.virsh("nodedev-list").split()
        found = {}
        for start in range(0, len(names), ASKED_AT_ONCE):
            asked = names[start : start + ASKED_AT_ONCE]
            text = self.virsh("; ".join(f"nodedev-dumpxml {name}" for name in asked))
            for element in ET.fromstring(f"<all>{text}</all>"):
                found[element.findtext("name", "")] = ET.tostring(element, encoding="unicode")
        assert sorted(found) == sorted(names), "virsh shows other devices than it lists"
        return found

    def by_capability(self, words: Sequence[str]) -> dict[str, list[str]]:
        """The names of those that have a capability, for each word."""
        parts = self.virsh("; ".join(f"nodedev-list --cap {word}; echo {BETWEEN}" for word in words)).split(BETWEEN)
        return {word: part.split() for word, part in zip(words, parts[:-1], strict=True)}

    def beside(self, *command: str) -> str:
        """Run a command that sees the same machine; what it wrote."""
        inside = ["nsenter", "--mount", "--net", "--target", str(self.process.pid), "--wd=.", *command]
        environment = {**os.environ, "SYSTEMD_DEVICE_VERIFY_SYSFS": "0"}
        done = subprocess.run(
            inside, capture_output=True, text=True, timeout=ANSWERS_WITHIN_S, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        """End it, and its mounts with it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def is_told(told: socket.socket) -> bool:
    """Whether a libvirtd has said that it is ready (sd_notify(3))."""
    try:
        return b"READY=1" in told.recv(4096)
    except TimeoutError:
        return False


def what_is_missing() -> str:
    """Why no libvirtd can be run here; empty: it can."""
    if os.geteuid() != 0:
        return "a libvirtd with mounts of its own needs root"
    programs = ("libvirtd", "virsh", "unshare", "nsenter", "ip")
    missing = [each for each in programs if shutil.which(each) is None] + ([] if drivers() else [DRIVER])
    needed = "libvirt-daemon, libvirt-clients or iproute2"
    return f"{needed} is not installed: no {', '.join(missing)}" if missing else ""


def drivers(names: Sequence[str] = (DRIVER,)) -> list[Path]:
    """Where these drivers are; those that are not installed are left out."""
    places = [sorted(Path("/usr").glob(f"{folder}/{name}")) for name in names for folder in DRIVER_FOLDERS]
    return [found[0] for found in places if found]


@contextlib.contextmanager
def running_libvirt(machine: Path | None = None, prepare: str = "") -> Iterator[Libvirt]:
    """A libvirtd that is ended in the end, with all that it wrote; the test is not run where there is none."""
    if missing := what_is_missing():
        not_run(missing)
    with tempfile.TemporaryDirectory(prefix="leasehold-libvirt-") as folder:
        libvirt = Libvirt(Path(folder), machine, prepare)
        try:
            yield libvirt
        finally:
            libvirt.close()
