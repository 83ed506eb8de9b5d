"""Parts of imitated machines that several tests build, and how they look at them."""

from leasehold.events.devices import DeviceDescription
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import Tree

CARD = "pci0000:00/0000:00:01.0"
HBA = "pci0000:00/0000:00:07.0"
XHCI = "pci0000:00/0000:00:14.0"
PORT = f"{XHCI}/usb1/1-2"
UUID = "c2177883-f1bb-47f0-914d-32a22e3a8804"
WWNN, WWPN = "20000000c9831b4b", "10000000c9831b4b"
FAR_WWPN = "5006016041e0b3c1"


def seen(tree: Tree, **said: str) -> dict[str, DeviceDescription]:
    """The picture, where udev says the same of every device."""
    return {str(key): device for key, device in take_picture(tree.root, udev=lambda _path: said).items()}


def line(picture: dict[str, DeviceDescription], key: str) -> list[str]:
    """The names from a device up to the computer."""
    names = []
    while key:
        names.append(picture[key].name)
        key = picture[key].parent
    return names


def with_usb(tree: Tree, *ports: str) -> None:
    """A controller with devices of one interface each."""
    tree.pci(XHCI, pci_class="0x0c0330")
    tree.usb(f"{XHCI}/usb1", bDeviceClass="09")
    for port in ports:
        tree.usb(f"{XHCI}/usb1/1-{port}")
        tree.usb(f"{XHCI}/usb1/1-{port}/1-{port}:1.0", bInterfaceNumber="00")


def sata(tree: Tree, port: int, host: int, disk: str, **attributes: str) -> str:
    """A disk at a port of a SATA controller, with the numbers that the kernel happened to give."""
    above = tree.device(f"{CARD}/ata{host + 1}")
    tree.device(f"{above}/ata_port/ata{host + 1}", "class/ata_port", port_no=str(port))
    tree.scsi_host(f"{above}/host{host}", proc_name="ahci", unique_id=str(host + 1))
    unit = tree.scsi_device(tree.scsi_target(f"{above}/host{host}", f"{host}:0:0"), 0)
    number = f"8:{16 * (ord(disk[-1]) - ord('a'))}"
    return tree.scsi_disk(unit, disk, number, generic=f"sg{host}", **attributes)


def fc_machine(tree: Tree, host: int = 5) -> None:
    """An HBA with one virtual HBA, and a remote port with two disks."""
    tree.pci(HBA, pci_class="0x0c0400")
    path = tree.fc_host(f"{HBA}/host{host}", WWNN, WWPN, vports_max=127, npiv_vports_inuse="1")
    tree.vport(path, host + 1, "2101001b32a9da4e", "2001001b32a9da4e")
    target = tree.scsi_target(tree.remote_port(path, 0, FAR_WWPN), f"{host}:0:0")
    for lun, disk in enumerate(("sdc", "sdd")):
        tree.scsi_disk(tree.scsi_device(target, lun), disk, f"8:{32 + 16 * lun}")
