"""Reading libvirt's XML of domains: what they are, and which devices of the host they have or may ask for."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events.domains import DomainDescription, Use, parse_device_word
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DomainKey
from leasehold.services.poller.domainxml import read_domain

UUID = "96487537-382b-48b0-9288-09c90307fbfc"
MIB = 1024 * 1024


def domain_xml(*devices: str, domid: int = -1, kind: str = "kvm", os_kind: str = "hvm", rest: str = "") -> str:
    number = f" id='{domid}'" if domid >= 0 else ""
    return f"""<domain type='{kind}'{number} xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name><uuid>{UUID}</uuid>
  <memory unit='KiB'>65536</memory><currentMemory unit='KiB'>32768</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os><type arch='x86_64' machine='pc-i440fx-7.2'>{os_kind}</type></os>
  <devices>
    <memballoon><address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/></memballoon>
    {"".join(devices)}
  </devices>{rest}</domain>"""


def hostdev(kind: str, source: str, extra: str = "") -> str:
    return (
        f"<hostdev mode='subsystem' type='{kind}' managed='yes'{extra}><source>{source}</source>"
        "<address type='pci' domain='0x0000' bus='0x00' slot='0x09' function='0x0'/></hostdev>"
    )


GPU = hostdev("pci", "<address domain='0x0000' bus='0x03' slot='0x00' function='0x1'/>")
BY_ADDRESS = hostdev("usb", "<address bus='1' device='4'/>")
BY_ID = hostdev("usb", "<vendor id='0x0781'/><product id='0x5581'/>")
RESOLVED = hostdev("usb", "<vendor id='0x0781'/><product id='0x5581'/><address bus='1' device='6'/>")
VIRTUAL_FUNCTION = """<interface type='hostdev' managed='yes'><mac address='52:54:00:6d:90:02'/><driver name='vfio'/>
    <source><address type='pci' domain='0x0000' bus='0x02' slot='0x10' function='0x0'/></source>
    <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/></interface>"""
NVME = """<disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'>
    <address domain='0x0000' bus='0x05' slot='0x00' function='0x0'/></source><target dev='vda'/></disk>"""
NVME_BELOW = """<disk type='file'><source file='/a'/><backingStore type='nvme'><source type='pci' namespace='2'>
    <address domain='0x0000' bus='0x06' slot='0x00' function='0x0'/></source></backingStore></disk>"""
CASES = [
    ([GPU], ["pci/0000:03:00.1"]),
    # VMD numbers its own domains.
    ([hostdev("pci", "<address domain='0x10000' bus='0xe1' slot='0x1f' function='0x7'/>")], ["pci/10000:e1:1f.7"]),
    ([BY_ADDRESS], ["usb-address/1.4"]),
    ([BY_ID], ["usb-id/0781:5581"]),
    ([RESOLVED], ["usb-address/1.6"]),
    ([hostdev("usb", "<address bus='2' port='1.4'/>")], ["usb-port/2-1.4"]),
    ([hostdev("mdev", f"<address uuid='{UUID}'/>")], [f"mdev/{UUID}"]),
    ([VIRTUAL_FUNCTION], ["pci/0000:02:10.0"]),
    ([NVME, NVME_BELOW], ["pci/0000:05:00.0", "pci/0000:06:00.0"]),
    # Nothing that is the host's, or nothing of it as a whole.
    ([hostdev("scsi", "<adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/>")], []),
    ([hostdev("scsi_host", "").replace("<source>", "<source protocol='vhost' wwpn='naa.5123456789abcde0'>")], []),
    (["<hostdev mode='capabilities' type='misc'><source><char>/dev/input/event3</char></source></hostdev>"], []),
    (["<interface type='network'><source network='vfs'/></interface>"], []),
    (["<interface type='direct'><source dev='eth0' mode='vepa'/></interface>"], []),
    (["<redirdev bus='usb' type='spicevmc'/>"], []),
    (["<disk type='block'><source dev='/dev/nvme0n1'/></disk>"], []),
]


@pytest.mark.parametrize(("devices", "words"), CASES)
def test_devices_have_the_words_that_domains_use(devices: Sequence[str], words: Sequence[str]) -> None:
    """Each kind of host device is told by the word for it, in one spelling; what guests see of it is nobody's word."""
    halted = read_domain("qemu", "running", "halted", domain_xml(*devices))
    assert halted.uses == tuple(Use(word, "configured") for word in words)
    running = read_domain("qemu", "running", "halted", domain_xml(*devices, domid=3))
    assert running.uses == tuple(Use(word, "attached") for word in words)
    assert all(parse_device_word(word) == word for word in words)


def test_a_domain_is_described_as_it_is_now() -> None:
    """Memory is what it has now, in bytes, beside what it may have; CPUs those that are plugged in."""
    seen = read_domain("qemu", "paused", "halted", domain_xml(GPU, domid=7), domain_xml(BY_ID))
    assert seen.domain == DomainDescription(
        key=DomainKey(f"qemu/{UUID}"), name="web1", domid=7, state="paused", memory_bytes=32 * MIB,
        max_memory_bytes=64 * MIB, vcpus=2, kind="kvm",
    )  # fmt: skip
    assert seen.uses == (Use("pci/0000:03:00.1", "attached"), Use("usb-id/0781:5581", "configured"))


def test_what_it_has_and_what_it_will_ask_for_are_two_facts() -> None:
    """A device that libvirt found by its kind is attached by its address; one that was taken away stays configured."""
    seen = read_domain("qemu", "running", "halted", domain_xml(RESOLVED, domid=7), domain_xml(BY_ID, GPU))
    assert seen.uses == (
        Use("pci/0000:03:00.1", "configured"),
        Use("usb-address/1.6", "attached"),
        Use("usb-id/0781:5581", "configured"),
    )


def test_an_optional_device_that_was_not_there_is_not_attached() -> None:
    """libvirt starts a domain without it, and marks it as missing."""
    missing = hostdev("usb", "<vendor id='0x0781'/><product id='0x5581'/>", " missing='yes'")
    assert read_domain("qemu", "running", "halted", domain_xml(missing, domid=7)).uses == ()


def test_the_state_goes_with_the_number() -> None:
    """A domain whose XML shows no incarnation is halted, whatever was heard of its state just before."""
    seen = read_domain("qemu", "running", "suspended", domain_xml())
    assert (seen.domain.domid, seen.domain.state) == (-1, "suspended")


@pytest.mark.parametrize(
    ("kind", "os_kind", "told"),
    [
        ("xen", "xen", "pv"), ("xen", "linux", "pv"), ("xen", "hvm", "hvm"), ("xen", "xenpvh", "pvh"),
        ("qemu", "hvm", "qemu"), ("lxc", "exe", "lxc"),
    ],
)  # fmt: skip
def test_how_it_is_virtualised(kind: str, os_kind: str, told: str) -> None:
    """Xen's domains are told as Xen's own tools tell them, all others by libvirt's word."""
    assert read_domain("xen", "running", "halted", domain_xml(kind=kind, os_kind=os_kind)).domain.kind == told


@pytest.mark.parametrize(
    ("xml", "field"),
    [
        ("", "domain"),
        ("<domain><name>x", "domain"),
        ("<network/>", "domain"),
        ("<domain><name>x</name></domain>", "uuid"),
        (domain_xml().replace(UUID, "x"), "domain"),
        (domain_xml().replace("65536", "much"), "memory"),
        (domain_xml().replace("'KiB'>65536", "'bushel'>65536"), "memory"),
        (domain_xml(hostdev("pci", "")), "device"),
        (domain_xml(GPU.replace("0x03", "0x1ff")), "device"),
        (domain_xml(hostdev("usb", "<vendor id='0x0781'/>")), "device"),
        (domain_xml(hostdev("mdev", "<address uuid='1'/>")), "uuid"),
    ],
)
def test_what_cannot_be_read_is_named(xml: str, field: str) -> None:
    """Nothing is guessed: a domain with a device that cannot be told is refused, and the error says where."""
    with pytest.raises(InvalidInputError) as caught:
        read_domain("qemu", "running", "halted", xml)
    assert caught.value.field == field


WHOLE = domain_xml(*(device for devices, _ in CASES for device in devices), domid=5)


@given(st.data())
def test_damaged_xml_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever is cut from, put into or changed in the XML: it is a domain, or an `InvalidInputError`."""
    xml = WHOLE
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(xml)))
        end = data.draw(st.integers(start, min(len(xml), start + 40)))
        put = data.draw(
            st.sampled_from(["", "<", "/>", "'", "-1", "0x", "99999999999999999999", "&lt;", "\x00", "<source>"])
        )
        xml = xml[:start] + put + xml[end:]
    try:
        seen = read_domain("qemu", "running", "halted", xml)
    except InvalidInputError:
        return
    assert all(parse_device_word(use.device) == use.device for use in seen.uses)


@given(st.text(max_size=40), st.sampled_from(re.findall(r"'([^']+)'", WHOLE)))
def test_attributes_may_hold_anything(text: str, attribute: str) -> None:
    """A value that makes no sense is refused, not passed on."""
    xml = WHOLE.replace(f"'{attribute}'", "'" + "".join(c for c in text if c.isalnum() or c in "-.: ") + "'")
    try:
        seen = read_domain("qemu", "running", "halted", xml)
    except InvalidInputError:
        return
    assert all(parse_device_word(use.device) == use.device for use in seen.uses)
