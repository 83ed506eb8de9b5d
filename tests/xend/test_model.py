"""What descriptions become: states by number and letters, devices of every version of xend, and anything at all."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.events import domains
from leasehold.events.errors import InvalidInputError, SxpError
from leasehold.services.xend import devices, model, sxp
from leasehold.services.xend.devices import PciFunction, UsbController
from leasehold.services.xend.model import MIB, Live
from leasehold.services.xend.sxp import Sxp
from tests.xend.replay import recordings

STATES = {
    "(domid 1) (status 2) (state -b----)": "running",
    "(domid 1) (status 2) (state ------)": "running",
    "(domid 1) (status 1) (state --p---)": "paused",
    "(domid 1) (status 5) (state --p-c-)": "crashed",
    "(domid 1) (status 4) (state ---s--)": "shutting_down",
    "(domid 1) (status 0) (state ---s--)": "shutting_down",
    "(domid 1) (status 2) (state -b---d)": "dying",
    "(domid 1) (status 6) (state ------)": "unknown",
    "(status 0)": "halted",
    "(status 3)": "suspended",
    "(status 99)": "halted",
    # Before 3.0.4 there are only letters.
    "(domid 1) (state r-----)": "running",
    "(domid 1) (state ------)": "running",
    "(domid 1) (state --p---)": "paused",
    "(domid 1) (state ---sc-)": "crashed",
    "(domid 1) (state ---s--)": "shutting_down",
    "(domid 1) (state -----d)": "dying",
    "(domid 1)": "unknown",
    "(name x)": "halted",
}


def read(text: str, now_s: float = 1000.0) -> model.Domain:
    """A domain of these fields."""
    return model.domain_of(sxp.read(f"(domain {text})".encode()), now_s=now_s)


@pytest.mark.parametrize("text", STATES)
def test_states(text: str) -> None:
    """The number counts; the letters tell what it leaves out, and stand for it where there is none."""
    assert read(text).state == STATES[text]
    assert STATES[text] in domains.STATES


def test_how_an_old_domain_fares() -> None:
    """3.0 told why a domain shut down, and its time; those that do not run have none of it."""
    old = "(domid 3) (state ---s--) (cpu_time 1.5) (up_time 7.25) (start_time 990.0) (online_vcpus 1) (vcpu_avail 5)"
    live = Live(cpu_time_s=1.5, up_time_s=7.25, start_time_s=990.0, online_vcpus=1, vcpu_avail=2)
    for reason, expected in {
        "poweroff": {"poweroff": True},
        "reboot": {"reboot": True},
        "suspend": {"suspend": True},
        "crash": {"crashed": True},
    }.items():
        found = read(f"{old} (shutdown_reason {reason})").live
        assert found == msgspec.structs.replace(live, **expected), reason
    assert read("(domid 3) (state ---s--)").live == Live(poweroff=True)
    assert read("(start_time 990.0) (cpu_time 5) (status 0)").live is None
    started = read("(domid 3) (state r-----) (start_time 2000.0)").live
    assert started is not None and started.up_time_s == 0.0, "a host whose clock is ahead of ours"


PCI = {
    "(domain 0x0000) (bus 0x03) (slot 0x00) (func 0x1) (vdevfn 0x30)": ("0000:03:00.1", 0x30),
    "(domain 0x0) (bus 0x3) (slot 0x1f) (func 0x7) (vslot 0x5)": ("0000:03:1f.7", 0x28),
    "(domain 0) (bus 3) (slot 0) (func 1) (vslt 6)": ("0000:03:00.1", 0x30),
    "(domain 0) (bus 3) (slot 0) (func 1) (vslt 0)": ("0000:03:00.1", 0x100),
    "(domain 10000) (bus 0xff) (slot 0) (func 1)": ("10000:ff:00.1", 0x100),
    "(bus 3) (slot 0) (func 1)": None,
    "(domain 0) (bus 300) (slot 0) (func 1)": None,
    "(domain 0) (bus 3) (slot 20) (func 1)": None,
    "(domain 0) (bus 3) (slot 0) (func 8)": None,
    "(domain 0) (bus -3) (slot 0) (func 1)": None,
    "(domain '') (bus (x)) (slot 0) (func 8)": None,
}


@pytest.mark.parametrize("text", PCI)
def test_pci_of_every_version(text: str) -> None:
    """Numbers of whatever width, the guest's slot by any of its names; what names no function is left out."""
    found = read(f"(domid 1) (device (pci (dev {text}) (uuid u) (backend 0)))").pci
    expected = PCI[text]
    assert found == (() if expected is None else (PciFunction(address=expected[0], vdevfn=expected[1]),))


def test_usb_in_both_shapes() -> None:
    """Ports as names with numbers, and as a list."""
    both = UsbController(version=1, ports={1: "2-1.4", 2: "", 10: "1-1"})
    assert read("(device (vusb (port-10 1-1) (port-2 '') (port-1 2-1.4) (usb-ver 1) (num-ports 2)))").usb == (both,)
    assert read("(device (vusb (usb-ver 1) (num-ports 2) (port (1 2-1.4) (2 '') (10 1-1))))").usb == (both,)


def test_devices_that_are_half_there() -> None:
    """One without its fields, one that is a word, old types of disks: nothing is made up, and nothing lost."""
    found = read(
        "(device (vif (backend 0))) (device) (device word) (device ())"
        " (device (tap (dev ioemu:hda:disk) (uname tap:x))) (device (vbd (dev hdc:cdrom) (mode r)))"
        " (device (ioports (from 0x3f8) (to 1023))) (image (hvm (usbdevice tablet) (usbdevice host:1.3)))"
    )
    assert [each.mac for each in found.vifs] == [""]
    assert [(each.dev, each.kind, each.uname) for each in found.vbds] == [
        ("hda", "disk", "tap:x"),
        ("hdc", "cdrom", ""),
    ]
    assert [(each.first, each.last) for each in found.ioports] == [(0x3F8, 1023)]
    assert (found.kind, found.usb_host) == ("hvm", ("tablet", "host:1.3"))


def test_memory_of_old_hosts() -> None:
    """Before formats had numbers, a host's memory was told in pages; sockets are as told, or computed."""
    node = model.node_of(sxp.read(b"(node (system Linux) (total_memory 262144) (sockets_per_node 2))"))
    assert (node.total_memory_bytes, node.sockets_per_node) == (1 << 30, 2)
    told = b"(node (nr_cpus 32) (nr_nodes 2) (cores_per_socket 4) (threads_per_core 2) (xend_config_format 4))"
    assert model.node_of(sxp.read(told)).sockets_per_node == 2
    with pytest.raises(InvalidInputError, match="no description of a host"):
        model.node_of(sxp.read(b"(domain (name x))"))


WORDS = (
    *("domain", "name", "uuid", "domid", "state", "status", "memory", "device", "pci", "dev", "bus", "slot", "func"),
    *("vusb", "port", "port-1", "vif", "vbd", "image", "hvm", "usbdevice", "opts", "start_time", "cpu_time", "vcpus"),
    *("vcpu_avail", "backend", "ioports", "from", "to", "-1", "0x10", "1e999", "nan", "inf", "9" * 5000, "", "\xff"),
)
TREES = st.recursive(
    st.sampled_from(WORDS).map(lambda word: word.encode("latin-1")) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=30,
)


@given(st.lists(TREES, max_size=8))
@settings(max_examples=250, deadline=None)
def test_any_tree_is_a_domain_or_an_error(parts: list[Sxp]) -> None:
    """Whatever stands in a description, it becomes one that can be written as JSON."""
    found = model.domain_of([b"domain", *parts], now_s=0.0)
    assert found.domid >= -1 and found.state in domains.STATES
    msgspec.json.encode(found)
    for part in parts:
        list(devices.listed(part, "vbd"))
        devices.pci_function_of(part)
        msgspec.json.encode(devices.usb_of(part))
        try:
            msgspec.json.encode(model.node_of(part))
        except InvalidInputError:
            continue


@given(st.sampled_from([11, 17, 19, 142, 193, 215, 221]), st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_description_is_read_or_refused(number: int, data: st.DataObject) -> None:
    """Bytes of a genuine answer are dropped or put in: there is a domain, or an error of ours."""
    body = recordings()[number].body
    at = data.draw(st.integers(0, len(body)))
    changed = body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :]
    try:
        value: Any = sxp.read(changed)
        model.domain_of(value, now_s=0.0)
    except (SxpError, InvalidInputError):
        return


def test_numbers() -> None:
    """As xend writes them; what is none, or does not fit into 64 bits, is as if not told."""
    told = {b"16": 16, b"0x10": 16, b"16.9": 16, b"-1": -1, b"": 7, b"1e30": 7, b"9" * 30: 7, b"nan": 7, b"x": 7}
    assert {text: devices.number(text, 7) for text in told} == told
    assert devices.number(None, 7) == devices.number([b"1"], 7) == 7


def test_memory_is_whole_mib() -> None:
    """What is no whole number is refused with what would be near; so is nothing, and more than there is."""
    assert model.mib(512 * MIB, "memory_bytes") == 512
    for wrong, right in ((512 * MIB + 1, f"{512 * MIB} or {513 * MIB}"), (5, f"as {MIB} would be"), (0, "1 MiB")):
        with pytest.raises(InvalidInputError, match=right):
            model.mib(wrong, "memory_bytes")
    with pytest.raises(InvalidInputError, match="1 PiB"):
        model.mib(1 << 60, "memory_bytes")
