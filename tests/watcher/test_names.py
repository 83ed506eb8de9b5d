"""Names of vendors and products."""

from pathlib import Path

import pytest

from leasehold.services.watcher.names import DeviceNames

PCI_IDS = """\
#	Vendors
0001  SafeNet (wrong ID)
8086  Intel Corporation
# a remark between
	1533  I210 Gigabit Network Connection
		103c 0003  Ethernet I210-T1 GbE NIC
	10c9  82576 Gigabit Network Connection
8087  Intel Corp.
	10c9  not the one of 8086
	07dc  Bluetooth \N{LATIN SMALL LETTER O WITH DIAERESIS}

C 02  Network controller
	00  Ethernet controller
"""


@pytest.fixture
def names(tmp_path: Path) -> DeviceNames:
    (tmp_path / "pci.ids").write_text(PCI_IDS)
    (tmp_path / "usb.ids").write_text("1d6b  Linux Foundation\n\t0002  2.0 root hub\n")
    return DeviceNames((str(tmp_path / "nowhere"), str(tmp_path)))


@pytest.mark.parametrize(
    ("bus", "vendor", "product", "expected"),
    [
        ("pci", "8086", "10c9", ("Intel Corporation", "82576 Gigabit Network Connection")),
        ("pci", "8086", "103c", ("Intel Corporation", "")),  # a subsystem's line, not a product's
        ("pci", "8086", "07dc", ("Intel Corporation", "")),  # stands below the next vendor
        ("pci", "8087", "07dc", ("Intel Corp.", "Bluetooth ö")),  # the last before the classes
        ("pci", "0001", "0000", ("SafeNet (wrong ID)", "")),
        ("pci", "ffff", "0000", ("", "")),
        ("pci", "", "", ("", "")),
        ("usb", "1d6b", "0002", ("Linux Foundation", "2.0 root hub")),  # the first and last line of the file
    ],
)
def test_names_from_the_lists(
    names: DeviceNames, bus: str, vendor: str, product: str, expected: tuple[str, str]
) -> None:
    """A vendor by its line, a product by its line below that vendor."""
    assert names.of(bus, vendor, product, {}) == expected


def test_udev_comes_first(names: DeviceNames) -> None:
    """What udev does not know is taken from the list."""
    said = {"ID_VENDOR_FROM_DATABASE": "Intel (udev)"}
    assert names.of("pci", "8086", "10c9", said) == ("Intel (udev)", "82576 Gigabit Network Connection")


def test_without_lists_there_are_no_names(tmp_path: Path) -> None:
    """No list, an empty list, or something that is none."""
    (tmp_path / "pci.ids").touch()
    (tmp_path / "usb.ids").mkdir()
    for bus in ("pci", "usb"):
        assert DeviceNames((str(tmp_path),)).of(bus, "8086", "10c9", {}) == ("", "")
