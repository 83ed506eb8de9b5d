"""The PCI half of the played kernel: drivers, overrides, stubs, resets and virtual functions, as Linux has them."""

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Final

from tests.watcher.trees import Tree

STUBS: Final = ("vfio-pci", "pciback", "pci-stub")
NONE: Final = "(null)"


def refusal(number: int) -> OSError:
    """As the kernel refuses."""
    return OSError(number, os.strerror(number))


class PciBus:
    """Drivers and what they take. Not for use by itself: see `kernel.Kernel`."""

    def __init__(self, tree: Tree, *, overrides: bool) -> None:
        self.tree = tree
        self.root = tree.root
        self.overrides = overrides
        self.lock = threading.RLock()
        self.ids: dict[str, set[str]] = {}
        """What each loaded driver takes: `8086:10d3`; in the order in which they were loaded."""
        self.added_ids: dict[str, set[str]] = {}
        self.silent: set[tuple[str, str]] = set()
        """(driver, address): it does not take the device, and the kernel says nothing of that."""
        self.late: dict[tuple[str, str], threading.Event] = {}
        """(driver, address): it takes the device only when this is set; the write is over before."""
        self.resets: list[tuple[str, str]] = []
        """(address, how), as they were done."""
        self.let_go = threading.Condition()
        self.threads: list[threading.Thread] = []
        self.vf_driver: dict[str, str] = {}
        self.functions_go = False
        """Whether virtual functions go with the driver of their physical one."""

    # --- the machine as it is built -----------------------------------------------------------------------------------

    def load(self, driver: str, *ids: str) -> None:
        """Load a driver: its folder is there, and it takes what it knows and nobody has."""
        folder = self.root.sys / "bus/pci/drivers" / driver
        folder.mkdir(parents=True, exist_ok=True)
        self.ids[driver] = {"any"} if driver == "pciback" else set(ids)
        self.added_ids[driver] = set()
        for name in ("bind", "unbind", "new_id", "remove_id"):
            (folder / name).write_text("")
        if driver == "pciback":
            for name in ("new_slot", "remove_slot", "slots"):
                (folder / name).write_text("")
        self._attach_all(driver)

    def add(self, path: str, driver: str = "", ids: str = "8086:10d3", reset: str = "flr", group: int = -1) -> str:
        """A function at a path below /sys/devices. `reset`: the kernel's ways, first choice first; empty: none."""
        vendor, _, device = ids.partition(":")
        self.tree.pci(path, group=group, vendor=f"0x{vendor}", device=f"0x{device}")
        folder = self.tree.devices / path
        # As in a normal header: type 0 at 0x0e, here of a device with one function.
        (folder / "config").write_bytes(bytes(64))
        if self.overrides:
            self.tree.write(path, "driver_override", NONE)
        if reset:
            self.tree.write(path, "reset", "")
            self.tree.write(path, "reset_method", reset)
        if group >= 0:
            members = self.root.sys / f"kernel/iommu_groups/{group}/devices"
            self.tree.link(members / os.path.basename(path), folder)
        if driver:
            self._bound(os.path.basename(path), driver)
        return path

    def bridge(self, path: str, group: int = -1) -> str:
        """A root port or a bridge."""
        self.add(path, "pcieport", "8086:a1b0", "", group)
        folder = self.tree.devices / path
        self.tree.write(path, "class", "0x060400")
        self.tree.write(path, "reset_subordinate", "")
        config = bytearray(64)
        config[0x0E] = 1
        (folder / "config").write_bytes(bytes(config))
        return path

    def unplug(self, address: str) -> None:
        """It is pulled out, with all that is below it."""
        with self.lock:
            folder = self.folder(address)
            below = [name for name in self.addresses() if self.folder(name).is_relative_to(folder)]
            for name in below:
                for link in self.root.sys.glob(f"kernel/iommu_groups/*/devices/{name}"):
                    link.unlink()
                self._unlink_driver(name)
            for name in below:
                (self.root.sys / "bus/pci/devices" / name).unlink()
            for link in self.root.sys.glob("class/net/*"):
                if Path(os.path.realpath(link)).is_relative_to(folder):
                    link.unlink()
            shutil.rmtree(folder)

    # --- what there is ------------------------------------------------------------------------------------------------

    def addresses(self) -> list[str]:
        """Of all functions."""
        return sorted(each.name for each in (self.root.sys / "bus/pci/devices").iterdir())

    def folder(self, address: str) -> Path:
        """Where a function is."""
        link = self.root.sys / "bus/pci/devices" / address
        if not link.is_symlink():
            raise refusal(errno.ENODEV)
        return Path(os.path.realpath(link))

    def driver_of(self, address: str) -> str:
        """What it is bound to; empty: to nothing."""
        link = self.folder(address) / "driver"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else ""

    def override_of(self, address: str) -> str:
        """What its `driver_override` says; empty: nothing."""
        try:
            text = (self.folder(address) / "driver_override").read_text().strip()
        except FileNotFoundError:
            return ""
        return "" if text == NONE else text

    def ids_of(self, address: str) -> str:
        """Its vendor and device, `8086:10d3`."""
        folder = self.folder(address)
        return ":".join((folder / name).read_text().strip()[2:] for name in ("vendor", "device"))

    def slots(self) -> list[str]:
        """Of xen-pciback."""
        return (self.root.sys / "bus/pci/drivers/pciback/slots").read_text().split()

    # --- what is written ----------------------------------------------------------------------------------------------

    def write_device(self, address: str, attribute: str, text: str) -> None:
        """An attribute of a function."""
        with self.lock:
            folder = self.folder(address)
            if not (folder / attribute).exists():
                raise refusal(errno.ENOENT)
            match attribute:
                case "driver_override":
                    (folder / attribute).write_text(f"{text.strip() or NONE}\n")
                case "reset":
                    self._reset(address)
                case "reset_subordinate":
                    for name in self.addresses():
                        if self.folder(name).is_relative_to(folder) and name != address:
                            self.resets.append((name, "bus"))
                case "sriov_numvfs":
                    self._set_vfs(address, int(text))
                case _:
                    (folder / attribute).write_text(text)

    def write_driver(self, driver: str, attribute: str, text: str) -> None:
        """An attribute of a driver."""
        words = text.split()
        with self.lock:
            if driver not in self.ids:
                raise refusal(errno.ENOENT)
            match attribute:
                case "bind":
                    if self.driver_of(words[0]) or not self.matches(driver, words[0]):
                        raise refusal(errno.ENODEV)
                    if not self._probe(driver, words[0]):
                        raise refusal(errno.EINVAL)
                case "new_id" | "remove_id":
                    self._change_ids(driver, attribute, ":".join(words[:2]))
                case "new_slot":
                    self._write_slots([*self.slots(), words[0]])
                case "remove_slot":
                    if words[0] not in self.slots():
                        raise refusal(errno.ENOENT)
                    self._write_slots([each for each in self.slots() if each != words[0]])
        if attribute == "unbind":
            self.unbind(driver, words[0])

    def unbind(self, driver: str, address: str) -> None:
        """vfio waits for who holds the device open; xen-pciback waits for nobody."""
        if self.driver_of(address) != driver:
            raise refusal(errno.ENODEV)
        if driver == "vfio-pci":
            with self.let_go:
                self.let_go.wait_for(lambda: not self.holders(address), 60)
        with self.lock:
            self._unlink_driver(address)
            if self.functions_go and address in self.vf_driver:
                self._set_vfs(address, 0)

    def probe(self, address: str) -> None:
        """`drivers_probe`: never says whether a driver came of it."""
        with self.lock:
            self.folder(address)
            if not self.driver_of(address):
                any(self._probe(driver, address) for driver in self.ids if self.matches(driver, address))

    # --- holders ------------------------------------------------------------------------------------------------------

    def hold(self, address: str, pid: int, command: str = "qemu-system-x86") -> None:
        """A process opens the function's vfio group."""
        folder = self.root.proc / str(pid)
        (folder / "fd").mkdir(parents=True, exist_ok=True)
        (folder / "comm").write_text(f"{command}\n")
        (folder / "fd" / address).symlink_to(f"/dev/vfio/{self._group(address)}")

    def release(self, pid: int) -> None:
        """The process ends."""
        shutil.rmtree(self.root.proc / str(pid))
        with self.let_go:
            self.let_go.notify_all()

    def holders(self, address: str) -> list[str]:
        """The processes that hold its group open."""
        node = f"/dev/vfio/{self._group(address)}"
        held = (each for each in self.root.proc.glob("[0-9]*/fd/*") if os.readlink(each) == node)
        return sorted(each.parts[-3] for each in held)

    def _group(self, address: str) -> str:
        link = self.folder(address) / "iommu_group"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else "none"

    # --- how it goes --------------------------------------------------------------------------------------------------

    def matches(self, driver: str, address: str) -> bool:
        """Whether the driver may have it: with an override only that one."""
        if override := self.override_of(address):
            return override == driver
        known = self.ids[driver] | self.added_ids[driver]
        return "any" in known or self.ids_of(address) in known

    def _probe(self, driver: str, address: str) -> bool:
        if driver == "pciback" and address not in self.slots() and self.override_of(address) != driver:
            return False
        if driver == "vfio-pci" and self._group(address) == "none":
            return False
        if (driver, address) in self.silent:
            return False
        if event := self.late.get((driver, address)):
            thread = threading.Thread(target=self._take_late, args=(event, driver, address))
            self.threads.append(thread)
            thread.start()
            return True
        self._bound(address, driver)
        return True

    def _take_late(self, event: threading.Event, driver: str, address: str) -> None:
        event.wait(60)
        with self.lock:
            if address in self.addresses() and not self.driver_of(address):
                self._bound(address, driver)

    def _bound(self, address: str, driver: str) -> None:
        folder = self.folder(address)
        path = str(folder.relative_to(self.tree.devices))
        self.tree.driver(path, "pci", driver)
        self.tree.link(self.root.sys / "bus/pci/drivers" / driver / address, folder)

    def _unlink_driver(self, address: str) -> None:
        link = self.folder(address) / "driver"
        if link.is_symlink():
            (Path(os.path.realpath(link)) / address).unlink(missing_ok=True)
            link.unlink()

    def _attach_all(self, driver: str) -> None:
        for address in self.addresses() if (self.root.sys / "bus/pci/devices").is_dir() else ():
            if not self.driver_of(address) and self.matches(driver, address):
                self._probe(driver, address)

    def _change_ids(self, driver: str, attribute: str, ids: str) -> None:
        known = self.added_ids[driver]
        if attribute == "remove_id":
            if ids not in known:
                raise refusal(errno.ENODEV)
            known.discard(ids)
            return
        if ids in known | self.ids[driver]:
            raise refusal(errno.EEXIST)
        known.add(ids)
        self._attach_all(driver)

    def _write_slots(self, slots: list[str]) -> None:
        path = self.root.sys / "bus/pci/drivers/pciback/slots"
        path.write_text("".join(f"{each}\n" for each in slots))

    def _reset(self, address: str) -> None:
        ways = (self.folder(address) / "reset_method").read_text().split()
        for way in ways:
            # The kernel resets a bus for one function only if that is alone there.
            if way != "bus" or self._alone(address):
                self.resets.append((address, way))
                return
        raise refusal(errno.ENOTTY)

    def _alone(self, address: str) -> bool:
        above = self.folder(address).parent
        return [name for name in self.addresses() if self.folder(name).parent == above] == [address]

    # --- virtual functions --------------------------------------------------------------------------------------------

    def physical_function(self, address: str, total: int, vf_driver: str) -> None:
        """Let a function have virtual ones."""
        path = str(self.folder(address).relative_to(self.tree.devices))
        self.tree.write(path, "sriov_totalvfs", str(total))
        self.tree.write(path, "sriov_numvfs", "0")
        self.vf_driver[address] = vf_driver

    def _set_vfs(self, address: str, count: int) -> None:
        folder = self.folder(address)
        now = int((folder / "sriov_numvfs").read_text())
        if count and now:
            raise refusal(errno.EBUSY)
        if count > int((folder / "sriov_totalvfs").read_text()):
            raise refusal(errno.ERANGE)
        bus = address.rpartition(":")[0]
        for number in range(now):
            (folder / f"virtfn{number}").unlink()
            self.unplug(f"{bus}:10.{2 * number}")
        for number in range(count):
            name = f"{bus}:10.{2 * number}"
            path = f"{folder.parent.relative_to(self.tree.devices)}/{name}"
            self.add(path, "", "8086:10ca", "flr", 20 + number)
            self.tree.link(self.tree.devices / path / "physfn", folder)
            self.tree.link(folder / f"virtfn{number}", self.tree.devices / path)
            self.probe(name)
        (folder / "sriov_numvfs").write_text(f"{count}\n")
