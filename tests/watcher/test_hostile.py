"""Whatever a device tells about itself, its description can be sent."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leasehold.events import checks, codec, limits
from leasehold.events.capabilities import Pci
from leasehold.events.devices import DeviceDescription
from leasehold.events.inputs import DeviceSeen
from leasehold.services.watcher.names import DeviceNames
from leasehold.services.watcher.picture import take_picture
from leasehold.services.watcher.sysfs import clean
from tests.watcher.trees import Tree

CARD = "pci0000:00/0000:00:01.0"
STICK = f"{CARD}/usb1/1-1"
ATTRIBUTES = {
    CARD: ("vendor", "device", "class", "numa_node", "revision", "sriov_totalvfs", "sriov_numvfs", "boot_vga"),
    f"{CARD}/usb1": ("speed", "version"),
    STICK: ("idVendor", "idProduct", "serial", "manufacturer", "product", "bDeviceClass", "busnum", "version"),
    f"{STICK}/1-1:1.0": ("bInterfaceClass", "interface"),
    f"{CARD}/net/eth0": ("address", "operstate", "speed", "dev_port", "ifindex"),
    f"{CARD}/block/sda": ("size", "serial", "removable", "queue/logical_block_size", "device/model", "device/vpd_pg80"),
}
DISK = f"{CARD}/host5/rport-5:0-0/target5:0:0/5:0:0:0"
ODD_ATTRIBUTES = {
    CARD: ("max_link_speed", "current_link_width", "vpd", "mdev_supported_types/a/name", "secondary_bus_number"),
    f"{CARD}/host5/fc_host/host5": ("node_name", "port_name", "fabric_name", "port_state", "max_npiv_vports"),
    f"{CARD}/host5/scsi_host/host5": ("unique_id", "proc_name"),
    f"{CARD}/host5/rport-5:0-0/fc_remote_ports/rport-5:0-0": ("port_name",),
    f"{CARD}/ata1/ata_port/ata1": ("port_no",),
    DISK: ("type", "vendor"),
    f"{DISK}/block/sdb": ("uevent", "size", "queue/rotational"),
    f"{DISK}/scsi_generic/sg5": ("uevent",),
    f"{CARD}/drm/card0": ("uevent", "dev"),
    f"{STICK}/1-1:1.0/ttyUSB0/tty/ttyUSB0": ("uevent", "dev"),
    f"{STICK}/1-1:1.0/ttyUSB0": ("port_number",),
    "virtual/net/br0": ("uevent", "type", "bridge/bridge_id", "bridge/stp_state"),
    "virtual/net/bond0": ("bonding/mode", "bonding/active_slave", "tun_flags"),
    "css0/0.0.0004": ("dev_busid",),
    "virtual/dmi/id": ("product_name", "product_uuid"),
}
ODD_PLACES = [(device, attribute) for device, attributes in ODD_ATTRIBUTES.items() for attribute in attributes]
PLACES = [(device, attribute) for device, attributes in ATTRIBUTES.items() for attribute in attributes]

hostile = st.one_of(
    st.binary(max_size=400),
    st.binary(min_size=1, max_size=8).map(lambda part: (part * 10_000)[:10_000]),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers().map(lambda number: str(number).encode()),
    st.integers(0).map(lambda number: hex(number).encode()),
    st.sampled_from([b"", b"\n", b"-1", b"nan", b"inf", b"9" * 5_000, b'"\\' * 5_000, "\u202e\u2066".encode()]),
)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A small machine; examples of one test share it and leave it as it was."""
    tree = Tree(tmp_path)
    tree.pci(CARD, driver="vfio-pci")
    for path in (f"{CARD}/usb1", STICK, f"{STICK}/1-1:1.0"):
        tree.usb(path)
    tree.net(f"{CARD}/net/eth0")
    tree.block(f"{CARD}/block/sda", "8:0")
    return tree


@pytest.fixture
def odd(tree: Tree) -> Tree:
    """The same with devices of the rarer kinds: eighteen of them, and the computer."""
    tree.fc_host(f"{CARD}/host5", "20000000c9831b4b", "10000000c9831b4b", vports_max=3)
    target = tree.scsi_target(tree.remote_port(f"{CARD}/host5", 0, "5006016041e0b3c1"), "5:0:0")
    tree.scsi_disk(tree.scsi_device(target, 0), "sdb", "8:16", generic="sg5")
    tree.scsi_host(f"{CARD}/ata1/host1")
    tree.drm(CARD, "card0", 0)
    tree.mdev_types(CARD, a=1)
    tree.mdev(CARD, "c2177883-f1bb-47f0-914d-32a22e3a8804", "a")
    tree.tty(f"{STICK}/1-1:1.0/ttyUSB0", "188:0", port_number="0")
    tree.bridge("br0", ("eth0",))
    tree.bond("bond0")
    tree.driver(tree.device("css0/0.0.0004", "bus/css/devices"), "css", "vfio_ccw")
    return tree


def texts_of(value: object) -> Iterator[str]:
    """All texts in a description."""
    match value:
        case str():
            yield value
        case dict():
            yield from (text for each in (*value, *value.values()) for text in texts_of(each))
        case tuple():
            yield from (text for each in value for text in texts_of(each))
        case msgspec.Struct():
            yield from (text for name in value.__struct_fields__ for text in texts_of(getattr(value, name)))


def check(tree: Tree, said: dict[str, str] | None = None) -> list[DeviceDescription]:
    """Every device of the picture passes the codec, forth and back."""
    picture = take_picture(tree.root, udev=lambda _path: said or {}, names=DeviceNames(()))
    for key, device in picture.items():
        assert key == device.key
        checks.check_description(DeviceSeen(device))
        assert msgspec.json.decode(codec.encode(device), type=DeviceDescription) == device
        texts = [text for text in texts_of(device) if text != device.sysfs_path]
        assert all(text.isprintable() for text in texts)
        assert all(len(text.encode()) <= limits.ATTRIBUTE_BYTES_MAX for text in texts)
    return list(picture.values())


@contextlib.contextmanager
def changed(files: dict[Path, bytes]) -> Iterator[None]:
    """The files with another content for a while."""
    before = {file: file.read_bytes() if file.exists() else None for file in files}
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    try:
        yield
    finally:
        for file, old in before.items():
            if old is None:
                file.unlink()
            else:
                file.write_bytes(old)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(PLACES), hostile, max_size=8), text=hostile)
def test_hostile_attributes_give_valid_descriptions(
    tree: Tree, values: dict[tuple[str, str], bytes], text: bytes
) -> None:
    """Binary garbage, 10 kB, numbers out of range: six devices and the computer, and the codec takes all."""
    said = {"ID_SERIAL": text.decode("latin-1"), "ID_VENDOR_FROM_DATABASE": text.decode("latin-1")}
    with changed({tree.devices / device / attribute: value for (device, attribute), value in values.items()}):
        assert len(check(tree, said)) == 7


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(ODD_PLACES), hostile, max_size=8), text=hostile)
def test_hostile_attributes_of_rarer_kinds(odd: Tree, values: dict[tuple[str, str], bytes], text: bytes) -> None:
    """Whatever they say, they keep their places: as many devices as before, all taken by the codec."""
    said = {name: text.decode("latin-1") for name in ("DEVLINKS", "ID_BUS", "ID_TYPE", "ID_FS_LABEL")}
    with changed({odd.devices / device / attribute: value for (device, attribute), value in values.items()}):
        assert len(check(odd, said)) == 19


@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_each_attribute_out_of_range(tree: Tree, place: tuple[str, str]) -> None:
    """Numbers that no field can hold, in each attribute alone."""
    device, attribute = place
    for value in (b"-7", b"99999999999", b"0x99999999999", b"ffffffffff", b"1e999", b"9" * 5_000, b"\xff" * 10_000):
        with changed({tree.devices / device / attribute: value}):
            assert len(check(tree)) == 7


@given(raw=st.one_of(st.binary(max_size=600), st.text(st.characters(), max_size=600)), bytes_max=st.integers(1, 300))
def test_clean_texts(raw: bytes | str, bytes_max: int) -> None:
    """Printable, within the bound, without blanks around, and cleaning again changes nothing."""
    text = clean(raw, bytes_max)
    assert text.isprintable()
    assert len(text.encode()) <= bytes_max
    assert text == text.strip() == clean(text, bytes_max)


def test_hostile_names(tree: Tree) -> None:
    """Names of interfaces, mount points and folders that no text can hold."""
    tree.net(f"{CARD}/net/" + os.fsdecode(b"\xff\xfe \x01"), ifindex="7")
    tree.net(f"{CARD}/net/" + "ü" * 90, ifindex="8")
    tree.block(f"{CARD}/block/" + "d" * 200, "8:32")
    tree.mount("8:32", "/\\012\\134" + "m" * 3_000)
    tree.default_route("ü" * 90)
    for name in ("0000:00:01", "0000:00:01.8", "nonsense", "1-1-1", "usbx", "9-1", "1-1.256", "1-1.1.1.1.1.1.1.1"):
        tree.device(f"{CARD}/{name}x", "bus/pci/devices")
        tree.device(f"{CARD}/{name}", "bus/usb/devices")
    devices = check(tree)
    assert sum(device.kind == "net" for device in devices) == 3
    assert sum(device.kind == "block" for device in devices) == 2
    assert len({device.key for device in devices}) == len(devices) == 10


@pytest.mark.parametrize("file", ["mountinfo", "swaps", "route", "ipv6_route"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.binary(max_size=300), st.text("0 8:/-\\\n\teth", max_size=300).map(str.encode)))
def test_hostile_tables(tree: Tree, file: str, text: bytes) -> None:
    """A table of /proc that cannot be understood protects nothing and stops nothing."""
    tree.mount("8:0", "/")
    below = {"mountinfo": "self/mountinfo", "swaps": "swaps"}.get(file, f"net/{file}")
    path = tree.root.proc / below
    with changed({path: (path.read_bytes() if path.exists() else b"header\n") + text}):
        devices = check(tree)
    assert any("mounted at /" in device.protections for device in devices)


def test_a_description_over_the_bound_of_the_whole_keeps_a_reason(tree: Tree) -> None:
    """Thirty-two long reasons with characters that are written twice: attributes go first, protection never."""
    disk = f"{CARD}/block/sda"
    for number in range(1, 60):
        tree.partition(disk, number, f"8:{number}")
        tree.mount(f"8:{number}", f"/{number}" + '"' * 200)
    found = [device for device in check(tree) if device.kind == "block"]
    assert found[0].protections


def test_a_description_over_the_bound_says_what_was_cut(tree: Tree) -> None:
    """Sixty types of slices with long names: the list goes, the rest of the capability stays."""
    tree.mdev_types(CARD, **{f"type_{number}_{'x' * 200}": 1 for number in range(60)})
    (card,) = (device for device in check(tree) if device.kind == "pci")
    assert isinstance(card.capability, Pci)
    assert card.capability.mdev_types == ()
    assert card.attributes == {"cut": "mdev_types"}
    assert card.vendor_id
    assert len(codec.encode(card)) <= limits.DESCRIPTION_BYTES_MAX


def test_links_go_before_reasons(tree: Tree) -> None:
    """Reasons protect a device, links only show it."""
    for number in range(1, 33):
        tree.partition(f"{CARD}/block/sda", number, f"8:{number}")
        tree.mount(f"8:{number}", f"/{number}" + '"' * 90)
    links = " ".join(f"/dev/disk/by-id/{number:03}{'x' * 100}" for number in range(16))
    (disk,) = (device for device in check(tree, {"DEVLINKS": links}) if device.kind == "block")
    assert disk.devnodes == ("/dev/sda",)
    assert disk.attributes == {"cut": "devnodes"}
    assert len(disk.protections) == 32
