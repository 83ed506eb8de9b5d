"""An imitated machine whose kernel is played: it reacts to what a binder writes as Linux does, or as it is told to.

It refuses (`refuse`), does not come back (`hang`), takes a probe without a driver coming of it (`silent`), is late
(`late`), and loses devices in the middle (`on_told`). What is on it stands in the constants. Its host's tools are
played, too (`run`), and other processes can write to it through a socket (`serving`, `Remote`).
"""

import errno
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey
from leasehold.services.watcher.picture import take_picture
from tests.binder.pcibus import PciBus, refusal
from tests.binder.usbbus import UsbBus
from tests.binder.xenplay import Xen
from tests.watcher.trees import Tree

NIC: Final = "0000:01:00.0"
"""An e1000e alone in group 16, with function level reset."""
PF: Final = "0000:02:00.0"
"""An igb with up to seven virtual functions, in group 15; `enp2s0`."""
VF0: Final = "0000:02:10.0"
VF1: Final = "0000:02:10.2"
"""Its two virtual functions, with igbvf, in groups of their own."""
GPU: Final = "0000:03:00.0"
GPU_SOUND: Final = "0000:03:00.1"
"""Two functions of one card in group 17, which the kernel can reset by their bus only."""
XHCI: Final = "0000:04:00.0"
"""A USB controller: hub 1-1 with two like serial adapters (1-1.4, 1-1.5), and a stick (1-2)."""
SATA: Final = "0000:00:1f.2"
SMBUS: Final = "0000:00:1f.3"
"""Two functions of the chipset in group 5, with no way to reset them."""
PORT: Final = "0000:00:1c.0"
"""The root port above `NIC`."""
TWIN_A: Final = "1-1.4"
TWIN_B: Final = "1-1.5"
STICK: Final = "1-2"
SERIAL: Final = "A50285BI"

_DEVICE: Final = re.compile(r".*/devices/.*/?([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])/([a-z_]+)")
_PCI_DRIVER: Final = re.compile(r".*/bus/pci/drivers/([^/]+)/([a-z_]+)")
_USB_DRIVER: Final = re.compile(r".*/bus/usb/drivers/([^/]+)/([a-z_]+)")
_USB_DEVICE: Final = re.compile(r".*/([0-9]+-[0-9.]+)/authorized")
_BYTES_MAX: Final = 65_536


def pci(address: str) -> DeviceKey:
    """The key of a PCI function."""
    return DeviceKey(f"pci/{address}")


def usb(name: str) -> DeviceKey:
    """The key of a USB device of this machine, by the kernel's name of it (`1-1.4`)."""
    return DeviceKey(f"usb/{XHCI}/2-{name.partition('-')[2]}")


class Kernel:
    """The machine and its kernel."""

    def __init__(self, folder: Path, *, overrides: bool = True) -> None:
        """`overrides`: whether it has `driver_override`, as Linux has since 3.16."""
        self.tree = Tree(folder)
        self.root = self.tree.root
        self.pci = PciBus(self.tree, overrides=overrides)
        self.usb = UsbBus(self.tree, self.pci.lock)
        self.told: list[str] = []
        """All that was written to it, as `attribute text`."""
        self.refuse: dict[str, int] = {}
        """By attribute, or `attribute text`: with which error."""
        self.modules: dict[str, tuple[str, ...]] = {"vfio-pci": (), "pci-stub": (), "xen-pciback": ()}
        """What can be loaded."""
        self.on_told: Callable[[str, str], object] = lambda *_: None
        """Called when something is written, before the kernel reacts."""
        self.vfs: dict[int, dict[str, object]] = {}
        """What the card has set for its virtual functions, as `ip -j link` tells it."""
        self.xen: Xen | None = None
        """The hypervisor below; `None`: there is none."""
        self.ran: list[str] = []
        """All tools that were run."""
        self.broken: dict[str, OSError] = {}
        """By how a command line begins: why the tool fails."""
        self._hangs: dict[str, threading.Event] = {}
        self._boot()

    def _boot(self) -> None:
        for driver, ids in (
            ("pcieport", "8086:a1b0"), ("e1000e", "8086:10d3"), ("igb", "8086:10c9"), ("igbvf", "8086:10ca"),
            ("nouveau", "10de:1c82"), ("snd_hda_intel", "10de:0fb9"), ("xhci_hcd", "1b36:000d"),
            ("ahci", "8086:2922"), ("i801_smbus", "8086:2930"),
        ):  # fmt: skip
            self.pci.load(driver, ids)
        (self.root.sys / "bus/pci/drivers_probe").write_text("")
        for number, group in (("c.0", 10), ("c.1", 11), ("c.2", 12), ("c.3", 13)):
            self.pci.bridge(f"pci0000:00/0000:00:1{number}", group)
        self.pci.add(f"pci0000:00/{PORT}/{NIC}", "e1000e", "8086:10d3", "flr pm", 16)
        self.pci.add(f"pci0000:00/0000:00:1c.1/{PF}", "igb", "8086:10c9", "flr", 15)
        self.tree.net(f"pci0000:00/0000:00:1c.1/{PF}/net/enp2s0", address="02:00:00:00:02:00")
        self.pci.add(f"pci0000:00/0000:00:1c.2/{GPU}", "nouveau", "10de:1c82", "bus", 17)
        self.pci.add(f"pci0000:00/0000:00:1c.2/{GPU_SOUND}", "snd_hda_intel", "10de:0fb9", "bus", 17)
        self.pci.add(f"pci0000:00/0000:00:1c.3/{XHCI}", "xhci_hcd", "1b36:000d", "flr", 18)
        self.pci.add(f"pci0000:00/{SATA}", "ahci", "8086:2922", "", 5)
        self.pci.add(f"pci0000:00/{SMBUS}", "i801_smbus", "8086:2930", "", 5)
        self.pci.physical_function(PF, 7, "igbvf")
        self.pci.write_device(PF, "sriov_numvfs", "2")
        self.vfs = {number: _plain_vf(number) for number in range(2)}
        self.pci.load("vfio-pci")
        controller = f"pci0000:00/0000:00:1c.3/{XHCI}/usb1"
        self.usb.product("0403:6001", "ftdi_sio")
        self.usb.product("0781:5581", "usb-storage")
        self.usb.product("0409:55aa", "hub")
        self.usb.root_hub(controller)
        self.usb.plug(f"{controller}/1-1", "0409:55aa", bDeviceClass="09")
        self.usb.plug(f"{controller}/1-1/{TWIN_A}", "0403:6001", SERIAL)
        self.usb.plug(f"{controller}/1-1/{TWIN_B}", "0403:6001", SERIAL)
        self.usb.plug(f"{controller}/{STICK}", "0781:5581", "4C530001")

    # --- what there is ------------------------------------------------------------------------------------------------

    def picture(self) -> dict[DeviceKey, DeviceDescription]:
        """As a watcher sees it."""
        return dict(take_picture(self.root))

    def describe(self, key: DeviceKey) -> DeviceDescription:
        """As a watcher sees this device."""
        return self.picture()[key]

    def driver(self, name: str) -> str:
        """What a function (by address), a USB device or an interface (`1-2:1.0`) is bound to; empty: to nothing."""
        return self.usb.driver_of(name) if "-" in name else self.pci.driver_of(name)

    # --- what is written ----------------------------------------------------------------------------------------------

    def hang(self, attribute: str) -> threading.Event:
        """Let writes to an attribute (or only `attribute text`) not come back until the event is set."""
        return self._hangs.setdefault(attribute, threading.Event())

    def write(self, path: str, text: str) -> None:
        """As a write to the attribute: raises OSError as the kernel does."""
        attribute, said = os.path.basename(path), text.strip()
        path = f"{os.path.realpath(os.path.dirname(path))}/{attribute}"
        with self.pci.lock:
            self.told.append(f"{attribute} {said}")
        self.on_told(attribute, said)
        for name in (attribute, f"{attribute} {said}"):
            if event := self._hangs.get(name):
                event.wait(60)
            if name in self.refuse:
                raise refusal(self.refuse[name])
        if not os.path.exists(path):
            raise refusal(errno.ENOENT)
        if matched := _PCI_DRIVER.fullmatch(path):
            self.pci.write_driver(matched[1], matched[2], said)
        elif matched := _USB_DRIVER.fullmatch(path):
            self.usb.write_driver(matched[1], matched[2], said)
        elif path.endswith("/bus/pci/drivers_probe"):
            self.pci.probe(said)
        elif path.endswith("/bus/usb/drivers_probe"):
            self.usb.probe(said)
        elif matched := _USB_DEVICE.fullmatch(path):
            self.usb.authorize(matched[1], said == "1")
        elif matched := _DEVICE.fullmatch(path):
            self.pci.write_device(matched[1], matched[2], text)
        else:
            raise refusal(errno.EACCES)

    def reset_port(self, node: str) -> None:
        """As the ioctl that resets a USB device."""
        self.told.append(f"usb_reset {node}")
        self.on_told("usb_reset", node)
        self.usb.reset(node)

    # --- tools --------------------------------------------------------------------------------------------------------

    def run(self, words: Sequence[str]) -> str:
        """As the host's own tool."""
        line = " ".join(words)
        self.ran.append(line)
        for beginning, error in self.broken.items():
            if line.startswith(beginning):
                raise error
        match list(words):
            case ["modprobe", module]:
                if module not in self.modules:
                    raise OSError(errno.ENOENT, f"modprobe: FATAL: Module {module} not found")
                driver = {"xen-pciback": "pciback"}.get(module, module)
                if driver not in self.pci.ids:
                    self.pci.load(driver, *self.modules[module])
                return ""
            case ["ip", "-j", "link", "show", "dev", "enp2s0"]:
                return json.dumps([{"ifname": "enp2s0", "vfinfo_list": list(self.vfs.values())}])
            case ["ip", "link", "set", "dev", "enp2s0", "vf", number, *rest]:
                self._set_vf(self.vfs[int(number)], rest)
                return ""
            case ["xenstore-ls", "-f", "/local/domain/0/backend/pci"] if self.xen is not None:
                return self.xen.xenstore()
            case ["xl", *rest] if self.xen is not None:
                return self.xen.xl(rest)
        raise OSError(errno.ENOENT, f"{words[0]}: {os.strerror(errno.ENOENT)}")

    def _set_vf(self, told: dict[str, object], words: list[str]) -> None:
        match words:
            case ["mac", mac]:
                told["address"] = mac
            case ["vlan", vlan, *rest]:
                qos = int(rest[1]) if rest[:1] == ["qos"] else 0
                told["vlan_list"] = [{"vlan": int(vlan), "qos": qos}] if int(vlan) else [{}]
            case ["spoofchk" | "trust" as name, state]:
                told[name] = state == "on"
            case ["state", state]:
                told["link_state"] = state
            case ["min_tx_rate", least, "max_tx_rate", most]:
                told["rate"] = {"min_tx": int(least), "max_tx": int(most)}
            case _:
                raise OSError(errno.EINVAL, f'Error: argument "{words[0]}" is wrong')

    def boot_xen(self) -> Xen:
        """Let it be dom0 of a Xen with its toolstack."""
        self.xen = Xen(self.root.sys, self.pci)
        self.run(["modprobe", "xen-pciback"])
        return self.xen

    # --- other processes ----------------------------------------------------------------------------------------------

    @contextmanager
    def serving(self, path: Path) -> Iterator[None]:
        """Let other processes write to it, run its tools and reset its ports, through a socket at `path`."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    caller = listener.accept()[0]
                except OSError:
                    return
                threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            # Closing alone does not wake who waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()

    def _answer(self, caller: socket.socket) -> None:
        with caller, suppress(BrokenPipeError, ConnectionResetError):
            asked = caller.makefile().readline()
            if not asked:
                return  # whoever wanted to ask was killed before
            what, *given = json.loads(asked)
            answer: list[object]
            try:
                played: dict[str, Callable[..., object]]
                played = {"write": self.write, "run": self.run, "reset_port": self.reset_port}
                result = played[what](*given)
                answer = [0, result]
            except OSError as error:
                answer = [error.errno, error.strerror]
            caller.sendall(json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        """Let everything that hangs or is late come to its end."""
        for event in (*self._hangs.values(), *self.pci.late.values()):
            event.set()
        for folder in self.root.proc.glob("[0-9]*"):
            self.pci.release(int(folder.name))
        for thread in self.pci.threads:
            thread.join()


class Remote:
    """The kernel of another process, played there: see `Kernel.serving`. Its methods are what a `Machine` wants."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, path: str, text: str) -> None:
        """As `Kernel.write`."""
        self._ask("write", path, text)

    def run(self, words: Sequence[str]) -> str:
        """As `Kernel.run`."""
        return str(self._ask("run", list(words)))

    def reset_port(self, node: str) -> None:
        """As `Kernel.reset_port`."""
        self._ask("reset_port", node)

    def _ask(self, *words: object) -> object:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(self._path))
            asking.sendall(json.dumps(words).encode() + b"\n")
            number, said = json.loads(asking.makefile().readline(_BYTES_MAX))
        if number:
            raise OSError(number, said)
        return said


def _plain_vf(number: int) -> dict[str, object]:
    return {
        "vf": number, "link_type": "ether", "address": f"02:00:00:00:02:1{number}", "broadcast": "ff:ff:ff:ff:ff:ff",
        "vlan_list": [{}], "rate": {"max_tx": 0, "min_tx": 0}, "spoofchk": True, "link_state": "auto", "trust": False,
        "query_rss_en": False,
    }  # fmt: skip
