"""Devices as trees: as virsh draws them, and as tables show them."""

import msgspec

from leasehold.events.views import DeviceView
from leasehold.services.nodedev.tree import tree, tree_lines
from tests.nodedev.machine import everything, views_of
from tests.past_cli.sources import device

TREE = """\
computer
  |
  +- net_lo
  +- pci_a
  |   |
  |   +- net_eth0
  |   +- scsi_host1
  |       |
  |       +- scsi_target1_0_0
  |
  +- pci_b
      |
      +- block_vda

"""


def named(name: str, parent_name: str) -> DeviceView:
    return msgspec.structs.replace(device(1), name=name, parent_name=parent_name)


PARENTS = {
    "pci_b": "computer",
    "net_lo": "computer",
    "computer": "",
    "scsi_target1_0_0": "scsi_host1",
    "scsi_host1": "pci_a",
    "net_eth0": "pci_a",
    "pci_a": "computer",
    "block_vda": "pci_b",
}


def drawn(parents: dict[str, str]) -> str:
    """The tree, without the blanks at the ends of lines."""
    return "".join(f"{line.rstrip()}\n" for line in tree_lines(named(*each) for each in parents.items()))


def test_it_is_drawn_as_virsh_draws_it() -> None:
    """By name below `computer`, whatever order the devices come in."""
    assert drawn(PARENTS) == drawn(dict(sorted(PARENTS.items())))
    assert [line for line in drawn(PARENTS).splitlines() if line.strip(" |")] == [
        line for line in TREE.splitlines() if line.strip(" |")
    ]


def test_what_has_no_parent_there_stands_at_the_top() -> None:
    """Of a filtered list nothing is left out, nor where agents name parents in a circle."""
    some = {"net_eth0": "pci_a", "block_vda": "pci_b", "scsi_host1": "pci_a", "scsi_target1_0_0": "scsi_host1"}
    circle = {"a": "b", "b": "c", "c": "a"}
    for parents in (some, circle, {"a": "a"}):
        assert sorted(line.split()[-1] for line in drawn(parents).splitlines() if line.strip(" |")) == sorted(parents)


def test_a_long_line_of_devices_is_drawn() -> None:
    """However deep agents say that devices stand."""
    deep = {f"d{number}": f"d{number - 1}" for number in range(1_500)}
    assert sum("d1499" in line for line in drawn(deep).splitlines()) == 1


def test_tables_show_all_below_the_computer() -> None:
    """Where the computer is known everything stands below it, each device once."""
    rows = views_of(everything())
    shown = list(tree(rows))
    assert (shown[0][0].name, shown[0][1]) == ("computer", 0)
    assert [depth for _, depth in shown[1:] if depth == 0] == []
    assert len(shown) == len(rows)
    depths = {row.name: depth for row, depth in shown}
    assert depths["scsi_generic_sg0"] == 5
