"""A device is found by whatever people call it; what could be two devices is refused with both."""

from typing import NamedTuple

import pytest

from leasehold.events import inputs, limits
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import COMPUTER, DeviceId, DeviceKey, HostName
from leasehold.events.refusals import RefusalCode
from leasehold.projections.naming import resolve
from tests.projections.ledger import H1, H2, Ledger, device, ledger_with_hosts, pci, refusal_of


class Case(NamedTuple):
    """`text`, looked up on `host` if one is given, names `found` (in short) or nothing."""

    text: str
    found: str
    host: str = ""


CASES = (
    Case("pci/0000:0a:00.0", "0a:00.0"),
    Case("pci/0000:0A:00.0", "0a:00.0"),
    Case("pci/00000000:0a:00.0", "0a:00.0"),
    Case("h1/pci/0000:0a:00.0", "0a:00.0"),
    Case("0000:0a:00.0", "0a:00.0"),
    Case("0000:0A:00.0", "0a:00.0"),
    Case("pci_0000_0a_00_0", "0a:00.0"),
    Case("/sys/devices/pci0000:00/0000:0a:00.0", "0a:00.0"),
    Case("/sys/devices/pci0000:00/0000:0a:00.0/", "0a:00.0"),
    Case("/sys/bus/pci/devices/0000:0a:00.0", "0a:00.0"),
    Case("/sys/bus/pci/devices/0000:0A:00.0/", "0a:00.0"),
    Case("usb/0000:04:00.0/2-1.1", "2-1.1"),
    Case("usb_2_1_1", "2-1.1"),
    Case("pci/0000:01:00.0/net/0", "01:00.0/net/0", "h1"),
    Case("net_eth0", "01:00.0/net/0"),
    Case("pci/0000:01:00.0", "01:00.0", "h1"),
    Case("h1/pci/0000:01:00.0", "01:00.0", "h1"),
    Case("pci/0000:01:00.0", ""),
    Case("h2/pci/0000:01:00.0", "", "h1"),
    Case("pci/0000:0a:00.0", "", "h2"),
    Case("0000:0a:00.0", "", "h3"),
    Case("0a:00.0", ""),
    Case("pci/0000:0b:00.1", ""),
    Case("/sys/devices", ""),
    Case("/", ""),
    Case("h1", ""),
    Case("net_eth", ""),
    Case("virtual/net/br0", "virtual/net/br0"),
    Case("h1/virtual/net/br0", "virtual/net/br0"),
    Case("net_br0_02_00_00_00_00_01", "virtual/net/br0"),
    Case("h1/computer", "computer"),
    Case("computer", ""),
    Case("computer", "computer", "h1"),
)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.text} on {case.host or 'any'}" for case in CASES])
def test_case(case: Case) -> None:
    """The text names this device, or no single one."""
    found = resolve(_ledger().state, case.text, case.host).device
    expected = DeviceId(f"h1/{case.found}") if case.found[:1] in ("v", "c") else device(case.found)
    assert found == (expected if case.found else None)


def _ledger() -> Ledger:
    ledger = ledger_with_hosts()
    computer = DeviceDescription(key=COMPUTER, name="computer", kind="system")
    bridge = DeviceDescription(key=DeviceKey("virtual/net/br0"), name="net_br0_02_00_00_00_00_01", kind="net")
    ledger.see(computer, bridge)
    ledger.see(computer, host=H2)
    return ledger


def test_a_host_that_is_called_like_a_bus() -> None:
    """A key means a device, even where a host is called as keys begin; such a host is given apart."""
    ledger = _ledger()
    ledger.start_host(HostName("virtual"), pci("0e:00.0"))
    assert resolve(ledger.state, "virtual/net/br0").device == DeviceId("h1/virtual/net/br0")
    assert resolve(ledger.state, "pci/0000:0e:00.0", "virtual").device == DeviceId("virtual/pci/0000:0e:00.0")


def test_ambiguity() -> None:
    """A name that several hosts know is refused with the candidates; a host, or a whole id, makes it one."""
    ledger = ledger_with_hosts()
    refusal = refusal_of(ledger.ask(ledger.request("0000:01:00.0")))
    assert refusal.code == RefusalCode.DEVICE_AMBIGUOUS
    for host in (H1, H2):
        assert device("01:00.0", host) in refusal.message
    assert ledger.ask(ledger.request("0000:01:00.0", host="h2")).devices == (device("01:00.0", H2),)
    assert ledger.ask(ledger.request("h1/pci/0000:01:00.0")).devices == (device("01:00.0"),)


def test_names_that_collide() -> None:
    """Two devices of one host can have one node-device name: it is refused with both keys, each of which works."""
    ledger = ledger_with_hosts()
    ledger.see(pci("0c:00.0", name="usb_1_4_1_1"), pci("0d:00.0", name="usb_1_4_1_1"))
    assert resolve(ledger.state, "usb_1_4_1_1").candidates == (device("0c:00.0"), device("0d:00.0"))
    ledger.granted("0c:00.0")


def test_candidates_are_bounded() -> None:
    """However many devices have a name, a refusal names a few."""
    ledger = ledger_with_hosts()
    ledger.see(*(pci(f"{number:02x}:00.0", name="same") for number in range(0x20, 0x40)))
    assert len(resolve(ledger.state, "same").candidates) == limits.CANDIDATES_PER_REFUSAL_MAX


def test_what_is_there_comes_first() -> None:
    """A name that went with a thing to another place means where it is now; with all gone, it still finds the one."""
    ledger = ledger_with_hosts()
    ledger.see(pci("0c:00.0", name="net_x"))
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:0c:00.0")))
    assert resolve(ledger.state, "net_x").device == device("0c:00.0")
    ledger.see(pci("0d:00.0", name="net_x"))
    assert resolve(ledger.state, "net_x").device == device("0d:00.0")


def test_names_follow_descriptions() -> None:
    """A device that is called otherwise now is not found by its old name any more."""
    ledger = ledger_with_hosts()
    ledger.change("0a:00.0", name="net_new", sysfs_path="/sys/new")
    for text, found in (("net_new", True), ("/sys/new", True), ("pci_0000_0a_00_0", False), ("0000:0a:00.0", True)):
        assert (resolve(ledger.state, text).device is not None) == found, text


def test_unknown_names() -> None:
    """A name that nothing has is refused with what it was, and what helps."""
    ledger = Ledger()
    refusal = refusal_of(ledger.ask(ledger.request("0000:01:00.0", host=HostName("h9"))))
    assert refusal.code == RefusalCode.DEVICE_UNKNOWN
    assert "0000:01:00.0" in refusal.message
    assert refusal.help
