"""libvirt's hook, run as libvirt runs it, beside doors that answer and doors that do not."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from leasehold.events.domains import parse_device_word
from leasehold.services.poller.domainxml import read_domain
from tests.hooks import doors
from tests.hooks.doors import OK, REFUSED, a_door
from tests.hooks.stage import PCI, UUID, Stage, domain_xml
from tests.support.tree import ROOT

DEVICES: Final = {
    "pci": (PCI, ["pci/0000:03:00.0"]),
    "a function of another domain": (
        (
            "<hostdev mode='subsystem' type='pci'><source>"
            "<address domain='0x10000' bus='0x3' slot='0x1f' function='0x7'/></source></hostdev>"
        ),
        ["pci/10000:03:1f.7"],
    ),
    "an interface": (
        (
            "<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:01'/><source>"
            "<address type='pci' domain='0x0000' bus='0x03' slot='0x10' function='0x2'/></source></interface>"
        ),
        ["pci/0000:03:10.2"],
    ),
    "usb by place": (
        (
            "<hostdev mode='subsystem' type='usb'><source><vendor id='0x0529'/><product id='0x0001'/>"
            "<address bus='1' device='4'/></source></hostdev>"
        ),
        ["usb-address/1.4"],
    ),
    "usb by port": (
        "<hostdev mode='subsystem' type='usb'><source><address bus='1' port='1.4'/></source></hostdev>",
        ["usb-port/1-1.4"],
    ),
    "usb by what it is": (
        "<hostdev mode='subsystem' type='usb'><source><vendor id='0x0529'/><product id='0x0001'/></source></hostdev>",
        ["usb-id/0529:0001"],
    ),
    "mdev": (
        (
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>"
            "<address uuid='83C32df7-d52e-4ec1-9668-1f3c7e4df107'/></source></hostdev>"
        ),
        ["mdev/83c32df7-d52e-4ec1-9668-1f3c7e4df107"],
    ),
    "nvme": (
        (
            "<disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'>"
            "<address domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></source><target dev='vde' bus='virtio'/>"
            "</disk>"
        ),
        ["pci/0000:04:00.0"],
    ),
    "two, and what is none": (
        (
            f"{PCI}{PCI}<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/>"
            "<address bus='0' target='0' unit='0'/></source></hostdev><hostdev mode='capabilities' type='misc'><source>"
            "<char>/dev/input/event3</char></source></hostdev>"
            "<interface type='bridge'><source bridge='br0'/></interface>"
            "<disk type='file'><source file='/x'/><address type='pci' domain='0' bus='0' slot='7' function='0'/></disk>"
        ),
        ["pci/0000:03:00.0"],
    ),
}


@pytest.mark.parametrize("which", DEVICES)
def test_what_is_asked(stage: Stage, which: str) -> None:
    """All host devices of the domain are asked for at once, in the words of the ledger, which the poller would use for
    the same domain.
    """
    devices, words = DEVICES[which]
    with a_door(stage.door) as door:
        ended = stage.prepare(domain_xml(devices))
        assert (ended.code, ended.err, ended.out) == (0, "", "")
    asked = {"op": "start", "hypervisor": "qemu", "uuid": UUID, "name": "web", "devices": words}
    assert door.asked == [asked]
    assert [parse_device_word(word) for word in words] == words
    seen = read_domain("qemu", "running", "halted", domain_xml(devices))
    assert sorted(use.device for use in seen.uses) == words


def test_a_refusal_names_the_holder(stage: Stage) -> None:
    """The domain does not start, and whoever started it reads who has the device and what to do."""
    with a_door(stage.door) as door:
        door.answer = dict(REFUSED)
        ended = stage.prepare(domain_xml(PCI))
    assert ended.code == 1
    assert ended.err == (
        "leasehold: pci/0000:03:00.0 is leased to mary (lease 773) until 2026-11-21T19:00:00Z. "
        "wait for it, or ask mary\n"
    )


@pytest.mark.parametrize("setting", ["closed", "open"])
def test_a_refusal_is_no_failure(stage: Stage, setting: str) -> None:
    """However failures are taken, a refusal stays one."""
    stage.set(on_failure=setting)
    with a_door(stage.door) as door:
        door.answer = dict(REFUSED)
        assert stage.prepare(domain_xml(PCI)).code == 1


def test_the_end_is_told_once(stage: Stage) -> None:
    """What was let start is told to have ended; what was refused, or had no devices, is not: libvirt calls the hook for
    the end of those, too.
    """
    with a_door(stage.door) as door:
        assert stage.prepare(domain_xml()).code == 0
        assert stage.release(domain_xml()).code == 0
        door.answer = dict(REFUSED)
        assert stage.prepare(domain_xml(PCI)).code == 1
        assert stage.release(domain_xml(PCI)).code == 0
        assert [each["op"] for each in door.asked] == ["start"]
        door.answer = dict(OK)
        assert stage.prepare(domain_xml(PCI)).code == 0
        assert stage.release(domain_xml(PCI)).code == 0
        assert stage.release(domain_xml(PCI)).code == 0
    assert [each["op"] for each in door.asked] == ["start", "start", "stop"]
    assert door.asked[-1] == {"op": "stop", "hypervisor": "qemu", "uuid": UUID, "name": "web", "devices": []}


def test_a_reboot_is_no_end(stage: Stage) -> None:
    """libvirt's drivers for Xen and for containers release a domain that reboots, and prepare it at once: were that
    told as an end, it would find its lease gone.
    """
    with a_door(stage.door) as door:
        for operation in ("prepare", "release", "prepare"):
            assert stage.run("libxl", "web", operation, "begin", "-", stdin=domain_xml(PCI)).code == 0
    assert [each["op"] for each in door.asked] == ["start", "start"]


def test_leases_are_kept_if_set(stage: Stage) -> None:
    """With `on_stop = keep` the end of a domain is nobody's business but its poller's."""
    stage.set(on_stop="keep")
    with a_door(stage.door) as door:
        assert stage.prepare(domain_xml(PCI)).code == 0
        assert stage.release(domain_xml(PCI)).code == 0
    assert [each["op"] for each in door.asked] == ["start"]


def test_an_end_that_cannot_be_told_harms_nobody(stage: Stage) -> None:
    """It is noted, and libvirt goes on."""
    with a_door(stage.door):
        assert stage.prepare(domain_xml(PCI)).code == 0
    ended = stage.release(domain_xml(PCI))
    assert ended.code == 0
    assert "web has let go, which could not be told: there is no binder at" in ended.err


@pytest.mark.parametrize("operation", ["start", "started", "stopped", "migrate", "restore", "reconnect", "attach", "x"])
def test_all_other_moments_are_left_alone(stage: Stage, operation: str) -> None:
    """Nothing is asked and nothing is said at them, whatever is wrong: what is said might be taken for XML."""
    stage.settings.write_text("rubbish")
    ended = stage.run("qemu", "web", operation, "begin", "-", stdin="<domain/>")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_a_domain_without_host_devices_needs_no_binder(stage: Stage) -> None:
    """Where there is none, it starts all the same."""
    ended = stage.prepare(domain_xml("<disk type='file'><source file='/x'/></disk>"))
    assert (ended.code, ended.err) == (0, "")


def test_whose_hook_it_is(stage: Stage) -> None:
    """libvirt's driver for Xen says `xen`, a file in `qemu.d` says `qemu`; under any other name it does nothing."""
    folder = stage.folder / "qemu.d"
    folder.mkdir()
    (folder / "50-leasehold").symlink_to((stage.folder / "qemu").resolve())
    (stage.folder / "other").symlink_to((stage.folder / "qemu").resolve())
    with a_door(stage.door) as door:
        for name in ("libxl", "qemu.d/50-leasehold"):
            assert stage.run(name, "web", "prepare", "begin", "-", stdin=domain_xml(PCI)).code == 0
        assert [each["hypervisor"] for each in door.asked] == ["xen", "qemu"]
    assert stage.run("other", "web", "prepare", "begin", "-", stdin=domain_xml(PCI)).code == 2


# --- where it cannot ask ----------------------------------------------------------------------------------------------

SILENT: Final[dict[str, tuple[Callable[..., object], str]]] = {
    "hangs": (doors.hangs, "there was no answer within 0.5 s"),
    "drips": (doors.drips, "there was no answer within 0.5 s"),
    "floods": (doors.floods, "the binder's answer has more than 65536 bytes"),
    "ends": (doors.says(b""), "ended without an answer"),
    "half": (doors.says(b'{"ok": true'), "ended without an answer"),
    "no JSON": (doors.says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "is no binder: b'HTTP/1.1 400"),
    "no object": (doors.says(b"[true]\n"), "is no binder"),
    "no verdict": (doors.says(b'{"ok": "yes"}\n'), "is no binder"),
    "a code that is none": (doors.says(b'{"ok": false, "code": []}\n'), "is no binder"),
    "too deep": (doors.says(b"[" * 60_000 + b"\n"), "is no binder"),
    "no text": (doors.says(b"\xff\xfe\x00\n"), "is no binder"),
    "cannot tell": (
        doors.says(b'{"ok": false, "code": "cut_off", "message": "the bus is silent"}\n'),
        "the binder cannot tell: the bus is silent",
    ),
}


@pytest.mark.parametrize("setting", ["closed", "open"])
@pytest.mark.parametrize("which", SILENT)
def test_a_door_that_does_not_answer(stage: Stage, which: str, setting: str) -> None:
    """Refused or let through, as it is set, soon, and said why; what was let through is told when it ends."""
    serve, why = SILENT[which]
    stage.set(on_failure=setting, timeout_s="0.5" if which in ("hangs", "drips") else "20")
    with a_door(stage.door, serve):
        ended = stage.prepare(domain_xml(PCI))
    print(f"{ended.took_s:.2f} s: {ended.err}")
    assert why in ended.err
    assert ended.took_s < 15
    assert ended.code == (1 if setting == "closed" else 0)
    assert ("refused, as on_failure is closed" in ended.err) == (setting == "closed")
    assert ("let through, as" in ended.err) == (setting == "open")
    assert (stage.state / UUID).exists() == (setting == "open")


@pytest.mark.parametrize("setting", ["closed", "open"])
@pytest.mark.parametrize("there", ["nothing", "a file", "nobody listens", "a folder", "a long path"])
def test_a_missing_door(stage: Stage, there: str, setting: str) -> None:
    """Whatever stands where the door should be: refused or let through, as it is set."""
    door = stage.door
    match there:
        case "a file":
            door.write_text("")
        case "nobody listens":
            with a_door(door):
                os.link(door, f"{door}.left")
            door = Path(f"{door}.left")
        case "a folder":
            door.mkdir()
        case "a long path":
            door = Path("/" + "x" * 300)
    stage.set(on_failure=setting, door=str(door))
    ended = stage.prepare(domain_xml(PCI))
    assert f"there is no binder at {door}" in ended.err
    assert ended.code == (1 if setting == "closed" else 0)


def test_a_standard_input_that_never_ends(stage: Stage) -> None:
    """Its time is bounded from its first moment on."""
    stage.set(timeout_s="0.5")
    reader, writer = os.pipe()
    try:
        os.write(writer, b"<domain>")
        ended = stage.prepare(reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert ended.code == 1
    assert "there was no answer within 0.5 s" in ended.err
    assert ended.took_s < 15


ENTITIES: Final = "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'>" + "".join(
    f"<!ENTITY {name} '{f'&{before};' * 10}'>" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
WRONG: Final = {
    "no XML": ("rubbish", "cannot be read"),
    "an unknown encoding": (domain_xml(PCI, before='<?xml version="1.0" encoding="x-none"?>'), "the hook fails"),
    "no place": (domain_xml("<interface type='hostdev'><source/></interface>"), "without 'address'"),
    "nothing": ("", "cannot be read"),
    "half": (domain_xml(PCI)[:-20], "cannot be read"),
    "of another": ("<network><name>x</name></network>", "is of a 'network', not of a domain"),
    "a bomb": (domain_xml(before=f"{ENTITIES}]>").replace("web", "&j;"), "has a DOCTYPE"),
    "another file": (domain_xml(before="<!DOCTYPE d SYSTEM 'file:///etc/passwd'>"), "has a DOCTYPE"),
    "no uuid": (domain_xml(PCI).replace(UUID, ""), "has no uuid"),
    "a path for a uuid": (domain_xml(PCI).replace(UUID, "../../etc/passwd"), "has no uuid"),
    "deep": (domain_xml("<a>" * 5_000 + "</a>" * 5_000), "is deeper than"),
    "no address": (domain_xml("<hostdev mode='subsystem' type='pci'/>"), "a pci device without 'address'"),
    "a bad number": (domain_xml(PCI.replace("0x03", "0xzz")), "a pci device without invalid literal"),
    "too many": (
        domain_xml("".join(PCI.replace("0x03", hex(bus)) for bus in range(256)) + PCI.replace("0x0000", "0x1")),
        "more than 256 host devices",
    ),
    "too large": (domain_xml("<x/>" * (5 << 20)), "more than 16777216 bytes"),
}


@pytest.mark.parametrize("which", WRONG)
def test_xml_that_is_none(stage: Stage, which: str) -> None:
    """What a domain has cannot be known: it is refused, with what is wrong."""
    xml, why = WRONG[which]
    with a_door(stage.door) as door:
        ended = stage.prepare(xml)
    print(f"{ended.took_s:.2f} s: {ended.err}")
    assert ended.code == 1
    assert why in ended.err
    assert door.asked == []


def test_ten_megabytes_of_xml(stage: Stage) -> None:
    """Large is not wrong: the device at its end is found, in time and in little memory."""
    metadata = "".join(f"<m:note xmlns:m='urn:x' n='{number}'>\n\n</m:note>" for number in range(220_000))
    xml = domain_xml(f"<x>{metadata}</x>{PCI}")
    assert len(xml) > 10_000_000
    with a_door(stage.door) as door:
        ended = stage.prepare(xml)
    print(f"{ended.took_s:.2f} s")
    assert ended.code == 0, ended.err
    assert [each["devices"] for each in door.asked] == [["pci/0000:03:00.0"]]


# --- settings ---------------------------------------------------------------------------------------------------------

UNSET: Final = {
    "[hooks]\non_failure = opne\n": "on_failure is 'opne'; it can be closed or open",
    "[hooks]\non_failure = open\ndoors = /x\n": "there is no setting 'doors'; there are door, on_failure",
    "[hooks]\non_failure = open\ntimeout_s = soon\n": "timeout_s is 'soon'; it can be up to 600",
    "[hooks]\non_failure = open\ntimeout_s = 0\n": "timeout_s is '0'; it can be up to 600",
    "[hooks]\non_failure = open\ntimeout_s = inf\n": "timeout_s is 'inf'; it can be up to 600",
    "on_failure = open\n": "cannot be read",
    "[hook]\non_failure = open\n": "there is no section [hook]; there is [hooks]",
    "[hooks]\ntimeout_s = 5\ntimeout_s = 6\n": "'timeout_s' in section 'hooks' already exists",
    "\xff\x00[hooks": "cannot be read",
}


@pytest.mark.parametrize("text", UNSET)
def test_settings_that_are_wrong_let_nothing_through(stage: Stage, text: str) -> None:
    """Who misspells a setting has not set it: the domain is refused, and the setting is named."""
    stage.settings.write_text(text)
    ended = stage.prepare(domain_xml(PCI))
    assert ended.code == 1
    assert str(stage.settings) in ended.err
    assert UNSET[text] in ended.err


def test_without_settings_it_is_closed(stage: Stage) -> None:
    """A file that is not there says nothing; the door is where binders have it, and what cannot be asked is refused."""
    stage.settings.unlink()
    begun_s = time.monotonic()
    ended = stage.prepare(domain_xml(PCI))
    assert ended.code == 1
    assert time.monotonic() - begun_s < 45
    assert re.search(r"there is no binder at /run/leasehold/\S+: .*; refused, as on_failure is closed", ended.err)


def test_the_settings_are_described() -> None:
    """README.md of the hooks has each setting with its default."""
    text = (ROOT / "deploy/hooks/asking.py").read_text(encoding="utf-8")
    defaults = re.findall(r'^    "(\w+)": "([^"]*)",$', text, re.MULTILINE)
    readme = (ROOT / "deploy/hooks/README.md").read_text(encoding="utf-8")
    assert len(defaults) == 6
    assert [name for name, value in defaults if f"| `{name}` | `{value}` |" not in readme] == []
