"""What the guest is made of: QEMU, a kernel, an initial file system, a disk. Built once, kept by what it was made from.

    <cache>/apt/            apt's own files
    <cache>/qemu-<hash>/    QEMU and its libraries
    <cache>/guest-<hash>/   vmlinuz, initrd.gz, disk.ext4

QEMU is that of bookworm-backports: Debian 12's own has no igb, the network card with virtual functions. The kernel is
Debian 12's; its flavour for clouds has neither USB nor these cards.
"""

import fcntl
import gzip
import hashlib
import inspect
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from tests.vm import packages
from tests.vm.packages import Archive, CannotBuildError, run, unpack

CACHE: Final = "LEASEHOLD_VM_CACHE"
PYTHON: Final = (3, 11)
"""Debian 12's, which the guest has: compiled libraries of our environment must be made for it."""
_KERNEL: Final = "linux-image-6.1.0-56-amd64"
_KERNEL_PIN: Final = "6.1.192-2"
_KERNEL_OF_TODAY: Final = "linux-image-amd64"
"""Depends on the one that Debian 12 has now: each security update may bring another, and the one before goes."""
_QEMU_VERSION: Final = "1:10.0.2+ds-2+deb13u1~bpo12+1"
_QEMU: Final = {
    "qemu-system-x86": _QEMU_VERSION,
    "qemu-system-common": _QEMU_VERSION,
    "qemu-system-data": _QEMU_VERSION,
    "seabios": "1.16.3-2~bpo12+1",
    "ipxe-qemu": "1.0.0+git-20190125.36a4c85-5.1",
}
_MMDEBSTRAP_PIN: Final = "1.3.5-7"
_PACKAGES: Final = "python3,udev,iproute2,kmod,busybox-static,socat"
_DISK_MB: Final = 1_400
_DISK_BYTES_FREE: Final = 4 * 1024**3
_BUILD_S: Final = 900

_FIRST_MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
"""Without these there is no disk to load the others from; what ext4 computes with is not in its dependencies."""
_UNUSED_DRIVERS: Final = ("gpu", "media", "net/wireless", "infiniband", "iio", "staging", "mtd", "isdn", "video")
"""Folders of kernel modules that the guest has no devices for: two thirds of their size."""

_INITRD: Final = """#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module" || echo "cannot load $module"; done
tries=0
until mount -t ext4 -o noatime /dev/vda /root; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || exec sh
    sleep 0.05
done
umount /proc
exec switch_root /root /sbin/guest-init
"""

_INIT: Final = """#!/bin/sh
# Process 1 of the guest. When it ends, the kernel does, and QEMU with it.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts && mount -t devpts pts /dev/pts
hostname guest
ip link set lo up
modprobe -a virtio_console virtio_net 9pnet_virtio 9p
for share in repo site; do
    mkdir -p "/mnt/$share"
    mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 "$share" "/mnt/$share"
done
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --subsystem-match=pci --subsystem-match=usb --subsystem-match=net \\
    --subsystem-match=block --subsystem-match=virtio --subsystem-match=virtio-ports --subsystem-match=scsi
udevadm settle --timeout=60
exec """
_SERVE: Final = "python3 /mnt/repo/tests/vm/inside.py"


class Made(NamedTuple):
    """A guest that is being made."""

    archive: Archive
    work: Path
    """Gone when it is made."""
    root: Path
    """Its root file system, not yet a disk."""
    into: Path
    """Where its parts go; kernel and initial file system are there."""


class Recipe(NamedTuple):
    """What a guest is made from."""

    name: str
    """Of its folders in the cache."""
    source: str
    """All that decides what is made, as text: another text, another guest."""
    packages: str = ""
    """Those that it has besides Debian's smallest set and ours; a list with commas."""
    serve: str = _SERVE
    """What its first process becomes, when all is there."""
    disk_mb: int = _DISK_MB
    finish: Callable[[Made], None] = lambda _made: None
    """Adds what else belongs to it."""


class Parts(NamedTuple):
    """Where everything is that a guest is started from."""

    qemu: Path
    kernel: Path
    initrd: Path
    disk: Path

    @property
    def environment(self) -> dict[str, str]:
        """Where QEMU finds its libraries and its own loadable parts."""
        libraries = self.qemu / "usr/lib/x86_64-linux-gnu"
        return {
            "LD_LIBRARY_PATH": f"{libraries}:{self.qemu / 'lib/x86_64-linux-gnu'}",
            "QEMU_MODULE_DIR": str(libraries / "qemu"),
        }

    @property
    def program(self) -> list[str]:
        """QEMU, and where its firmware is."""
        words = [str(self.qemu / "usr/bin/qemu-system-x86_64")]
        for name in ("qemu", "seabios", "ipxe/qemu"):
            words += ["-L", str(self.qemu / "usr/share" / name)]
        return words


def cannot_run() -> str:
    """Why there can be no guest on this machine; empty if there can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the guest is built for x86-64 on Linux, this is {platform.machine()} on {sys.platform}"
    if os.geteuid() != 0:
        return "building its file system needs root"
    if sys.version_info[:2] != PYTHON:
        ours, theirs = platform.python_version(), ".".join(map(str, PYTHON))
        return f"the guest's Python is {theirs}, and this environment's compiled libraries are made for {ours}"
    if lacking := packages.missing_tools():
        return f"missing: {', '.join(lacking)} (this is made for Debian 12)"
    folder = next(each for each in (cache(), *cache().parents) if each.is_dir())
    if shutil.disk_usage(folder).free < _DISK_BYTES_FREE and not list(cache().glob("guest-*/disk.ext4")):
        return f"less than {_DISK_BYTES_FREE >> 30} GiB are free in {folder}"
    return ""


def cache() -> Path:
    """The folder in which parts are kept."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache/leasehold-vm").absolute()


def source() -> str:
    """This module's own text, on which each guest depends."""
    return inspect.getsource(sys.modules[__name__])


def parts(say: Callable[[str], None], recipe: Recipe | None = None) -> Parts:
    """Everything that a guest is started from; built where it is not there yet. Raises CannotBuildError."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _all_parts(say, recipe or Recipe("guest", source()))


def _all_parts(say: Callable[[str], None], recipe: Recipe) -> Parts:
    archive = Archive(cache() / "apt")
    qemu = _kept("qemu", repr(_QEMU), lambda into: _get_qemu(archive, into), say)
    guest = _kept(recipe.name, recipe.source, lambda into: _build_guest(archive, recipe, into), say)
    found = Parts(qemu, guest / "vmlinuz", guest / "initrd.gz", guest / "disk.ext4")
    try:
        run(*found.program, "-accel", "help", environment=found.environment, timeout_s=60)
    except CannotBuildError:
        # What QEMU needs of this machine has changed since; once more from the start.
        shutil.rmtree(qemu)
        _kept("qemu", repr(_QEMU), lambda into: _get_qemu(archive, into), say)
        run(*found.program, "-accel", "help", environment=found.environment, timeout_s=60)
    return found


def _kept(name: str, recipe: str, build: Callable[[Path], None], say: Callable[[str], None]) -> Path:
    """A folder that `build` fills unless it is there already; it is there whole or not at all."""
    folder = cache() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    say(f"building {folder} (once)")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache()) as made:
        into = Path(made) / name
        into.mkdir()
        build(into)
        for old in cache().glob(f"{name}-*"):
            shutil.rmtree(old, ignore_errors=True)
        into.rename(folder)
    return folder


def _get_qemu(archive: Archive, into: Path) -> None:
    unpack(archive.with_libraries(_QEMU, "bookworm-backports"), into)


def _build_guest(archive: Archive, recipe: Recipe, into: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".making-", dir=into) as made:
        work = Path(made)
        unpack([archive.alone("mmdebstrap", _MMDEBSTRAP_PIN, work)], work / "tools")
        kernel = _KERNEL if archive.versions(_KERNEL) else archive.needed_by(_KERNEL_OF_TODAY)[0]
        unpack([archive.alone(kernel, _KERNEL_PIN, work)], work / "kernel")
        (release,) = (each.name for each in (work / "kernel/lib/modules").iterdir())
        shutil.copy(work / f"kernel/boot/vmlinuz-{release}", into / "vmlinuz")
        root = work / "root"
        _bootstrap(archive, work / "tools", root, recipe.packages)
        modules = root / "lib/modules" / release
        _add_modules(work / "kernel/lib/modules" / release, modules)
        run("chroot", root, "depmod", release)
        init = root / "sbin/guest-init"
        init.write_text(f"{_INIT}{recipe.serve}\n")
        init.chmod(0o755)
        (into / "initrd.gz").write_bytes(initrd(root, modules, _INITRD))
        recipe.finish(Made(archive, work, root, into))
        disk = into / "disk.ext4"
        run("mkfs.ext4", "-q", "-F", "-d", root, "-O", "^has_journal", disk, f"{recipe.disk_mb}M", timeout_s=_BUILD_S)


def _bootstrap(archive: Archive, tools: Path, root: Path, packages: str) -> None:
    path = f"{tools / 'usr/bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
    without = ("doc", "man", "locale", "info")
    run(
        tools / "usr/bin/mmdebstrap",
        *("--mode=root", "--variant=minbase", f"--include={_PACKAGES},{packages}", "--architectures=amd64"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in without),
        *("bookworm", str(root), *archive.sources),
        timeout_s=_BUILD_S,
        environment={"PATH": path},
    )


def _add_modules(source: Path, into: Path) -> None:
    for name in _UNUSED_DRIVERS:
        shutil.rmtree(source / "kernel/drivers" / name, ignore_errors=True)
    shutil.rmtree(source / "kernel/sound", ignore_errors=True)
    shutil.copytree(source, into, symlinks=True)


def initrd(root: Path, folder: Path, init: str, modules: tuple[str, ...] = _FIRST_MODULES) -> bytes:
    """A packed cpio archive with busybox, an init, and modules with what they need, in the order in which they load.

    Args:
        root: a root file system that has busybox.
        folder: the kernel's modules.
        init: a script of busybox.
        modules: names.
    """
    needs = dict(line.split(":", 1) for line in (folder / "modules.dep").read_text().splitlines())
    order: list[str] = []
    for name in modules:
        (path,) = (each for each in needs if Path(each).name.split(".")[0] == name)
        # modules.dep names what must be loaded first last.
        order += [each for each in (*reversed(needs[path].split()), path) if each not in order]
    entries: list[tuple[str, int, bytes]] = [
        (name, 0o040755, b"") for name in ("bin", "dev", "proc", "root", "modules")
    ]
    entries.append(("bin/busybox", 0o100755, (root / "bin/busybox").read_bytes()))
    entries += [(f"bin/{name}", 0o120777, b"busybox") for name in _APPLETS]
    entries += [(f"modules/{Path(each).name}", 0o100644, (folder / each).read_bytes()) for each in order]
    entries.append(("modules/order", 0o100644, "\n".join(Path(each).name for each in order).encode()))
    entries.append(("init", 0o100755, init.encode()))
    members = (_cpio(number, *entry) for number, entry in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1))
    return gzip.compress(b"".join(members), compresslevel=6, mtime=0)


_APPLETS: Final = ("sh", "mount", "umount", "cat", "insmod", "echo", "sleep", "switch_root")


def _cpio(number: int, name: str, mode: int, body: bytes) -> bytes:
    """One member of a cpio archive in the format `newc`, as the kernel reads it."""
    named = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(named), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + named
    return head + b"\0" * (-len(head) % 4) + body + b"\0" * (-len(body) % 4)
