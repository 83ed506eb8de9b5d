"""Disks, drives and HBAs on imitated machines: the way down to them, their names, and what they are."""

from pathlib import Path

import pytest

from leasehold.events.capabilities import (
    FcHost,
    ScsiDevice,
    ScsiGeneric,
    ScsiHost,
    ScsiTarget,
    Storage,
    VportOps,
)
from tests.watcher.samples import (
    CARD,
    FAR_WWPN,
    HBA,
    PORT,
    WWNN,
    WWPN,
    fc_machine,
    line,
    sata,
    seen,
    with_usb,
)
from tests.watcher.trees import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_sata_disk_behind_scsi(tree: Tree) -> None:
    """Disk, logical unit, target, host, function: each below the next, each named as libvirt names it."""
    tree.pci(CARD, pci_class="0x010601")
    disk = sata(tree, 2, 4, "sdb", size="7814037168", removable="0")
    tree.write(disk, "queue/rotational", "1")
    tree.write(disk, "queue/logical_block_size", "512")
    picture = seen(tree)
    below = "pci/0000:00:01.0"
    disk_key = f"{below}/block/port-2:0:0:0"
    assert line(picture, disk_key) == [
        "block_sdb", "scsi_4_0_0_0", "scsi_target4_0_0", "scsi_host4", "pci_0000_00_01_0",
    ]  # fmt: skip
    assert line(picture, f"{below}/scsi_generic/port-2:0:0:0")[:2] == ["scsi_generic_sg4", "scsi_4_0_0_0"]
    assert picture[disk_key].capability == Storage(
        block="/dev/sdb",
        bus="ata",
        drive_type="disk",
        vendor="ATA",
        model="WDC WD40",
        size_bytes=4_000_787_030_016,
        logical_block_size=512,
        rotational=True,
    )
    capabilities = {device.kind: device.capability for device in picture.values()}
    assert capabilities["scsi_host"] == ScsiHost(host=4, unique_id=5, driver="ahci")
    assert capabilities["scsi_target"] == ScsiTarget(target="target4:0:0")
    assert capabilities["scsi"] == ScsiDevice(host=4, bus=0, target=0, lun=0, scsi_type="disk")
    assert capabilities["scsi_generic"] == ScsiGeneric(char="/dev/sg4")
    assert picture[f"{below}/scsi_generic/port-2:0:0:0"].devnodes == ("/dev/sg4",)


def test_an_nvme_disk_with_sectors_of_4096_bytes(tree: Tree) -> None:
    """Its size is what it is (libvirt: eight times that), its key the namespace's id, whatever it is called."""
    tree.pci(CARD, pci_class="0x010802")
    tree.node(f"{CARD}/nvme/nvme3", "class/nvme", "240:3", model="QEMU NVMe Ctrl", serial="NVME1")
    disk = tree.block(f"{CARD}/nvme/nvme3/nvme3n1", "259:0", size="2097152", nsid="7")
    tree.link(tree.devices / disk / "device", tree.devices / f"{CARD}/nvme/nvme3")
    tree.write(disk, "queue/logical_block_size", "4096")
    found = seen(tree)["pci/0000:00:01.0/block/7"]
    assert (found.serial, found.parent) == ("NVME1", "pci/0000:00:01.0")
    assert found.capability == Storage(
        block="/dev/nvme3n1",
        bus="nvme",
        drive_type="disk",
        model="QEMU NVMe Ctrl",
        size_bytes=2**30,
        logical_block_size=4096,
    )


@pytest.mark.parametrize(
    ("size", "said", "has_disc"),
    [
        ("1024000", {}, True),
        ("2097151", {}, False),
        ("2097151", {"USEC_INITIALIZED": "1", "ID_CDROM_MEDIA": "1", "ID_TYPE": "cd", "ID_FS_LABEL": "DEB"}, True),
        ("1024000", {"USEC_INITIALIZED": "1", "ID_TYPE": "cd"}, False),
    ],
)
def test_a_cd_drive_with_and_without_a_disc(tree: Tree, size: str, said: dict[str, str], has_disc: bool) -> None:
    """udev's word counts where it has spoken, else the size that an empty drive says."""
    tree.pci(CARD)
    unit = tree.scsi_device(tree.scsi_target(tree.scsi_host(f"{CARD}/host0"), "0:0:0"), 0, type="5")
    tree.scsi_disk(unit, "sr0", "11:0", size=size, removable="1")
    drive = next(device.capability for device in seen(tree, **said).values() if device.kind == "block")
    assert isinstance(drive, Storage)
    assert (drive.drive_type, drive.removable, drive.media_available) == ("cdrom", True, has_disc)
    assert drive.size_bytes == (int(size) * 512 if has_disc else -1)
    assert drive.media_label == said.get("ID_FS_LABEL", "")


def test_a_usb_stick_with_storage(tree: Tree) -> None:
    """All of it below the interface, in the key of the port; it can be unplugged, and has what its maker wrote."""
    with_usb(tree, "2")
    host = tree.scsi_host(f"{PORT}/1-2:1.0/host6", proc_name="usb-storage")
    unit = tree.scsi_device(tree.scsi_target(host, "6:0:0"), 0, vendor="SanDisk", model="Ultra")
    tree.scsi_disk(unit, "sda", "8:0", size="0", removable="1")
    picture = seen(tree)
    key = "usb/0000:00:14.0/2-2/block/1.0-0:0:0:0"
    assert line(picture, key)[3:] == ["scsi_host6", "usb_1_2_1_0", "usb_1_2", "usb_usb1", "pci_0000_00_14_0"]
    assert picture[key].capability == Storage(
        block="/dev/sda",
        bus="usb",
        drive_type="disk",
        vendor="SanDisk",
        model="Ultra",
        removable=True,
        hotpluggable=True,
        media_available=False,
    )


def test_a_fibre_channel_hba(tree: Tree) -> None:
    """It is known by its world wide name, says whether it can have virtual ones, and whose disks it sees."""
    fc_machine(tree)
    picture = seen(tree)
    hba = f"pci/0000:00:07.0/scsi_host/{WWPN}"
    assert picture[hba].capability == ScsiHost(
        host=5,
        unique_id=1,
        driver="lpfc",
        fc_host=FcHost(wwnn=WWNN, wwpn=WWPN, fabric_wwn="100000051e000001", port_state="Online"),
        vport_ops=VportOps(max_vports=127, vports=1),
    )
    virtual = picture["pci/0000:00:07.0/scsi_host/2001001b32a9da4e"]
    assert (virtual.parent, virtual.name) == (hba, "scsi_host6")
    assert isinstance(virtual.capability, ScsiHost)
    assert virtual.capability.is_vport
    assert virtual.capability.vport_ops is None
    target = picture[f"pci/0000:00:07.0/scsi_target/{WWPN}:{FAR_WWPN}"]
    assert target.capability == ScsiTarget(target="target5:0:0", remote_port="rport-5:0-0", remote_wwpn=FAR_WWPN)
    assert line(picture, f"pci/0000:00:07.0/block/{WWPN}:{FAR_WWPN}:1") == [
        "block_sdd", "scsi_5_0_0_1", "scsi_target5_0_0", "scsi_host5", "pci_0000_00_07_0",
    ]  # fmt: skip


def test_a_software_hba_hangs_below_the_interface_that_it_uses(tree: Tree) -> None:
    """Fibre Channel over Ethernet, as the recorded guest has it: the key is the NIC's function's."""
    tree.pci(CARD)
    tree.net(f"{CARD}/net/eth0")
    tree.fc_host(f"{CARD}/net/eth0/ctlr_0/host8", WWNN, WWPN, vports_max=4)
    picture = seen(tree)
    names = line(picture, f"pci/0000:00:01.0/scsi_host/{WWPN}")
    assert names == ["scsi_host8", "net_eth0_02_00_00_00_00_01", "pci_0000_00_01_0"]


def test_an_adapter_without_a_name_is_told_by_its_place(tree: Tree) -> None:
    """`0xffffffffffffffff` and zeros are what drivers say before a link was up: no names."""
    tree.pci(HBA)
    tree.fc_host(f"{HBA}/host3", "f" * 16, "0" * 16)
    (host,) = (device for device in seen(tree).values() if device.kind == "scsi_host")
    assert host.key == "pci/0000:00:07.0/scsi_host/0"
    assert isinstance(host.capability, ScsiHost)
    assert host.capability.fc_host is not None
    assert (host.capability.fc_host.wwnn, host.capability.fc_host.wwpn) == ("", "")


def test_what_has_no_physical_place_hangs_on_the_computer(tree: Tree) -> None:
    """An SD card of a board by the device that firmware names, a Xen disk by its bus, an iSCSI host by nothing."""
    mmc = "platform/soc/fe340000.mmc"
    tree.device("platform/soc", "bus/platform/devices")
    tree.device(mmc, "bus/platform/devices")
    tree.device(f"{mmc}/mmc_host/mmc0/mmc0:aaaa", "bus/mmc/devices")  # the card, by a number of its own
    for name, number in (("mmcblk0boot0", "179:8"), ("mmcblk0", "179:0")):
        tree.block(f"{mmc}/mmc_host/mmc0/mmc0:aaaa/block/{name}", number)
    tree.device("vbd-51712", "bus/xen/devices")
    tree.block("vbd-51712/block/xvda", "202:0")
    tree.scsi_host("platform/host3", proc_name="iscsi_tcp")
    picture = seen(tree)
    assert {key: device.name for key, device in picture.items() if key.startswith("platform/")} == {
        "platform/block/fe340000.mmc-0": "block_mmcblk0",
        "platform/block/fe340000.mmc-1": "block_mmcblk0boot0",
        "platform/block/vbd-51712-0": "block_xvda",
        "platform/scsi_host/host3": "scsi_host3",
    }
    assert {picture[key].parent for key in picture} == {""}
