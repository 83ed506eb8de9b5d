"""A libvirtd of our own that runs real guests: QEMU's driver, in namespaces of its own.

All processes below it, guests too, are in a PID namespace that ends with the first of them, and that one ends with us.
libvirtd can be killed and started again while its guests run on. Guests are emulated, so that no KVM is needed. USB
devices are imitated in a /sys/bus of its own, which is enough for libvirt, which finds them, gives them to a guest, and
refuses them to another; QEMU is given a keyboard instead. So one can be had from the start and be taken away, and none
can be plugged in while the guest runs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.libvirt import daemon
from tests.support.not_run import not_run

DRIVERS: Final = ("libvirt_driver_qemu.so",)
EMULATOR: Final = "qemu-system-x86_64"
STICKS: Final = {(1, 4): "0529:0001", (1, 5): "0529:0001", (1, 6): "0781:5581"}
"""Bus and number of USB devices, and what they are: the first two are the same."""
ENDS_WITHIN_S: Final = 10.0

_INSIDE: Final = """\
set -eu
mount -t proc proc /proc
cd "$FOLDER"
mkdir -p run/libvirt etc/qemu lib cache dev
cp /etc/passwd /etc/group .
echo "libvirt-qemu:x:64055:64055::/nonexistent:/bin/false" >> passwd
echo "libvirt-qemu:x:64055:" >> group
mount --bind passwd /etc/passwd
mount --bind group /etc/group
mount --bind etc /etc/libvirt
mount --rbind run /run
mount --bind lib /var/lib
mount --bind cache /var/cache
for node in null zero full random urandom tty; do
    touch dev/$node
    mount --bind /dev/$node dev/$node
done
mount -t tmpfs none /sys/bus
for stick in $STICKS; do
    IFS=/ read -r bus number vendor product <<EOT
$stick
EOT
    mkdir -p "dev/bus/usb/00$bus" "/sys/bus/usb/devices/$bus-$number"
    touch "dev/bus/usb/00$bus/00$number"
    echo "$number" > "/sys/bus/usb/devices/$bus-$number/devnum"
    echo "$vendor" > "/sys/bus/usb/devices/$bus-$number/idVendor"
    echo "$product" > "/sys/bus/usb/devices/$bus-$number/idProduct"
done
mount --rbind dev /dev
echo ready
# Whose parent has ended is a child of this shell, which takes note of its end. It ends with what stdin comes from.
exec 3<&0
cat <&3 >/dev/null &
wait $!
"""
_LIBVIRTD: Final = """\
exec "$LIBVIRTD" -f "$FOLDER/libvirtd.conf" -p "$FOLDER/run/libvirtd.pid"
"""
_QEMU_CONF: Final = """\
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
"""
_EMULATOR: Final = """\
#!{python}
import json, os, sys
words = []
for word in sys.argv[1:]:
    if '"driver":"usb-host"' in word:
        asked = json.loads(word)
        word = json.dumps({{"driver": "usb-kbd", "id": asked["id"], "bus": asked["bus"], "port": asked["port"]}})
    words.append(word)
os.execv("{qemu}", ["{qemu}", *words])
"""


class Hypervisor:
    """QEMU and a libvirtd, which runs at first."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for all that it writes; short, as sockets lie in it."""
        self.folder = folder
        for name in ("etc", "drivers"):
            (folder / name).mkdir()
        for driver in daemon.drivers(DRIVERS):
            (folder / "drivers" / driver.name).symlink_to(driver)
        (folder / "etc/qemu.conf").write_text(_QEMU_CONF)
        (folder / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{folder}/run/libvirt"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'log_outputs = "3:file:{folder}/libvirtd.log"\n'
        )
        self.emulator = folder / "qemu"
        self.emulator.write_text(_EMULATOR.format(python=sys.executable, qemu=shutil.which(EMULATOR)))
        self.emulator.chmod(0o755)
        self._environment = {
            **os.environ,
            "FOLDER": str(folder),
            "LIBVIRTD": shutil.which("libvirtd") or "libvirtd",
            "LIBVIRT_DRIVER_DIR": str(folder / "drivers"),
            "NOTIFY_SOCKET": f"{folder}/ready",
            "STICKS": " ".join(f"{bus}/{number}/{what.replace(':', '/')}" for (bus, number), what in STICKS.items()),
        }
        self._libvirtd: subprocess.Popen[bytes] | None = None
        self._said = (folder / "output").open("wb")
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(self._environment["NOTIFY_SOCKET"])
        self._told.settimeout(daemon.LOOKS_EVERY_S)
        self._world = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _INSIDE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=self._environment,
        )  # fmt: skip
        assert self._world.stdout is not None
        if self._world.stdout.readline() != b"ready\n":
            self.close()
            raise AssertionError(f"no namespaces:\n{(folder / 'output').read_text()}")
        self.start()

    @property
    def uri(self) -> str:
        """For those who may do everything."""
        return f"qemu:///system?socket={self.folder}/run/libvirt/libvirt-sock"

    @property
    def uri_to_read(self) -> str:
        """For those who may only look."""
        return f"{self.uri}-ro"

    def start(self) -> None:
        """Start libvirtd; it is ready when this returns."""
        process = self._inside(_LIBVIRTD)
        give_up_s = time.monotonic() + daemon.STARTS_WITHIN_S
        while not daemon.is_told(self._told):
            if process.poll() is not None or time.monotonic() > give_up_s:
                self.close()
                raise AssertionError(f"libvirtd does not get ready:\n{(self.folder / 'libvirtd.log').read_text()}")
        self._libvirtd = process

    def signal(self, name: str) -> None:
        """Send libvirtd a signal: `KILL`, `STOP`, `CONT`. A killed one has ended when this returns."""
        assert self._libvirtd is not None
        assert self._inside(f'kill -{name} "$(cat "$FOLDER/run/libvirtd.pid")"').wait(ENDS_WITHIN_S) == 0
        if name == "KILL":
            self._libvirtd.wait(ENDS_WITHIN_S)
        elif name == "CONT":
            # nsenter has stopped itself, too, when what it waits for was stopped.
            self._libvirtd.send_signal(signal.SIGCONT)

    def end_guest(self, name: str) -> None:
        """End the process of a guest, whether libvirtd is there or not."""
        script = f'kill -KILL "$(cat "$FOLDER/run/libvirt/qemu/{name}.pid")"'
        assert self._inside(script).wait(ENDS_WITHIN_S) == 0

    def close(self) -> None:
        """End everything that runs in it."""
        assert self._world.stdin is not None
        assert self._world.stdout is not None
        self._world.stdin.close()
        if self._libvirtd is not None:
            self._libvirtd.send_signal(signal.SIGCONT)
        self._world.wait(ENDS_WITHIN_S)
        if self._libvirtd is not None:
            self._libvirtd.wait(ENDS_WITHIN_S)
        self._world.stdout.close()
        self._told.close()
        self._said.close()

    def _inside(self, script: str) -> "subprocess.Popen[bytes]":
        """Run it there. It ends with all others there, at the latest."""
        names = f"/proc/{self._world.pid}/ns"
        return subprocess.Popen(
            ["nsenter", f"--mount={names}/mnt", f"--pid={names}/pid_for_children", "sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said, env=self._environment,
        )  # fmt: skip


def what_is_missing() -> str:
    """Why no guest can run here; empty: one can."""
    if os.geteuid() != 0:
        return "a libvirtd with mounts of its own needs root"
    programs = ("libvirtd", "unshare", "nsenter", EMULATOR)
    missing = [each for each in programs if shutil.which(each) is None]
    missing += [] if len(daemon.drivers(DRIVERS)) == len(DRIVERS) else DRIVERS
    return f"libvirt-daemon or qemu-system-x86 is not installed: no {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def running_hypervisor() -> Iterator[Hypervisor]:
    """One that is ended in the end, with all that it wrote; the test is not run where there can be none."""
    if missing := what_is_missing():
        not_run(missing)
    with tempfile.TemporaryDirectory(prefix="leasehold-qemu-") as folder:
        hypervisor = Hypervisor(Path(folder))
        try:
            yield hypervisor
        finally:
            hypervisor.close()
