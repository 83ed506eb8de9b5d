"""The USB half of the played kernel: interfaces and their drivers, re-probed when a device is bound to `usb` again."""

import errno
import os
import shutil
import threading
from pathlib import Path

from tests.binder.pcibus import refusal
from tests.watcher.trees import Tree


class UsbBus:
    """Devices and their interfaces. Not for use by itself: see `kernel.Kernel`."""

    def __init__(self, tree: Tree, lock: threading.RLock) -> None:
        self.tree = tree
        self.root = tree.root
        self.lock = lock
        self.drivers: dict[str, str] = {}
        """Which driver takes the interfaces of a product: `0403:6001`."""
        self.interfaces: dict[str, tuple[str, ...]] = {}
        """Of each product: `1.0`, `1.1`."""
        self.silent: set[tuple[str, str]] = set()
        """(driver, interface): it does not take it, and the kernel says nothing of that."""
        self.resets: list[str] = []
        """By name of the device, as they were done."""
        self._number = 1

    def product(self, ids: str, driver: str, *interfaces: str) -> None:
        """A driver comes that takes this product."""
        self.drivers[ids] = driver
        self.interfaces[ids] = interfaces or ("1.0",)
        for each in (driver, "usb", "usbfs", "hub"):
            folder = self.root.sys / "bus/usb/drivers" / each
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("bind", "unbind"):
                (folder / name).touch()

    def root_hub(self, path: str, speed: str = "480") -> str:
        """A controller's (`…/usb1`)."""
        name = os.path.basename(path)
        self.tree.usb(
            path, "usb", idVendor="1d6b", idProduct="0002", bDeviceClass="09", speed=speed, busnum=name[3:], devnum="1"
        )
        (self.root.sys / "bus/usb/drivers_probe").write_text("")
        return path

    def plug(self, path: str, ids: str, serial: str = "", **attributes: str) -> str:
        """A device comes; its number is a new one."""
        with self.lock:
            self._number += 1
            vendor, _, product = ids.partition(":")
            name = os.path.basename(path)
            told = {"idVendor": vendor, "idProduct": product, "busnum": name.partition("-")[0]}
            told |= {"devnum": str(self._number), "devpath": name.partition("-")[2], "authorized": "1"}
            self.tree.usb(path, "usb", **told, **({"serial": serial} if serial else {}), **attributes)
            node = self.root.dev / "bus/usb" / f"{int(told['busnum']):03}" / f"{self._number:03}"
            node.parent.mkdir(parents=True, exist_ok=True)
            node.write_text("")
            self._configure(self.folder(name))
            return path

    def unplug(self, name: str) -> None:
        """It is pulled out, with all that is below it."""
        with self.lock:
            folder = self.folder(name)
            for link in (self.root.sys / "bus/usb/devices").iterdir():
                if Path(os.path.realpath(link)).is_relative_to(folder):
                    link.unlink()
            shutil.rmtree(folder)

    def folder(self, name: str) -> Path:
        """Where a device or an interface is."""
        link = self.root.sys / "bus/usb/devices" / name
        if not link.is_symlink():
            raise refusal(errno.ENODEV)
        return Path(os.path.realpath(link))

    def driver_of(self, name: str) -> str:
        """What it is bound to; empty: to nothing."""
        link = self.folder(name) / "driver"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else ""

    def claim(self, interface: str) -> None:
        """A process claims an interface through usbfs; that is no event."""
        with self.lock:
            if self.driver_of(interface):
                raise refusal(errno.EBUSY)
            self._bind(self.folder(interface), "usbfs")

    def unclaim(self, interface: str) -> None:
        """It lets go."""
        with self.lock:
            (self.folder(interface) / "driver").unlink()

    # --- what is written ----------------------------------------------------------------------------------------------

    def write_driver(self, driver: str, attribute: str, text: str) -> None:
        """`bind` or `unbind` of a driver."""
        with self.lock:
            folder = self.folder(text.strip())
            bound = self.driver_of(folder.name)
            if attribute == "unbind":
                if bound != driver:
                    raise refusal(errno.ENODEV)
                (folder / "driver").unlink()
                if driver == "usb":
                    self._unconfigure(folder)
            elif bound:
                raise refusal(errno.EBUSY)
            elif driver == "usb":
                self._bind(folder, driver)
                self._configure(folder)
            else:
                self._probe(folder)

    def probe(self, name: str) -> None:
        """`drivers_probe`: never says whether a driver came of it."""
        with self.lock:
            folder = self.folder(name)
            if self.driver_of(name):
                return
            if ":" in name:
                self._probe(folder)
            else:
                self._bind(folder, "usb")
                self._configure(folder)

    def authorize(self, name: str, is_authorized: bool) -> None:
        """`authorized`: without it a device has no interfaces."""
        with self.lock:
            folder = self.folder(name)
            (folder / "authorized").write_text(f"{int(is_authorized)}\n")
            self._unconfigure(folder)
            if is_authorized:
                self._configure(folder)

    def reset(self, node: str) -> None:
        """The ioctl on a device's node."""
        bus, number = (int(each) for each in node.split("/")[-2:])
        with self.lock:
            for link in (self.root.sys / "bus/usb/devices").iterdir():
                if ":" in link.name:
                    continue
                if [int((link / name).read_text()) for name in ("busnum", "devnum")] == [bus, number]:
                    self.resets.append(link.name)
                    return
        raise refusal(errno.ENODEV)

    # --- how it goes --------------------------------------------------------------------------------------------------

    def _ids(self, folder: Path) -> str:
        return ":".join((folder / name).read_text().strip() for name in ("idVendor", "idProduct"))

    def _configure(self, folder: Path) -> None:
        path = str(folder.relative_to(self.tree.devices))
        for number in self.interfaces.get(self._ids(folder), ()):
            interface = f"{path}/{folder.name}:{number}"
            self.tree.usb(interface, bInterfaceNumber=f"{int(number.partition('.')[2]):02}")
            self._probe(self.tree.devices / interface)

    def _unconfigure(self, folder: Path) -> None:
        for interface in folder.glob(f"{folder.name}:*"):
            (self.root.sys / "bus/usb/devices" / interface.name).unlink()
            shutil.rmtree(interface)

    def _probe(self, interface: Path) -> None:
        driver = self.drivers[self._ids(interface.parent)]
        if (driver, interface.name) not in self.silent:
            self._bind(interface, driver)

    def _bind(self, folder: Path, driver: str) -> None:
        self.tree.driver(str(folder.relative_to(self.tree.devices)), "usb", driver)
