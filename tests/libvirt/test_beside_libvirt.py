"""Our node devices against those of a real libvirtd that looks at the same machine."""

import functools
from pathlib import Path

import pytest

from leasehold.events.capabilities import Net, Vdpa
from leasehold.events.views import DeviceView
from leasehold.projections.nodedev import capability_type
from tests.libvirt.comparing import LISTED, Difference, differences, facts_of
from tests.libvirt.explained import EXPLAINED, explanation_of
from tests.libvirt.looking import NAMES, THIS, look_at
from tests.support.nodedev_schema import invalid
from tests.support.tree import ROOT

looked_at = functools.cache(look_at)
everywhere = pytest.mark.parametrize("name", NAMES)


def has_a_word(view: DeviceView) -> bool:
    """Whether libvirt's schema has a word for the device."""
    capability = view.capability
    return not (
        view.kind in ("other", "mdev_types")
        or (isinstance(capability, Net) and capability.kind is not None)
        or (isinstance(capability, Vdpa) and not capability.chardev)
    )


@everywhere
def test_all_that_differs_is_explained(name: str) -> None:
    """Which devices there are, their names, parents and every field of their XML: no difference without a reason."""
    look = looked_at(name)
    print(look.tree)
    assert len(look.theirs) > 5, "libvirt lists next to nothing"
    assert [str(each) for each in look.differences() if explanation_of(each) is None] == []


@everywhere
def test_names_and_parents_are_libvirts(name: str) -> None:
    """Each device of `virsh nodedev-list --tree` is here with its name and parent, but for those that it mixes up."""
    look = looked_at(name)
    parents = {each: "".join(facts_of(xml).get("parent", ())) for each, xml in look.theirs.items()}
    assert [each for each, parent in parents.items() if not parent] == ["computer"]
    assert parents.keys() - look.ours.keys() == set()
    ours = {each: look.ours[each].parent_name for each in parents}
    # The device of an interface that libvirt dropped, and the one of two devices with one name that it lost.
    mixed_up = {"usb_1_7_1_0": "usb_usb1", "usb_1_4_1_1": "usb_1_4"} if name == "usb" else {}
    assert {each: parent for each, parent in parents.items() if parent != ours[each]} == mixed_up


@everywhere
def test_capabilities_are_libvirts(name: str) -> None:
    """For each of its words `virsh nodedev-list --cap` lists those devices that have the capability here."""
    look = looked_at(name)
    paths = {each: "".join(facts_of(xml).get("path", ())) for each, xml in look.theirs.items()}
    assert sum(map(len, look.by_capability.values())) >= len(paths)
    for word, listed in look.by_capability.items():
        having = {view.sysfs_path for view in look.ours.values() if capability_type(word) in view.capabilities}
        assert {paths[each] for each in listed} == having & set(paths.values()), word


@everywhere
def test_every_xml_validates(name: str, tmp_path: Path) -> None:
    """What the schema has a word for satisfies it; libvirt's own does not where it describes a lone mdev parent."""
    look = looked_at(name)
    ours = {each: xml for each, xml in look.our_xml.items() if has_a_word(look.ours[each])}
    assert invalid(tmp_path, ours) == set()
    assert invalid(tmp_path, look.theirs) <= {"mtty_mtty"}


def test_every_explanation_is_needed() -> None:
    """No reason stands in the list that explains nothing on any imitated machine."""
    found = [difference for name in NAMES if name != THIS for difference in looked_at(name).differences()]
    used = {why.what for why in map(explanation_of, found) if why is not None}
    assert [each.what for each in EXPLAINED if each.what not in used] == []


def test_the_document_has_the_same_table() -> None:
    """docs/nodedev.md lists exactly these reasons, in this order."""
    text = (ROOT / "docs/nodedev.md").read_text(encoding="utf-8")
    _, found, rest = text.partition("| what | libvirt 9.0 | here |\n|---|---|---|\n")
    assert found
    assert rest.partition("\n\n")[0].splitlines() == [each.row for each in EXPLAINED]


def test_what_differs_is_found() -> None:
    """A device that one side lacks, a name, a parent, a value and an attribute: each is told."""
    theirs = {"a": "<device><name>a</name><path>/sys/a</path><parent>computer</parent></device>"}
    ours = {"b": "<device><name>b</name><path>/sys/b</path><parent>computer</parent></device>"}
    said = [(each.path, each.field, each.theirs, each.ours) for each in differences("m", theirs, ours)]
    assert said == [("/sys/a", LISTED, ("a",), ()), ("/sys/b", LISTED, (), ("b",))]
    told = (
        "<device><name>a2</name><path>/sys/a</path><parent>x</parent><capability type='net'>"
        "<link speed='1' state='up'/><capability type='80203'/></capability></device>"
    )
    assert [each.field for each in differences("m", theirs, {"a2": told})] == [
        "80203", "capability", "link@speed", "link@state", "name", "parent",
    ]  # fmt: skip
    assert list(differences("m", theirs, theirs)) == []


def test_a_reason_covers_nothing_else() -> None:
    """A size that is wrong otherwise than by the size of sectors is not explained, nor another device's."""
    path = "/sys/devices/pci0000:00/0000:00:02.0/nvme/nvme1/nvme1n1"
    assert explanation_of(Difference("m", path, "size", ("8192",), ("1024",))) is not None
    for theirs, where in ((("8193",), path), ((), path), (("8192",), "/sys/devices/pci0000:00/0000:00:02.0")):
        assert explanation_of(Difference("m", where, "size", theirs, ("1024",))) is None
