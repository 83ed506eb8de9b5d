"""What a card has set for a virtual function is what it has set for it again behind the lease."""

import errno

from leasehold.projections.handover import Back, NotBack
from tests.binder.bench import Bench
from tests.binder.kernel import NIC, PF, VF0, VF1, pci


def test_what_a_guest_had_set_is_set_back(bench: Bench) -> None:
    """MAC address, VLAN, trust, spoof check, link and rates stand as before, word by word, before its driver comes."""
    kernel = bench.kernel
    kernel.vfs[0] |= {"vlan_list": [{"vlan": 10, "qos": 3}], "rate": {"max_tx": 100, "min_tx": 10}}
    before = bench.traces()
    bench.ready(pci(VF0))
    network = bench.notes[pci(VF0)].network
    assert network is not None
    assert (network.mac, network.vlan, network.qos, network.rate_max) == ("02:00:00:00:02:10", 10, 3, 100)
    kernel.vfs[0] |= {
        "address": "52:54:00:00:00:01", "vlan_list": [{}], "trust": True, "spoofchk": False, "link_state": "disable",
        "rate": {"max_tx": 0, "min_tx": 0},
    }  # fmt: skip
    assert bench.take_back(pci(VF0)) == Back("igbvf", "flr")
    assert bench.traces() == before


def test_only_what_differs_is_set(bench: Bench) -> None:
    """A card that knows few words is told no others."""
    bench.ready(pci(VF0))
    bench.kernel.ran.clear()
    bench.kernel.vfs[0]["trust"] = True
    bench.take_back(pci(VF0))
    assert [each for each in bench.kernel.ran if " set " in each] == ["ip link set dev enp2s0 vf 0 trust off"]


def test_the_other_function_is_not_touched(bench: Bench) -> None:
    """Functions are told apart by the card's own links, not by counting."""
    bench.ready(pci(VF1))
    network = bench.notes[pci(VF1)].network
    assert network is not None
    assert (network.function, network.number, network.mac) == (pci(PF), 1, "02:00:00:00:02:11")


def test_an_address_that_was_never_set_is_not_taken_away(bench: Bench) -> None:
    """No card takes zeros as an address: what it has by then stays."""
    bench.kernel.vfs[0]["address"] = "00:00:00:00:00:00"
    bench.ready(pci(VF0))
    bench.kernel.vfs[0]["address"] = "52:54:00:00:00:01"
    assert bench.take_back(pci(VF0)) == Back("igbvf", "flr")
    assert bench.kernel.vfs[0]["address"] == "52:54:00:00:00:01"


def test_a_function_without_settings_is_not_asked(bench: Bench) -> None:
    """What is no virtual function has none."""
    bench.ready(pci(NIC))
    assert not bench.kernel.ran
    assert bench.notes[pci(NIC)].network is None


def test_what_cannot_be_saved_is_not_handed_over(bench: Bench) -> None:
    """Without `ip` nobody knows what to set again: nothing is written."""
    bench.kernel.broken["ip"] = OSError(errno.ENOENT, "No such file or directory")
    refused = bench.failed(pci(VF0))
    assert refused.reason == "what enp2s0 has set for it cannot be read: No such file or directory"
    assert not bench.kernel.told


def test_what_cannot_be_set_again_is_told(bench: Bench) -> None:
    """A VLAN that the card does not take back: the host's driver does not get the function with a guest's VLAN."""
    kernel = bench.kernel
    bench.ready(pci(VF0))
    kernel.vfs[0]["vlan_list"] = [{"vlan": 5, "qos": 0}]
    kernel.broken["ip link set"] = OSError(errno.EIO, "ip: RTNETLINK answers: Operation not permitted")
    stuck = bench.take_back(pci(VF0))
    assert isinstance(stuck, NotBack)
    assert stuck.reason.startswith("vlan 0 cannot be set for it at enp2s0 again: ip: RTNETLINK answers")
    assert kernel.driver(VF0) == ""
    kernel.broken.clear()
    assert bench.take_back(pci(VF0)) == Back("igbvf", "flr")


def test_functions_that_went_with_their_parent_are_given_back(bench: Bench) -> None:
    """The physical function was told to have none: a virtual one is gone even while it is handed over."""
    bench.ready(pci(VF0))
    bench.kernel.pci.write_device(PF, "sriov_numvfs", "0")
    assert bench.take_back(pci(VF0)) == Back("")


def test_functions_that_go_with_a_driver_come_again(bench: Bench) -> None:
    """A physical function's driver takes the virtual ones away when it goes: later there are as many again."""
    kernel = bench.kernel
    kernel.pci.functions_go = True
    before = bench.drivers()
    bench.ready(pci(PF))
    assert VF0 not in kernel.pci.addresses()
    assert bench.take_back(pci(PF)) == Back("igb", "flr")
    assert bench.drivers() == before
    assert kernel.told[-1] == "sriov_numvfs 2"


def test_functions_that_do_not_come_again_are_told(bench: Bench) -> None:
    """With the way out."""
    bench.kernel.pci.functions_go = True
    bench.ready(pci(PF))
    bench.kernel.refuse["sriov_numvfs"] = errno.ENOMEM
    stuck = bench.take_back(pci(PF))
    assert isinstance(stuck, NotBack)
    assert "sriov_numvfs: Cannot allocate memory" in stuck.reason
    assert stuck.help.startswith("write 2 to its sriov_numvfs")
    bench.kernel.refuse.clear()
    assert bench.take_back(pci(PF)) == Back("igb", "")
