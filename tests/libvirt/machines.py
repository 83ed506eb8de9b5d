"""Imitated machines that have what this one lacks: what both sides of the comparison look at."""

from pathlib import Path
from typing import Final

from tests.libvirt.machine import EXPRESS_IN_ROOT_COMPLEX, Machine, product_data

HUB: Final = "09"
SECTORS: Final = 2_097_152
"""1 GiB."""
PCI_IDS: Final = """\
10de  NVIDIA Corporation
\t1eb8  TU104GL [Tesla T4]
1af4  Red Hat, Inc.
\t1041  Virtio 1.0 network device
8086  Intel Corporation
\t10c9  82576 Gigabit Network Connection
"""
"""As in /usr/share/misc/pci.ids."""
VPD_READ_ONLY: Final = {"PN": "E43709-003", "SN": "0025900EAA10", "EC": "A1", "MN": "1028", "V0": "FFV1.2"}


def storage(folder: Path) -> Machine:
    """Disks of every kind: SATA, NVMe with 512 and 4096 byte sectors, virtio, SD card, floppy, CD-ROM with and without
    a medium, a disk without udev's word, and those that are no node devices (partitions, loop, dm, zram).
    """
    machine = Machine(folder)
    _firmware(machine)
    sata = machine.function("pci0000:00/0000:00:1f.2", pci_class=0x010601, device=0x2922, driver="ahci")
    host = machine.host_adapter(f"{sata}/ata1", 0, 1, "ahci")
    disk = machine.logical_unit(f"{host}/target0:0:0", 0, 0)
    told = {"ID_TYPE": "disk", "ID_BUS": "ata", "ID_SERIAL": "QEMU_HARDDISK_QM00001", "ID_SERIAL_SHORT": "QM00001"}
    sda = machine.disk(
        f"{disk}/block/sda",
        "8:0",
        {"queue/rotational": "1"},
        sectors=SECTORS,
        udev={**told, "ID_MODEL": "QEMU_HARDDISK"},
        links=("disk/by-path/pci-0000:00:1f.2-ata-1", "disk/by-id/ata-QEMU_HARDDISK_QM00001"),
    )
    machine.add(
        f"{sda}/sda1",
        "block",
        {"partition": "1", "size": "2048"},
        node="sda1",
        number="8:1",
        uevent={"DEVTYPE": "partition"},
    )
    _optical_drives(machine, sata)
    for bus, block_bytes in ((1, 512), (2, 4096)):
        nvme = machine.function(f"pci0000:00/0000:00:0{bus}.0", pci_class=0x010802, device=0x0010, driver="nvme")
        name = f"nvme{bus - 1}"
        machine.add(
            f"{nvme}/nvme/{name}",
            "nvme",
            {"model": "QEMU NVMe Ctrl", "serial": f"NVME{bus}", "transport": "pcie", "cntlid": "0"},
            node=name,
            number=f"242:{bus}",
        )
        machine.disk(
            f"{nvme}/nvme/{name}/{name}n1",
            f"259:{bus}",
            {"nsid": "1", "wwid": f"nvme.1b36-{bus}"},
            sectors=SECTORS,
            block_bytes=block_bytes,
            udev={
                "ID_SERIAL": f"QEMU_NVMe_Ctrl_NVME{bus}",
                "ID_SERIAL_SHORT": f"NVME{bus}",
                "ID_MODEL": "QEMU NVMe Ctrl",
            },
        )
    virtio = machine.function("pci0000:00/0000:00:04.0", vendor=0x1AF4, device=0x1042, driver="virtio-pci")
    machine.add(f"{virtio}/virtio1", "virtio", {"vendor": "0x1af4", "device": "0x0002"}, driver="virtio_blk")
    machine.disk(f"{virtio}/virtio1/block/vda", "252:0", {"serial": "VIRTIO0001"}, sectors=SECTORS)
    _cards_and_floppies(machine)
    for name, number in (("loop0", "7:0"), ("dm-0", "253:0"), ("zram0", "251:0"), ("md0", "9:0")):
        machine.disk(f"virtual/block/{name}", number, sectors=0, udev={"DM_NAME": "x"} if name == "dm-0" else None)
    return machine


def _firmware(machine: Machine) -> None:
    machine.add(
        "virtual/dmi/id",
        "dmi",
        {
            "product_name": "Standard PC (Q35 + ICH9, 2009)",
            "sys_vendor": "QEMU",
            "product_version": "pc-q35-7.2",
            "product_serial": "S-0001",
            "product_uuid": "c7a5fdbd-cdaf-9455-926a-d65c16db1809",
            "bios_vendor": "SeaBIOS",
            "bios_version": "1.16.2-1",
            "bios_date": "04/01/2014",
        },
    )


def _optical_drives(machine: Machine, sata: str) -> None:
    for number, medium in ((1, True), (2, False)):
        host = machine.host_adapter(f"{sata}/ata{number + 1}", number, number + 1, "ahci")
        drive = machine.logical_unit(f"{host}/target{number}:0:0", 0, number, kind=5, driver="sr")
        told = {"ID_CDROM": "1", "ID_TYPE": "cd", "ID_BUS": "ata", "ID_SERIAL": f"QEMU_DVD-ROM_QM0000{number + 1}"}
        if medium:
            told |= {"ID_CDROM_MEDIA": "1", "ID_FS_LABEL": "Debian 12"}
        machine.disk(
            f"{drive}/block/sr{number - 1}",
            f"11:{number - 1}",
            {"removable": "1"},
            sectors=1_331_200 if medium else 2_097_151,
            block_bytes=2048 if medium else 512,
            udev={**told, "ID_MODEL": "QEMU_DVD-ROM"},
        )
    host = machine.host_adapter(f"{sata}/ata4", 3, 4, "ahci")
    late = machine.logical_unit(f"{host}/target3:0:0", 0, 3)
    machine.disk(f"{late}/block/sdz", "65:144", sectors=SECTORS)


def _cards_and_floppies(machine: Machine) -> None:
    reader = machine.function("pci0000:00/0000:00:05.0", pci_class=0x080501, device=0x0007, driver="sdhci-pci")
    machine.add(f"{reader}/mmc_host/mmc0", "mmc_host")
    machine.add(f"{reader}/mmc_host/mmc0/mmc0:4567", "mmc", {"name": "QEMU!", "serial": "0xdeadbeef", "type": "SD"})
    machine.disk(
        f"{reader}/mmc_host/mmc0/mmc0:4567/block/mmcblk0",
        "179:0",
        sectors=SECTORS,
        udev={"ID_DRIVE_FLASH_SD": "1", "ID_NAME": "QEMU!", "ID_SERIAL": "0xdeadbeef"},
    )
    machine.add("platform/floppy.0", "platform", driver="floppy")
    machine.disk("platform/floppy.0/block/fd0", "2:0", {"removable": "1"}, sectors=2880, udev={"ID_DRIVE_FLOPPY": "1"})


def usb(folder: Path) -> Machine:
    """One xHCI with a hub, two equal serial adapters, a name that collides, a stick with a disk, a NIC, a Wi-Fi stick,
    and a device that udevd has not dealt with.
    """
    machine = Machine(folder)
    xhci = machine.function("pci0000:00/0000:00:14.0", pci_class=0x0C0330, device=0x1E31, driver="xhci_hcd")
    root = machine.usb_device(f"{xhci}/usb1", 1, 1, ids="1d6b:0002", device_class=HUB, serial="0000:00:14.0")
    machine.usb_interface(f"{root}/1-0:1.0", driver="hub", kind="09/00/00")
    fast = machine.usb_device(f"{xhci}/usb2", 2, 1, ids="1d6b:0003", device_class=HUB, speed="5000")
    machine.usb_interface(f"{fast}/2-0:1.0", driver="hub", kind="09/00/00")
    hub = machine.usb_device(f"{root}/1-4", 1, 2, ids="0409:55aa", device_class=HUB)
    machine.usb_interface(f"{hub}/1-4:1.0", driver="hub", kind="09/00/00")
    # `1-4:1.1` and `1-4.1.1` are one name to libvirt.
    machine.usb_interface(f"{hub}/1-4:1.1", kind="ff/00/00", description="second function")
    inner = machine.usb_device(f"{hub}/1-4.1", 1, 3, ids="0409:55aa", device_class=HUB)
    machine.usb_device(f"{inner}/1-4.1.1", 1, 4, names=("FTDI", "FT232R USB UART"))
    for port, number in ((2, 5), (3, 6)):
        twin = machine.usb_device(f"{hub}/1-4.{port}", 1, number, names=("FTDI", "FT232R USB UART"))
        part = machine.usb_interface(f"{twin}/1-4.{port}:1.0", driver="ftdi_sio", description="FT232R USB UART")
        serial = machine.add(f"{part}/ttyUSB{port - 2}", "usb-serial", {"port_number": "0"}, driver="ftdi_sio")
        machine.add(f"{serial}/tty/ttyUSB{port - 2}", "tty", node=f"ttyUSB{port - 2}", number=f"188:{port - 2}")
    _usb_functions(machine, root, fast)
    return machine


def _usb_functions(machine: Machine, root: str, fast: str) -> None:
    stick = machine.usb_device(f"{fast}/2-2", 2, 2, ids="0781:5581", serial="STICK0001", speed="5000")
    part = machine.usb_interface(f"{stick}/2-2:1.0", driver="usb-storage", kind="08/06/50")
    host = machine.host_adapter(part, 6, 0, "usb-storage")
    unit = machine.logical_unit(f"{host}/target6:0:0", 0, 6)
    machine.disk(
        f"{unit}/block/sdb",
        "8:16",
        {"removable": "1"},
        sectors=SECTORS,
        udev={"ID_TYPE": "disk", "ID_BUS": "usb", "ID_SERIAL": "SanDisk_Ultra_STICK0001-0:0", "ID_MODEL": "Ultra"},
    )
    ethernet = machine.usb_device(f"{root}/1-5", 1, 7, ids="0b95:1790", serial="000001")
    part = machine.usb_interface(f"{ethernet}/1-5:1.0", driver="ax88179_178a", kind="ff/ff/00")
    machine.interface(f"{part}/net/enx0050b6000001", 11, "00:50:b6:00:00:01")
    radio = machine.usb_device(f"{root}/1-6", 1, 8, ids="0bda:8812")
    part = machine.usb_interface(f"{radio}/1-6:1.0", driver="rtl8812au", kind="ff/ff/ff")
    machine.add(f"{part}/ieee80211/phy0", "ieee80211", {"index": "0"})
    wireless = machine.interface(f"{part}/net/wlan0", 12, "00:50:b6:00:00:02", device_type="wlan", state="dormant")
    machine.link(machine.devices / wireless / "phy80211", machine.devices / part / "ieee80211/phy0")
    unknown = machine.usb_device(f"{root}/1-7", 1, 9, ids="dead:beef", known=False)
    machine.usb_interface(f"{unknown}/1-7:1.0")
    keys = machine.usb_device(f"{root}/1-8", 1, 10, ids="046d:c31c")
    part = machine.usb_interface(f"{keys}/1-8:1.0", driver="usbhid", kind="03/01/01")
    machine.add(f"{part}/0003:046D:C31C.0001", "hid", driver="hid-generic")
    machine.add(f"{part}/0003:046D:C31C.0001/hidraw/hidraw0", "hidraw", node="hidraw0", number="245:0")
    machine.add(f"{part}/0003:046D:C31C.0001/input/input3", "input", {"name": "keyboard"})
    machine.add(f"{part}/0003:046D:C31C.0001/input/input3/event3", "input", node="input/event3", number="13:67")


def network(folder: Path) -> Machine:
    """A root port, an SR-IOV card with two of eight functions, its NICs; a CardBus bridge; a bridge, a bond, a VLAN, a
    tap, lo, and a NIC without speed.
    """
    machine = Machine(folder)
    _firmware(machine)
    machine.function("pci0000:00/0000:00:00.0", pci_class=0x060000, express_type=EXPRESS_IN_ROOT_COMPLEX)
    port = machine.function(
        "pci0000:00/0000:00:1c.0",
        pci_class=0x060400,
        device=0x3420,
        driver="pcieport",
        header=1,
        group=1,
        link=("8.0", 8, "5.0", 4),
    )
    card = machine.function(
        f"{port}/0000:03:00.0",
        {
            "sriov_totalvfs": "8",
            "sriov_numvfs": "2",
            "numa_node": "0",
            "subsystem_vendor": "0x8086",
            "subsystem_device": "0xa03c",
            "vpd": product_data("Gigabit ET Dual Port", VPD_READ_ONLY, {"YA": "rack 7", "V1": "ours"}),
        },
        driver="igb",
        group=2,
        link=("5.0", 4, "5.0", 4),
    )
    machine.interface(f"{card}/net/enp3s0", 2, "02:00:00:00:03:00")
    for number in (0, 1):
        address = f"0000:03:10.{number * 2}"
        virtual = machine.function(
            f"{port}/{address}", device=0x10CA, driver="igbvf" if number == 0 else "vfio-pci", group=3 + number
        )
        machine.virtual_function(card, number, virtual)
        if number == 0:
            machine.interface(f"{virtual}/net/enp3s0v0", 3, "02:00:00:00:03:10", state="down", speed="-1")
    virtio = machine.function("pci0000:00/0000:00:03.0", vendor=0x1AF4, device=0x1041, driver="virtio-pci", group=5)
    machine.function("pci0000:00/0000:00:03.1", vendor=0x1AF4, device=0x1041, driver="virtio-pci", group=5)
    machine.add(f"{virtio}/virtio0", "virtio", driver="virtio_net")
    machine.interface(f"{virtio}/virtio0/net/eth0", 4, "52:54:00:12:34:56", speed="-1")
    machine.interface("virtual/net/lo", 1, "00:00:00:00:00:00", {"type": "772"}, state="unknown", speed="")
    machine.function("pci0000:00/0000:00:1e.0", pci_class=0x060700, device=0xAC56, driver="yenta_cardbus", header=2)
    _stacked_interfaces(machine)
    return machine


def _stacked_interfaces(machine: Machine) -> None:
    net = machine.root.sys / "class/net"
    bridge = machine.interface(
        "virtual/net/br0",
        20,
        "02:00:00:00:00:20",
        {"bridge/bridge_id": "8000.020000000020", "bridge/stp_state": "0", "bridge/vlan_filtering": "0"},
        device_type="bridge",
    )
    tap = machine.interface(
        "virtual/net/tap0", 21, "02:00:00:00:00:21", {"tun_flags": "0x1002"}, state="down", speed="10"
    )
    bond = machine.interface(
        "virtual/net/bond0",
        22,
        "02:00:00:00:00:22",
        {"bonding/mode": "active-backup 1", "bonding/slaves": "enp3s0", "bonding/active_slave": "enp3s0"},
        device_type="bond",
    )
    vlan = machine.interface("virtual/net/bond0.10", 23, "02:00:00:00:00:22", {"iflink": "22"}, device_type="vlan")
    card = Path((net / "enp3s0").resolve()).relative_to(machine.devices.resolve())
    for member, master in ((tap, bridge), (str(card), bond)):
        machine.link(machine.devices / member / "master", machine.devices / master)
        machine.link(machine.devices / master / f"lower_{Path(member).name}", machine.devices / member)
    machine.link(machine.devices / vlan / "lower_bond0", machine.devices / bond)
    machine.table(
        "net/vlan/config",
        "VLAN Dev name    | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\nbond0.10       | 10  | bond0\n",
    )


def fibre_channel(folder: Path) -> Machine:
    """An HBA with vport operations, a remote port with two units, a virtual HBA of it, and a plain SAS host."""
    machine = Machine(folder)
    hba = machine.function("pci0000:00/0000:00:07.0", vendor=0x1077, pci_class=0x0C0400, driver="qla2xxx")
    host = machine.host_adapter(hba, 5, 0, "qla2xxx")
    _fc_port(machine, host, 5, "20000000c9831b4b", "10000000c9831b4b")
    for folder_of in (f"{host}/fc_host/host5", f"{host}/scsi_host/host5"):
        machine.write(folder_of, "vport_create", "")
        machine.write(folder_of, "vport_delete", "")
    machine.write(f"{host}/fc_host/host5", "max_npiv_vports", "16")
    machine.write(f"{host}/fc_host/host5", "npiv_vports_inuse", "1")
    remote = f"{host}/rport-5:0-0"
    machine.device(remote, uevent="")
    told = {"port_name": "0x5006016041e0b3c1", "node_name": "0x5006016041e0b3c0", "port_state": "Online"}
    machine.add(f"{remote}/fc_remote_ports/rport-5:0-0", "fc_remote_ports", told)
    target = f"{remote}/target5:0:0"
    for lun in (0, 1):
        unit = machine.logical_unit(target, lun, 10 + lun)
        machine.disk(
            f"{unit}/block/sd{'cd'[lun]}",
            f"8:{32 + 16 * lun}",
            sectors=SECTORS,
            udev={"ID_TYPE": "disk", "ID_BUS": "scsi", "ID_SERIAL": f"36006016{lun}", "ID_MODEL": "VRAID"},
        )
    virtual = f"{host}/vport-5:0-0"
    told = {"port_name": "0x2101001b32a9da4e", "vport_state": "Active"}
    machine.add(f"{virtual}/fc_vports/vport-5:0-0", "fc_vports", told)
    child = machine.host_adapter(virtual, 8, 0, "qla2xxx")
    _fc_port(machine, child, 8, "2001001b32a9da4e", "2101001b32a9da4e")
    sas = machine.function("pci0000:00/0000:00:08.0", vendor=0x1000, pci_class=0x010700, driver="mpt3sas")
    plain = machine.host_adapter(sas, 9, 3, "mpt3sas")
    machine.logical_unit(f"{plain}/target9:0:0", 0, 20, kind=1, driver="st")
    machine.logical_unit(f"{plain}/target9:0:1", 0, 21, kind=8, driver="ch")
    machine.logical_unit(f"{plain}/target9:0:2", 0, 22, kind=13, driver="ses")
    return machine


def _fc_port(machine: Machine, host: str, number: int, node: str, port: str) -> None:
    machine.add(
        f"{host}/fc_host/host{number}",
        "fc_host",
        {
            "node_name": f"0x{node}",
            "port_name": f"0x{port}",
            "fabric_name": "0x2001547feeb71cc1",
            "port_state": "Online",
            "port_type": "NPort (fabric via point-to-point)",
        },
    )


def mediated(folder: Path) -> Machine:
    """A GPU with its nodes, types of mediated devices and one of them; the kernel's sample `mtty`; vDPA."""
    machine = Machine(folder)
    gpu = machine.function(
        "pci0000:00/0000:00:09.0",
        {"boot_vga": "0"},
        vendor=0x10DE,
        device=0x1EB8,
        pci_class=0x030000,
        driver="nvidia",
        group=9,
        link=("8.0", 16, "2.5", 16),
    )
    for name, minor in (("card0", 0), ("renderD128", 128)):
        machine.add(
            f"{gpu}/drm/{name}",
            "drm",
            node=f"dri/{name}",
            number=f"226:{minor}",
            uevent={"DEVTYPE": "drm_minor"},
            links=(f"dri/by-path/pci-0000:00:09.0-{name.rstrip('0128D')}",),
        )
    machine.add(f"{gpu}/drm/card0/card0-DP-1", "drm", {"status": "disconnected"}, uevent={"DEVTYPE": "drm_connector"})
    machine.mdev_type(gpu, "nvidia-222", label="GRID T4-1B", instances=15)
    machine.mdev_type(gpu, "nvidia-223", label="GRID T4-2B", instances=0)
    uuid = "83c32df7-d52e-4ec1-9668-1f3c7e4df107"
    device = machine.add(f"{gpu}/{uuid}", "mdev", driver="vfio_mdev")
    machine.link(machine.devices / device / "mdev_type", machine.devices / gpu / "mdev_supported_types/nvidia-222")
    folder_of = machine.root.sys / "kernel/iommu_groups/40"
    machine.link(machine.devices / device / "iommu_group", folder_of)
    machine.link(folder_of / "devices" / uuid, machine.devices / device)
    sample = machine.add("virtual/mtty/mtty", "mtty")
    machine.mdev_type(sample, "mtty-1", label="Single port serial", instances=24)
    card = machine.function("pci0000:00/0000:00:0a.0", vendor=0x15B3, device=0x101E, driver="mlx5_core")
    path = machine.add(f"{card}/vdpa0", "vdpa", driver="vhost_vdpa")
    machine.add(f"{path}/vhost-vdpa-0", "vhost-vdpa", node="vhost-vdpa-0", number="511:0")
    return machine


def mainframe(folder: Path) -> Machine:
    """Channels and crypto adapters as on s390."""
    machine = Machine(folder)
    channel = machine.add("css0/0.0.0001", "css", {"type": "0"}, driver="io_subchannel", uevent={"ST": "0"})
    machine.add(
        f"{channel}/0.0.1b2c",
        "ccw",
        {"online": "1", "uid": "IBM.750000000DXP71.1500.07"},
        driver="dasd-eckd",
        uevent={"DEV_TYPE": "3390"},
    )
    machine.disk(
        f"{channel}/0.0.1b2c/block/dasda", "94:0", sectors=SECTORS, block_bytes=4096, udev={"ID_SERIAL": "0X1234"}
    )
    second = machine.add("css0/0.0.0002", "css", {"type": "0"}, driver="io_subchannel")
    machine.add(f"{second}/0.0.1b2d", "ccw", {"online": "0"}, driver="dasd-eckd")
    machine.add("css0/0.0.0003", "css", {"type": "1"}, driver="chsc_subchannel")
    passed = machine.add("css0/0.0.0004", "css", {"type": "0", "dev_busid": "0.0.1b2e"}, driver="vfio_ccw")
    machine.mdev_type(passed, "vfio_ccw-io", label="I/O subchannel (Non-QDIO)", instances=1, api="vfio-ccw")
    card = machine.add("ap/card07", "ap", {"type": "CEX6A"}, driver="cex4card", uevent={"DEVTYPE": "ap_card"})
    machine.add(f"{card}/07.0038", "ap", driver="cex4queue", uevent={"DEVTYPE": "ap_queue"})
    matrix = machine.add("vfio_ap/matrix", "matrix", driver="vfio_ap")
    machine.mdev_type(matrix, "vfio_ap-passthrough", label="VFIO AP Passthrough Device", instances=65536, api="vfio-ap")
    return machine


MACHINES: Final = {
    "storage": storage,
    "usb": usb,
    "network": network,
    "fibre-channel": fibre_channel,
    "mediated": mediated,
    "mainframe": mainframe,
}
"""By name, each with what builds it."""
