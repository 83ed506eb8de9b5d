"""Every name has one spelling, reads back as it was written, and nothing but a name is taken for one."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leasehold.events import identities, limits
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceKey, HostName, PciAddress, UsbPortPath
from tests.events.strategies import CHILDREN, HOSTILE_TEXTS, HOSTNAMES, KEYS, PCI_TEXTS, USB_TEXTS

PARSERS: tuple[Callable[[str], object], ...] = (
    identities.parse_pci_address,
    identities.parse_usb_port_path,
    identities.parse_device_key,
    identities.parse_host,
    identities.parse_principal,
    identities.parse_holder,
    identities.parse_request_id,
)
ADDRESSES = st.builds(PciAddress, st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7))
PATHS = st.builds(UsbPortPath, st.sampled_from((2, 3)), st.lists(st.integers(1, 255), max_size=7).map(tuple))


@given(ADDRESSES)
def test_pci_addresses_read_back(address: PciAddress) -> None:
    """What is printed of a PCI address reads back as it."""
    assert identities.parse_pci_address(str(address)) == address


@given(PCI_TEXTS)
def test_pci_addresses_have_one_spelling(text: str) -> None:
    """Upper case and leading zeros of the domain make no other device."""
    address = identities.parse_pci_address(text)
    assert identities.parse_pci_address(text.upper()) == address
    domain, _, rest = str(address).partition(":")
    assert str(identities.parse_pci_address(f"{domain:0>8}:{rest}")) == str(address) == str(address).lower()


@given(PATHS)
def test_usb_paths_read_back(path: UsbPortPath) -> None:
    """What is printed of a USB port path reads back as it; without ports it is the root hub, `0`."""
    assert identities.parse_usb_port_path(str(path)) == path
    assert str(path).endswith("-0") == (not path.ports)


@pytest.mark.parametrize(
    "text",
    ["1-1", "4-1", "2-", "2-1.", "2-.1", "2-01", "2-1.0", "2-0.1", "2-256", "2-1..2", "2-1.1.1.1.1.1.1.1", "02-1"],
)
def test_no_usb_paths(text: str) -> None:
    """Other generations, ports of 0 or over 255, leading zeros and paths deeper than USB goes are none."""
    with pytest.raises(InvalidInputError) as caught:
        identities.parse_usb_port_path(text)
    assert caught.value.field == "device"


@given(KEYS)
def test_keys_have_one_spelling(text: str) -> None:
    """A key in its one spelling reads back as itself, and is within its bound."""
    key = identities.parse_device_key(text)
    assert identities.parse_device_key(key) == key
    assert len(key) <= limits.KEY_CHARS_MAX


@given(PCI_TEXTS, USB_TEXTS, CHILDREN)
def test_upper_case_addresses_in_keys(address: str, path: str, child: str) -> None:
    """An address in upper case, of a function or of a controller, names the same device."""
    for lower, upper in (
        (f"pci/{address}{child}", f"pci/{address.upper()}{child}"),
        (f"usb/{address}/{path}{child}", f"usb/{address.upper()}/{path}{child}"),
    ):
        assert identities.parse_device_key(lower) == identities.parse_device_key(upper)


@given(KEYS)
def test_children_stand_for_their_parents(text: str) -> None:
    """The physical device of a child is its parent, of anything else itself; it is a key, and its own physical one."""
    key = identities.parse_device_key(text)
    physical = identities.physical_key(key)
    assert identities.parse_device_key(physical) == physical
    assert identities.physical_key(physical) == physical
    assert key == physical or identities.physical_key(identities.child_key(physical, "net", "0")) == physical
    assert key.startswith(physical)


@given(KEYS)
def test_children_are_keys(text: str) -> None:
    """A child of a physical device has a key that reads back; a child of a child has none."""
    physical = identities.physical_key(identities.parse_device_key(text))
    child = identities.child_key(physical, "interface", "1.0")
    assert identities.parse_device_key(child) == child
    with pytest.raises(InvalidInputError):
        identities.parse_device_key(identities.child_key(child, "net", "0"))


@given(st.sampled_from(PARSERS), HOSTILE_TEXTS)
@example(identities.parse_host, "h1\n")
@example(identities.parse_pci_address, "0000:03:00.0\n")
@example(identities.parse_pci_address, "0000:03:00.0".replace("0", chr(0x660)))
@example(identities.parse_device_key, "pci/0000:03:00.0/../..")
@example(identities.parse_device_key, "usb/" + "a" * 63 + "/2-1/net/" + "b" * 300)
@example(identities.parse_principal, "a.b")
@example(identities.parse_principal, "*")
@example(identities.parse_host, ">")
def test_hostile_texts(parse: Callable[[str], object], text: str) -> None:
    """Whatever the text: it is refused as invalid input, or what is read prints as something that reads as the same."""
    try:
        value = parse(text)
    except InvalidInputError as error:
        assert error.field
        assert len(str(error)) < 1_000
    else:
        assert parse(str(value)) == value
        assert str(value).isprintable()


@given(st.sampled_from((identities.parse_host, identities.parse_principal)), HOSTILE_TEXTS)
def test_names_in_subjects(parse: Callable[[str], str], text: str) -> None:
    """A name that stands in a subject holds no separator, wildcard or blank."""
    try:
        name = parse(text)
    except InvalidInputError:
        return
    assert not set(name) & set(".*> \t\r\n")
    assert len(name) <= limits.NAME_CHARS_MAX


@given(HOSTNAMES, HOSTNAMES)
@example("a.b", "a-b")
def test_machines_names_do_not_meet(one: str, other: str) -> None:
    """Two machines with different host names are two hosts; case and a last dot make no difference."""
    hosts = identities.host_from_hostname(one), identities.host_from_hostname(other)
    assert (hosts[0] == hosts[1]) == (one == other)
    assert identities.host_from_hostname(one.upper() + ".") == hosts[0]


@given(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True), KEYS)
def test_device_ids_split(host: str, text: str) -> None:
    """Host and key of a device id are those that it was made of."""
    key = identities.parse_device_key(text)
    device = identities.device_id(HostName(host), key)
    assert identities.split_device_id(device) == (host, key)


@given(st.text(min_size=1), st.text(), st.text())
def test_node_device_names(subsystem: str, sysname: str, extra: str) -> None:
    """A node-device name is made of letters, digits and `_` only, whatever the kernel calls the thing."""
    name = identities.node_device_name(subsystem, sysname, extra)
    assert all(character == "_" or (character.isascii() and character.isalnum()) for character in name)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("pci", "0000:03:00.0"), "pci_0000_03_00_0"),
        (("usb", "1-1.4"), "usb_1_1_4"),
        (("net", "eth0", "02:00:00:00:00:01"), "net_eth0_02_00_00_00_00_01"),
        (("usb", "1-4:1.1"), "usb_1_4_1_1"),
        (("usb", "1-4.1.1"), "usb_1_4_1_1"),
    ],
)
def test_names_as_libvirt_makes_them(parts: tuple[str, ...], name: str) -> None:
    """The names are libvirt's, with their collisions."""
    assert identities.node_device_name(*parts) == name


def test_keys_of_usb_devices() -> None:
    """A key is made of the controller, the generation and the ports."""
    path = identities.parse_usb_port_path("3-1.4")
    assert identities.usb_key("0000:00:14.0", path) == DeviceKey("usb/0000:00:14.0/3-1.4")
    assert identities.request_key(identities.parse_principal("a@b"), identities.parse_request_id("r:1")) == "a@b/r:1"
