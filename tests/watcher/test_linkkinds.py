"""Of what kind network interfaces are: from rtnetlink's words, and from a real kernel."""

import errno
import json
import struct
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events.capabilities import Net, Vlan
from leasehold.events.errors import UnavailableError
from leasehold.services.watcher import linkkinds
from leasehold.services.watcher.linkkinds import LinkKind, kinds_in, link_kinds
from leasehold.services.watcher.picture import take_picture
from leasehold.services.watcher.sysfs import THIS_MACHINE
from tests.support.netns import network_of
from tests.watcher.trees import Tree


def attribute(kind: int, value: bytes) -> bytes:
    """A netlink attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(index: int, *attributes: bytes, kind: int = linkkinds.RTM_NEWLINK) -> bytes:
    """A message about an interface."""
    body = struct.pack("=BxHiII", 0, 1, index, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body


def flagged(block: bytes) -> bytes:
    """With the mark of an interrupted dump on its first message."""
    length, kind, flags = struct.unpack_from("=IHH", block)
    return struct.pack("=IHH", length, kind, flags | linkkinds.NLM_F_DUMP_INTR) + block[8:]


def named(name: str) -> bytes:
    return attribute(linkkinds.IFLA_IFNAME, name.encode() + b"\0")


def info(kind: str, *data: bytes) -> bytes:
    """What sort of interface it is; nested attributes are marked as such."""
    told = attribute(linkkinds.IFLA_INFO_KIND, kind.encode()) + attribute(2 | 0x8000, b"".join(data))
    return attribute(linkkinds.IFLA_LINKINFO | 0x8000, told)


def vlan(number: int, protocol: bytes) -> bytes:
    return info("vlan", attribute(1, number.to_bytes(2, "little")), attribute(2, bytes(8)), attribute(5, protocol))


def on(index: int) -> bytes:
    return attribute(linkkinds.IFLA_LINK, index.to_bytes(4, "little"))


def test_vlans_by_what_the_kernel_says() -> None:
    """Id, protocol and the interface below, though that is told later; not one of another namespace."""
    block = b"".join(
        (
            message(7, named("eth0.10"), on(2), vlan(10, b"\x81\x00")),
            message(8, named("eth0.20"), on(2), vlan(4094, b"\x88\xa8")),
            message(2, named("eth0"), attribute(99, b"padding")),
            message(9, named("far"), on(2), attribute(linkkinds.IFLA_LINK_NETNSID, bytes(4)), info("veth")),
            message(5, named("not a link"), kind=24),
            message(0, kind=linkkinds.NLMSG_DONE),
        )
    )
    assert kinds_in(block) == {
        "eth0.10": LinkKind(kind="vlan", lower="eth0", vlan_id=10, vlan_protocol="802.1Q"),
        "eth0.20": LinkKind(kind="vlan", lower="eth0", vlan_id=4094, vlan_protocol="802.1ad"),
        "eth0": LinkKind(),
        "far": LinkKind(kind="veth"),
    }


def test_a_vlan_in_the_picture(tmp_path: Path) -> None:
    """What the kernel says becomes the capability, below by key."""
    tree = Tree(tmp_path)
    tree.pci("pci0000:00/0000:00:01.0")
    tree.net("pci0000:00/0000:00:01.0/net/eth0")
    tree.net("virtual/net/eth0.10", lower=("eth0",))
    links = {"eth0.10": LinkKind(kind="vlan", lower="eth0", vlan_id=10, vlan_protocol="802.1ad")}
    found = {str(key): device.capability for key, device in take_picture(tree.root, links=links).items()}
    capability = found["virtual/net/eth0.10"]
    assert isinstance(capability, Net)
    assert capability.device_type == "vlan"
    assert capability.kind == Vlan(id=10, lower="pci/0000:00:01.0/net/0", protocol="802.1ad")


@given(cut=st.integers(0, 400), noise=st.binary(max_size=64))
def test_a_broken_message_ends_nothing(cut: int, noise: bytes) -> None:
    """Cut anywhere, with noise behind: what stands whole before the cut is read, and there is no error."""
    messages = [message(7, named("eth0.10"), on(2), vlan(10, b"\x81\x00")), message(2, named("eth0"))]
    block = b"".join(messages)
    names = ["eth0.10", "eth0"]
    whole = [name for at, name in enumerate(names, 1) if len(b"".join(messages[:at])) <= cut]
    assert set(whole) <= kinds_in(block[:cut] + noise).keys()
    kinds_in(noise)


def test_every_interface_of_this_machine_is_told() -> None:
    """As many as sysfs has, in the same namespace."""

    def listed() -> set[str]:
        return {path.name for path in Path("/sys/class/net").iterdir() if path.is_symlink()}

    for _ in range(10):  # somebody may make some meanwhile
        before, found, after = listed(), set(link_kinds(THIS_MACHINE)), listed()
        if before == after:
            assert found == before
            return
    pytest.fail("interfaces come and go all the time")


def test_a_kernel_that_may_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of any interface, at any look, and the look goes on."""
    refused = Mock(side_effect=PermissionError(errno.EPERM, "no"))
    monkeypatch.setattr(linkkinds, "_all_links", refused)
    assert link_kinds(THIS_MACHINE) == {}


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(errno.EMFILE, "too many")])
def test_a_kernel_that_does_not_answer_now(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """There is no look: without an answer every bridge would seem to be none, and a moment later one again."""
    monkeypatch.setattr(linkkinds, "_all_links", Mock(side_effect=error))
    with pytest.raises(UnavailableError, match="does not tell its links now"):
        take_picture(THIS_MACHINE)


def test_links_that_come_and_go_while_the_kernel_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it was interrupted, and has passed over one that was there: it is asked again, a few times."""
    links = [message(number, named(f"v{number}")) for number in range(3)]
    told = [flagged(links[0] + links[2]), flagged(links[0] + links[1]), links[0] + links[1], links[0]]
    monkeypatch.setattr(linkkinds, "_all_links", Mock(side_effect=told))
    assert set(link_kinds(THIS_MACHINE)) == {"v0", "v1", "v2"}
    endless = Mock(side_effect=lambda *_: flagged(links[0]))
    monkeypatch.setattr(linkkinds, "_all_links", endless)
    assert set(link_kinds(THIS_MACHINE)) == {"v0"}
    assert endless.call_count == linkkinds.DUMPS_MAX


PICTURE = """
import json, sys, msgspec
from leasehold.services.watcher.picture import take_picture
sys.stdout.buffer.write(msgspec.json.encode([each for each in take_picture().values() if each.kind == "net"]))
"""


def test_real_bridges_veths_and_what_lies_on_them() -> None:
    """Made by a real kernel in a namespace: kinds, masters and a bridge's own words, as ip(8) gave them out."""
    with network_of(1) as network:
        (machine,) = network.machines
        machine.do("mount", "-t", "sysfs", "sysfs", "/sys")
        for words in (
            "add v0 type veth peer name v1",
            "add m0 link v1 type macvlan",
            "set v0 master switch",
            "set switch type bridge stp_state 1",
        ):
            machine.do("ip", "link", *words.split())
        told = json.loads(machine.do(sys.executable, "-c", PICTURE))
        spoken = json.loads(machine.do("ip", "-j", "-d", "link", "show"))
    found = {each["capability"]["interface"]: each for each in told}
    assert set(found) == {each["ifname"] for each in spoken}
    for each in spoken:
        capability = found[each["ifname"]]["capability"]
        assert capability.get("device_type", "") == each.get("linkinfo", {}).get("info_kind", "")
        assert capability["address"] == each["address"]
        master = each.get("master", "")
        assert capability.get("master", "") == (f"virtual/net/{master}" if master else "")
    bridge = found["switch"]["capability"]["kind"]
    assert (bridge["type"], bridge["stp"]) == ("bridge", True)
    (spoken_id,) = (each["linkinfo"]["info_data"]["bridge_id"] for each in spoken if each["ifname"] == "switch")
    priority, _, address = spoken_id.partition(".")
    assert bridge["bridge_id"] == f"{priority}.{''.join(part.zfill(2) for part in address.split(':'))}"
    assert found["v0"]["key"] == "virtual/net/v0"
