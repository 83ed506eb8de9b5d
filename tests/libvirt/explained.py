"""Every difference between libvirt 9.0's node devices and ours, with its reason; the table of docs/nodedev.md."""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from tests.libvirt.comparing import LISTED, Difference

NET: Final = r"/net/[^/]+$"
BLOCK: Final = r"/block/[^/]+$|/nvme\d+n\d+$"
PCI: Final = r"/[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$"
SECTOR_BYTES: Final = 512


class Explained(msgspec.Struct, frozen=True):
    """Differences of one kind."""

    what: str
    """As in the first column of the table in docs/nodedev.md."""
    theirs: str
    ours: str
    path: str
    """Matches where in the paths of the devices concerned."""
    field: str
    """Matches the fields as a whole."""
    holds: Callable[[Difference], bool] = lambda _difference: True
    """Whether the values differ in the way that is explained."""

    def covers(self, difference: Difference) -> bool:
        """Whether it is the reason of a difference."""
        return bool(
            re.search(self.path, difference.path)
            and re.fullmatch(self.field, difference.field)
            and self.holds(difference)
        )

    @property
    def row(self) -> str:
        """The line of the table."""
        return f"| {self.what} | {self.theirs} | {self.ours} |"


def _is_ours_alone(difference: Difference) -> bool:
    return not difference.theirs and bool(difference.ours)


def _is_theirs_alone(difference: Difference) -> bool:
    return bool(difference.theirs) and not difference.ours


def _number(values: tuple[str, ...]) -> int:
    return int(values[0]) if len(values) == 1 and values[0].isdecimal() else -1


def _is_scaled(difference: Difference) -> bool:
    """libvirt takes the size in units of 512 bytes for one in the disk's own, larger sectors."""
    theirs, ours = _number(difference.theirs), _number(difference.ours)
    return ours > 0 and theirs in (ours * 2048 // SECTOR_BYTES, ours * 4096 // SECTOR_BYTES)


EXPLAINED: Final = (
    Explained(
        "links of other kinds",
        "bridges, bonds and VLANs are no node devices",
        "listed, as the first proposal wanted, with members and ids in a capability within `net`",
        r"/virtual/net/(br|bond)",
        LISTED,
        _is_ours_alone,
    ),
    Explained(
        "everything else with a device node",
        "dropped: serial ports, input, sound, cameras, NVMe controllers, …",
        "kept as `other` with what the kernel says",
        r"/(tty/ttyUSB\d|hidraw/hidraw\d|input/input\d+(/event\d+)?|nvme/nvme\d|i2c-\d|vhost-vdpa-\d)$",
        LISTED,
        _is_ours_alone,
    ),
    Explained(
        "USB devices that udevd has not dealt with",
        "dropped, and their interfaces hang below the hub",
        "listed: the kernel tells vendor and product",
        r"/usb1/1-7$",
        LISTED,
        _is_ours_alone,
    ),
    Explained(
        "parent of such a device's interfaces",
        "the hub",
        "the device",
        r"/1-7:1\.0$",
        "parent",
        lambda each: each.theirs == ("usb_usb1",) and each.ours == ("usb_1_7",),
    ),
    Explained(
        "USB device and interface of one name (`1-4.1.1`, `1-4:1.1`)",
        "`usb_1_4_1_1` is whichever came last; the other is lost",
        "both listed: the device has the name, the interface the name with `_` and six digits of its key's hash",
        r"/1-4\.1\.1$",
        LISTED,
        _is_ours_alone,
    ),
    Explained(
        "name of such an interface",
        "`usb_1_4_1_1`",
        "`usb_1_4_1_1_` and six digits",
        r"/1-4:1\.1$",
        "name",
        lambda each: each.theirs == ("usb_1_4_1_1",) and bool(re.fullmatch("usb_1_4_1_1_[0-9a-f]{6}", each.ours[0])),
    ),
    Explained(
        "disks that udevd has not dealt with",
        "dropped, as nothing tells their type",
        "listed: whatever has a SCSI disk's driver is a disk",
        r"/block/sdz$",
        LISTED,
        _is_ours_alone,
    ),
    Explained(
        "size of disks with sectors of 4096 bytes",
        "eight times too large",
        "as the kernel counts it, in units of 512 bytes",
        BLOCK,
        "size",
        _is_scaled,
    ),
    Explained(
        "number of their blocks",
        "units of 512 bytes, beside a block size of 4096",
        "size by block size",
        BLOCK,
        "num_blocks|removable/num_blocks",
        _is_scaled,
    ),
    Explained(
        "size of media with sectors of 2048 bytes",
        "four times too large",
        "as the kernel counts it",
        r"/block/sr\d$",
        "removable/media_size",
        _is_scaled,
    ),
    Explained(
        "serial of a disk of which udev has none (`ID_SERIAL`)",
        "none",
        "the serial that the disk tells",
        BLOCK,
        "serial",
        _is_ours_alone,
    ),
    Explained(
        "speed of a link that tells none",
        "4294967295 (-1 as a positive number)",
        "left out",
        NET,
        "link@speed",
        lambda each: each.theirs == ("4294967295",) and not each.ours,
    ),
    Explained(
        "medium of the loopback interface",
        "`80203`, as its address has six bytes",
        "none: it is no Ethernet",
        r"/virtual/net/lo$",
        "80203",
        _is_theirs_alone,
    ),
    Explained(
        "PCI Express devices without a link (in the root complex)",
        "an empty `pci-express`, from the configuration space",
        "nothing: that is not read, and nothing else tells it",
        r"/0000:00:00\.0$",
        "pci-express",
        lambda each: each.theirs == ("",) and not each.ours,
    ),
    Explained(
        "port number of a PCI Express link",
        "from the configuration space (root only)",
        "left out",
        PCI,
        r"pci-express/link\[cap\]@port",
        _is_theirs_alone,
    ),
    Explained(
        "present speed of a GPU's link",
        "as it is at the moment, which follows the load",
        "left out: it would be an event each time",
        r"/0000:00:09\.0$",
        r"pci-express/link\[sta\]@speed",
        _is_theirs_alone,
    ),
    Explained(
        "bus of NVMe disks",
        "none, as udev tells none",
        "`nvme`",
        r"/nvme\d+n\d+$",
        "bus",
        lambda each: not each.theirs and each.ours == ("nvme",),
    ),
    Explained(
        "model of an SD card",
        "none",
        "what the card says",
        r"/block/mmcblk\d+$",
        "model",
        _is_ours_alone,
    ),
    Explained(
        "medium of a floppy drive",
        "one if udev read a label from it",
        "one if the kernel tells its size",
        r"/block/fd\d$",
        "removable/(media_available|media_size|logical_block_size|num_blocks)",
    ),
    Explained(
        "disks that can be unplugged while they run",
        "never said to be `hotpluggable`",
        "`hotpluggable` on USB",
        r"/usb\d+/.*/block/[^/]+$",
        "hotpluggable",
        _is_ours_alone,
    ),
    Explained(
        "node of a vDPA device",
        "in its capability",
        "there, and as `devnode`",
        r"/vdpa\d+$",
        r"devnode\[dev\]",
        _is_ours_alone,
    ),
    Explained(
        "channel devices that are offline",
        "dropped",
        "listed",
        r"/0\.0\.1b2d$",
        LISTED,
        _is_ours_alone,
    ),
    Explained(
        "description of a USB interface",
        "never filled in",
        "what the device says",
        r"/[0-9.-]+:\d+\.\d+$",
        "description",
        _is_ours_alone,
    ),
)
"""Each kind of difference; one that no machine shows any more is to be taken out."""


def explanation_of(difference: Difference) -> Explained | None:
    """Why both differ there; `None` if nothing explains it."""
    return next((each for each in EXPLAINED if each.covers(difference)), None)
