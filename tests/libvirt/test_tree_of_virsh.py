"""Trees as virsh draws them: of names and parents from a real libvirtd, and its own tree beside it."""

from xml.etree import ElementTree as ET

import msgspec
import pytest

from leasehold.events.views import DeviceView
from leasehold.services.nodedev.tree import tree_lines
from tests.libvirt.looking import NAMES
from tests.libvirt.test_beside_libvirt import looked_at
from tests.past_cli.sources import device


def view(xml: str) -> DeviceView:
    """A device with the name and parent that libvirt says."""
    told = ET.fromstring(xml)
    return msgspec.structs.replace(
        device(1), name=told.findtext("name") or "", parent_name=told.findtext("parent") or ""
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_virshs_to_the_blank(name: str) -> None:
    """Of the same devices ours is the same text as `virsh nodedev-list --tree`."""
    look = looked_at(name)
    drawn = "".join(f"{line}\n" for line in tree_lines(map(view, look.theirs.values())))
    assert drawn.rstrip("\n") == look.tree.rstrip("\n")
