"""The picture of a recorded QEMU guest against what udev said about it."""

from pathlib import Path
from typing import Final

import pytest

from leasehold.events.capabilities import Pci, UsbDevice
from leasehold.events.checks import check_description
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import DeviceSeen
from leasehold.services.watcher.names import DeviceNames
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import DATA, Export, Recording, read_properties

EXPORT: Final = read_properties(DATA / "qemu-q35-export-db.txt")
Picture = dict[DeviceKey, DeviceDescription]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording(tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def picture(recording: Recording) -> Picture:
    return take_picture(recording.root, udev=recording.udev, names=DeviceNames(folders=()))


def by_path(picture: Picture) -> dict[str, DeviceDescription]:
    return {device.sysfs_path.removeprefix("/sys"): device for device in picture.values()}


def test_every_recorded_device_is_there_once(recording: Recording, picture: Picture) -> None:
    """All 38 recorded devices and the computer have keys of their own, and each description passes the codec."""
    assert sorted(by_path(picture)) == sorted(["", *recording.properties])
    assert len(picture) == len(recording.properties) + 1 == 39
    for device in picture.values():
        check_description(DeviceSeen(device))


def test_pci_functions_are_what_udev_says(picture: Picture) -> None:
    """Ids, class, driver and names of each function equal udev's own, taken at the same time by another program."""
    functions = [device for device in picture.values() if device.kind == "pci"]
    assert len(functions) == 24
    for device in functions:
        said = EXPORT[device.sysfs_path.removeprefix("/sys")]
        assert f"{device.vendor_id}:{device.product_id}".upper() == said["PCI_ID"]
        assert device.pci_class == int(said["PCI_CLASS"], 16)
        assert device.driver == said.get("DRIVER", "")
        assert device.vendor_name == said.get("ID_VENDOR_FROM_DATABASE", "")
        assert device.product_name == said.get("ID_MODEL_FROM_DATABASE", "")
        assert device.key == f"pci/{said['PCI_SLOT_NAME']}"


def test_bridges_are_those_whose_header_says_so(recording: Recording, picture: Picture) -> None:
    """Without reading the configuration header we say what it says in byte 0x0e."""
    for device in picture.values():
        if device.kind == "pci":
            header = Path(f"{recording.root.sys.parent}{device.sysfs_path}/config").read_bytes()[0x0E] & 0x7F
            assert device.bridge == (header in (1, 2) or device.pci_class >> 16 == 0x06), device.key
    assert sum(device.bridge for device in picture.values()) == 10


def test_usb_devices_are_what_udev_says(picture: Picture) -> None:
    """Ids, serial and names of each USB device equal udev's own; the interfaces have their driver."""
    devices = [device for device in picture.values() if device.kind.startswith("usb")]
    assert len(devices) == 14
    for device in devices:
        said = EXPORT[device.sysfs_path.removeprefix("/sys")]
        assert device.driver == said.get("DRIVER", "")
        assert said["DEVTYPE"] == device.kind
        if device.kind == "usb_device":
            assert (device.vendor_id, device.product_id) == (said["ID_VENDOR_ID"], said["ID_MODEL_ID"])
            assert device.serial == said["ID_SERIAL_SHORT"]
            assert device.vendor_name == said.get("ID_VENDOR_FROM_DATABASE", "")
            assert isinstance(device.capability, UsbDevice)
            assert device.capability.bus == int(said["BUSNUM"])
            assert device.capability.device == int(said["DEVNUM"])


def test_usb_keys_name_controller_generation_and_ports(picture: Picture) -> None:
    """Two root hubs of one xHCI, a device behind a hub, and an interface, each below the next."""
    keys = {device.name: (str(device.key), device.parent) for device in picture.values()}
    controller = "pci/0000:04:00.0"
    assert keys["usb_usb1"] == ("usb/0000:04:00.0/2-0", controller)
    assert keys["usb_usb2"] == ("usb/0000:04:00.0/3-0", controller)
    assert keys["usb_1_4"] == ("usb/0000:04:00.0/2-4", "usb/0000:04:00.0/2-0")
    assert keys["usb_1_4_1"] == ("usb/0000:04:00.0/2-4.1", "usb/0000:04:00.0/2-4")
    assert keys["usb_1_4_1_1_0"] == ("usb/0000:04:00.0/2-4.1/interface/1.0", "usb/0000:04:00.0/2-4.1")
    assert keys["usb_2_2"] == ("usb/0000:04:00.0/3-2", "usb/0000:04:00.0/3-0")
    assert {device.name for device in picture.values() if device.hub} == {"usb_usb1", "usb_usb2", "usb_1_4"}


def test_virtual_functions_name_their_physical_one(picture: Picture) -> None:
    """Both VFs of the igb card point to it, have IOMMU groups of their own, and it tells how many it has."""
    functions = {str(device.key): device for device in picture.values()}
    for address, group in (("0000:02:10.0", 20), ("0000:02:10.2", 21)):
        function = functions[f"pci/{address}"]
        assert function.physical_function == "pci/0000:02:00.0"
        assert function.iommu_group == group
    card = functions["pci/0000:02:00.0"]
    assert isinstance(card.capability, Pci)
    assert (card.capability.virtual_functions_max, card.capability.virtual_functions) == (7, 2)
    assert card.physical_function == ""


def test_functions_of_one_iommu_group_share_its_number(picture: Picture) -> None:
    """00:1f.0, .2 and .3 were in one group in the recorded guest."""
    groups = {picture[DeviceKey(f"pci/0000:00:1f.{function}")].iommu_group for function in (0, 2, 3)}
    assert len(groups) == 1
    assert groups != {-1}


def test_all_of_the_export_has_libvirts_names_and_parents(tmp_path: Path) -> None:
    """From udev's database of the same guest: what is below the buses, as libvirt 9.0 names it and where it puts it."""
    export = Export(tmp_path)
    for path, said in export.properties.items():
        if said["SUBSYSTEM"] == "block" and "DEVLINKS" not in said:
            export.tree.write(path.removeprefix("/devices/"), "hidden", "1")
        if said.get("ID_MODEL_FROM_DATABASE") == "3.0 root hub":
            export.tree.write(path.removeprefix("/devices/"), "speed", "5000")
    nvme = "pci0000:00/0000:00:10.2/0000:03:00.0/nvme/nvme0"
    export.tree.link(export.tree.devices / "virtual/nvme-subsystem/nvme-subsys0/nvme0", export.tree.devices / nvme)
    picture = take_picture(export.root, udev=export.udev)
    names = {str(key): device.name for key, device in picture.items()}
    found = {
        str(key): (device.name, names.get(device.parent, "computer"))
        for key, device in picture.items()
        if device.kind not in ("system", "pci", "usb_device", "usb_interface", "other")
    }
    fc = "pci/0000:01:00.0/scsi_host"
    assert found == {
        "pci/0000:00:03.0/block/0": ("block_vda", "pci_0000_00_03_0"),
        "pci/0000:00:05.0/net/0": ("net_enp0s5", "pci_0000_00_05_0"),
        **{f"pci/0000:00:1f.2/scsi_host/{port}": (f"scsi_host{port}", "pci_0000_00_1f_2") for port in range(6)},
        "pci/0000:01:00.0/net/0": ("net_enp1s0", "pci_0000_01_00_0"),
        f"{fc}/0": ("scsi_host8", "net_enp1s0"),
        f"{fc}/1": ("scsi_host9", "scsi_host8"),
        "pci/0000:02:00.0/net/0": ("net_enp2s0", "pci_0000_02_00_0"),
        "pci/0000:02:10.0/net/0": ("net_enp2s0v0", "pci_0000_02_10_0"),
        "pci/0000:02:10.2/net/0": ("net_enp2s0v1", "pci_0000_02_10_2"),
        "pci/0000:03:00.0/block/1": ("block_nvme0n1_QEMU_NVMe_Ctrl_NVMESRIOV1_1", "pci_0000_03_00_0"),
        "usb/0000:04:00.0/3-2/scsi_host/1.0-0": ("scsi_host6", "usb_2_2_1_0"),
        "usb/0000:04:00.0/3-2/scsi_target/1.0-0:0:0": ("scsi_target6_0_0", "scsi_host6"),
        "usb/0000:04:00.0/3-2/scsi/1.0-0:0:0:0": ("scsi_6_0_0_0", "scsi_target6_0_0"),
        "usb/0000:04:00.0/3-2/scsi_generic/1.0-0:0:0:0": ("scsi_generic_sg0", "scsi_6_0_0_0"),
        "usb/0000:04:00.0/3-2/block/1.0-0:0:0:0": (
            "block_sda_QEMU_QEMU_HARDDISK_STICK0001_0_0",
            "scsi_6_0_0_0",
        ),
        "platform/scsi_host/host7": ("scsi_host7", "computer"),
        "platform/scsi_target/host7:0:0": ("scsi_target7_0_0", "scsi_host7"),
        "platform/scsi/host7:0:0:0": ("scsi_7_0_0_0", "scsi_target7_0_0"),
        "platform/scsi_generic/host7:0:0:0": ("scsi_generic_sg1", "scsi_7_0_0_0"),
        "platform/block/host7:0:0:0": ("block_sdb_33333333000003e80", "scsi_7_0_0_0"),
        **{
            f"virtual/net/{name}": (f"net_{name.replace('.', '_')}", "computer")
            for name in ("bond0", "bond1", "br0", "d0", "d0.10", "dummy0", "lo", "mv0", "v0", "v1")
        },
    }
    others = {str(key): device for key, device in picture.items() if device.kind == "other"}
    ports = {key: device.devnodes for key, device in others.items() if "/tty/" in key}
    assert {key: nodes[0] for key, nodes in ports.items()} == {
        "usb/0000:04:00.0/2-4.1/tty/1.0-0": "/dev/ttyUSB0",
        "usb/0000:04:00.0/2-4.2/tty/1.0-0": "/dev/ttyUSB1",
    }
    assert len(others) == 17
    stick = picture[DeviceKey("usb/0000:04:00.0/3-2/block/1.0-0:0:0:0")]
    assert stick.serial == "STICK0001"
    assert stick.devnodes == (
        "/dev/sda",
        "/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_STICK0001-0:0",
        "/dev/disk/by-path/pci-0000:04:00.0-usb-0:2:1.0-scsi-0:0:0:0",
    )
    for device in picture.values():
        check_description(DeviceSeen(device))
