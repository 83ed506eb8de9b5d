"""An imitated machine whose kernel is played: what is written to it makes and removes devices, or is refused.

It has a Fibre Channel HBA (`host5`, below 0000:00:05.0), a GPU (0000:00:06.0) that offers mediated devices, and a
network card (0000:00:07.0) that can have virtual functions. It is written to by `Kernel.write`, which can refuse as a
kernel does, or, by other processes, through FIFOs that stand where the attributes do; not for virtual functions, whose
number is read and written in one place.
"""

import errno
import os
import selectors
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.watcher.trees import Tree

HBA: Final = "pci0000:00/0000:00:05.0/host5"
GPU: Final = "pci0000:00/0000:00:06.0"
WWNN: Final = "2000525400123456"
WWPN: Final = "2100525400123456"
FABRIC: Final = "100000051ea1b2c3"
TYPE: Final = "i915-GVTg_V5_4"
MDEV_GROUP: Final = 12
OTHER_TYPE: Final = "i915-GVTg_V5_8"
NIC: Final = "pci0000:00/0000:00:07.0"
FUNCTIONS_MAX: Final = 4


def function_at(number: int) -> str:
    """Address of the network card's virtual function."""
    return f"0000:00:10.{number}"


class Kernel:
    """The machine and its kernel. All that is told to it is in `told`, as `attribute text`."""

    def __init__(self, folder: Path) -> None:
        """Nothing reads the FIFOs yet: see `playing`."""
        self.tree = Tree(folder)
        self.root = self.tree.root
        self.told: list[str] = []
        self.refuse: dict[str, int] = {}
        """By attribute: with which error."""
        self.hosts_come = threading.Event()
        """Virtual HBAs get their SCSI hosts, and mediated devices their places on the bus, only while it is set."""
        self.goes = threading.Event()
        """What is deleted goes only while it is set; it is taken all the same."""
        self.answers = threading.Event()
        """Writes come back only while it is set."""
        for each in (self.hosts_come, self.goes, self.answers):
            each.set()
        self.on_told: Callable[[], object] = lambda: None
        self._number = 5
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._threads: list[threading.Thread] = []
        self._boot()

    def _boot(self) -> None:
        tree = self.tree
        (self.root.sys / "bus/mdev/devices").mkdir(parents=True)
        tree.pci("pci0000:00/0000:00:05.0", "lpfc", group=5, pci_class="0x0c0400")
        tree.fc_host(HBA, WWNN, WWPN, vports_max=4, fabric_name=f"0x{FABRIC}")
        for name in ("vport_create", "vport_delete"):
            self._fifo(tree.devices / HBA / "fc_host/host5" / name)
        tree.pci(GPU, "i915", group=6, pci_class="0x030000")
        tree.mdev_types(GPU, **{TYPE: 2, OTHER_TYPE: 2})
        for name in (TYPE, OTHER_TYPE):
            self._fifo(tree.devices / GPU / "mdev_supported_types" / name / "create")
        tree.pci(NIC, "igb", group=7, sriov_totalvfs=str(FUNCTIONS_MAX), sriov_numvfs="0")

    def path(self, below: str) -> str:
        """Where a device is."""
        return str(self.tree.devices / below)

    def _fifo(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        # Read and write: so it is never at its end.
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(descriptor, selectors.EVENT_READ, str(path))

    # --- what is written ----------------------------------------------------------------------------------------------

    def write(self, path: str, text: str) -> None:
        """As a write to the attribute: raises OSError as the kernel does."""
        attribute = os.path.basename(path)
        with self._lock:
            self.told.append(f"{attribute} {text}")
        self.on_told()
        self.answers.wait(60)
        if attribute in self.refuse:
            raise OSError(self.refuse[attribute], os.strerror(self.refuse[attribute]))
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        folder = os.path.dirname(path)
        match attribute:
            case "vport_create":
                wwpn, wwnn = text.split(":")
                self._make_vport(wwnn, wwpn)
            case "vport_delete":
                wwpn, wwnn = text.split(":")
                self._later(self.goes, lambda: self.remove_vport(wwpn))
            case "create":
                self._make_mdev(folder, text)
            case "sriov_numvfs":
                self._set_functions(int(text))
            case "remove":
                self._later(self.goes, lambda: self.remove_mdev(os.path.basename(folder)))

    def _later(self, when: threading.Event, work: Callable[[], object]) -> None:
        """At once if it may be, else as soon as it may, on a thread of its own."""
        if when.is_set():
            work()
        else:
            thread = threading.Thread(target=lambda: when.wait(60) and work())
            self._threads.append(thread)
            thread.start()

    def _make_vport(self, wwnn: str, wwpn: str) -> None:
        with self._lock:
            if any(self._port_names(kind, wwpn) for kind in ("fc_host", "fc_vports")):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._number += 1
            number = self._number
            name = f"vport-5:0-{number}"
            self.tree.device(f"{HBA}/{name}/fc_vports/{name}", node_name=f"0x{wwnn}", port_name=f"0x{wwpn}")
            link = self.root.sys / "class/fc_vports" / name
            self.tree.link(link, self.tree.devices / HBA / name / "fc_vports" / name)
        self._later(self.hosts_come, lambda: self._host_comes(link, f"{HBA}/{name}/host{number}", wwnn, wwpn))

    def _host_comes(self, vport: Path, path: str, wwnn: str, wwpn: str) -> None:
        with self._lock:
            # It may have been taken away meanwhile.
            if vport.exists():
                self.tree.fc_host(path, wwnn, wwpn)

    def remove_vport(self, wwpn: str) -> None:
        """A virtual HBA goes away."""
        with self._lock:
            for kind in ("scsi_host", "fc_host"):
                for name in self._port_names("fc_host", wwpn):
                    (self.root.sys / "class" / kind / name).unlink()
            for name in self._port_names("fc_vports", wwpn):
                link = self.root.sys / "class/fc_vports" / name
                device = Path(os.path.realpath(link)).parents[1]
                link.unlink()
                for host in device.glob("host*"):
                    (self.root.sys / "bus/scsi/devices" / host.name).unlink()
                shutil.rmtree(device)

    def _port_names(self, kind: str, wwpn: str) -> list[str]:
        folder = self.root.sys / "class" / kind
        found = folder.iterdir() if folder.is_dir() else ()
        return [each.name for each in found if (each / "port_name").read_text().strip() == f"0x{wwpn}"]

    def remove_hba(self) -> None:
        """The HBA goes away, with all that is below."""
        with self._lock:
            for folder in ("class/scsi_host", "class/fc_host", "class/fc_vports", "bus/scsi/devices"):
                if (self.root.sys / folder).is_dir():
                    for link in (self.root.sys / folder).iterdir():
                        link.unlink()
            shutil.rmtree(self.tree.devices / HBA)

    def _make_mdev(self, folder: str, uuid: str) -> None:
        with self._lock:
            path = self.tree.devices / GPU / uuid
            if path.exists():
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self.tree.uevent(f"{GPU}/{uuid}")
            self.tree.link(path / "mdev_type", Path(folder))
            self.tree.link(path / "iommu_group", self.root.sys / f"kernel/iommu_groups/{MDEV_GROUP}")
            self._fifo(path / "remove")
        link = self.root.sys / "bus/mdev/devices" / uuid
        self._later(self.hosts_come, lambda: self.tree.link(link, path) if path.exists() else None)

    def remove_mdev(self, uuid: str) -> None:
        """A mediated device goes away."""
        with self._lock:
            (self.root.sys / "bus/mdev/devices" / uuid).unlink(missing_ok=True)
            path = self.tree.devices / GPU / uuid
            for key in list(self._selector.get_map().values()):
                if key.data == str(path / "remove"):
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
            shutil.rmtree(path, ignore_errors=True)

    def _set_functions(self, count: int) -> None:
        with self._lock:
            there = int((self.tree.devices / NIC / "sriov_numvfs").read_text())
            if count > FUNCTIONS_MAX:
                raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
            if there and count and there != count:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            self.tree.write(NIC, "sriov_numvfs", str(count))
        if count and not there:
            self._later(self.hosts_come, lambda: self._functions_come(count))
        elif not count:
            self._later(self.goes, self.remove_functions)

    def _functions_come(self, count: int) -> None:
        with self._lock:
            # They, or the whole card, may have been taken away meanwhile.
            told = self.tree.devices / NIC / "sriov_numvfs"
            for number in range(count if told.exists() and int(told.read_text()) else 0):
                path = self.tree.pci(f"pci0000:00/{function_at(number)}", "igbvf", group=20 + number)
                self.tree.link(self.tree.devices / path / "physfn", self.tree.devices / NIC)
                self.tree.link(self.tree.devices / NIC / f"virtfn{number}", self.tree.devices / path)

    def remove_functions(self) -> None:
        """All virtual functions go away."""
        with self._lock:
            for link in (self.tree.devices / NIC).glob("virtfn*"):
                device = Path(os.path.realpath(link))
                (self.root.sys / "bus/pci/devices" / device.name).unlink()
                link.unlink()
                shutil.rmtree(device)

    # --- other processes ----------------------------------------------------------------------------------------------

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Take what other processes write, too. Nobody can be told of a refusal there."""
        ends = threading.Event()
        reader, writer = os.pipe()
        self._selector.register(reader, selectors.EVENT_READ, "")

        def play() -> None:
            while not ends.is_set():
                for key, _ in self._selector.select():
                    if key.data:
                        self._take(key.fd, key.data)

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            os.write(writer, b".")
            thread.join()
            self._selector.unregister(reader)
            os.close(reader)
            os.close(writer)

    def _take(self, descriptor: int, path: str) -> None:
        try:
            text = os.read(descriptor, 4096).decode()
        except (BlockingIOError, OSError):
            return
        try:
            self.write(path, text)
        except OSError:
            return

    def close(self) -> None:
        """Let go of the FIFOs."""
        for each in (self.hosts_come, self.goes, self.answers):
            each.set()
        for thread in self._threads:
            thread.join()
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()
