"""A reset hits nobody else: a function's own, or that of its bus when everything on it is ours."""

import errno
import os

import pytest

from leasehold.projections.handover import Back, NotBack
from tests.binder.bench import Bench
from tests.binder.kernel import GPU, GPU_SOUND, NIC, pci


@pytest.mark.parametrize(
    ("ways", "told"),
    [("flr pm", "flr"), ("af_flr", "af_flr"), ("pm bus", "pm"), ("acpi", "device_specific"), ("bus", "bus")],
)
def test_the_kernels_first_way_is_told(bench: Bench, ways: str, told: str) -> None:
    """In its order, which an administrator may have set."""
    bench.kernel.tree.write(f"pci0000:00/0000:00:1c.0/{NIC}", "reset_method", ways)
    assert bench.ready(pci(NIC)).devices[0].reset == told


def test_a_bus_is_reset_only_when_all_on_it_are_handed_over(bench: Bench) -> None:
    """Both functions of a card go together: one reset of their bus, and no second one."""
    assert [each.reset for each in bench.ready(pci(GPU), pci(GPU_SOUND)).devices] == ["bus", "bus"]
    assert sorted(bench.kernel.pci.resets) == [(GPU, "bus"), (GPU_SOUND, "bus")]
    assert bench.kernel.told.count("reset_subordinate 1") == 1


def test_a_neighbour_that_is_not_ours_is_never_hit(bench: Bench) -> None:
    """The sound function is unbound, but nobody's: no reset of its bus, and that is told."""
    bench.kernel.pci.unbind("snd_hda_intel", GPU_SOUND)
    assert bench.ready(pci(GPU)).devices[0].reset == ""
    assert not bench.kernel.pci.resets
    assert bench.take_back(pci(GPU)) == Back("nouveau", "")
    assert not bench.kernel.pci.resets


def test_a_neighbour_that_is_back_with_the_host_is_not_hit(bench: Bench) -> None:
    """Given back one by one, the first resets the bus for both; the second does not reset it under the first."""
    bench.ready(pci(GPU), pci(GPU_SOUND))
    ours = (pci(GPU), pci(GPU_SOUND))
    bench.kernel.pci.resets.clear()
    assert bench.take_back(pci(GPU), ours=ours) == Back("nouveau", "bus")
    assert sorted(bench.kernel.pci.resets) == [(GPU, "bus"), (GPU_SOUND, "bus")]
    bench.kernel.pci.resets.clear()
    assert bench.take_back(pci(GPU_SOUND), ours=ours) == Back("snd_hda_intel", "")
    assert not bench.kernel.pci.resets


def test_a_neighbour_that_somebody_uses_is_not_hit(bench: Bench) -> None:
    """Ours it is, but a process has it open: its bus is not reset."""
    ours = (pci(GPU), pci(GPU_SOUND))
    for link in bench.kernel.root.sys.glob("kernel/iommu_groups/17/devices/*"):
        link.unlink()
    for address, group in ((GPU, 40), (GPU_SOUND, 41)):
        members = bench.kernel.root.sys / f"kernel/iommu_groups/{group}"
        (members / "devices").mkdir(parents=True)
        bench.kernel.tree.link(members / "devices" / address, bench.kernel.pci.folder(address))
        bench.kernel.tree.link(bench.kernel.pci.folder(address) / "iommu_group", members)
    bench.ready(pci(GPU), pci(GPU_SOUND))
    bench.kernel.pci.hold(GPU_SOUND, 9)
    bench.kernel.pci.resets.clear()
    assert bench.take_back(pci(GPU), ours=ours) == Back("nouveau", "")
    assert not bench.kernel.pci.resets


def test_where_the_bridge_has_no_such_file_the_stubs_own_is_told(bench: Bench) -> None:
    """Before Linux 6.14 no bridge can be told: vfio resets the bus by itself when its last user closes it."""
    bridge = bench.kernel.pci.folder("0000:00:1c.2")
    (bridge / "reset_subordinate").unlink()
    (bridge / "subordinate_bus_number").write_text("3\n")
    assert [each.reset for each in bench.ready(pci(GPU), pci(GPU_SOUND)).devices] == ["stub", "stub"]


def test_a_way_that_fails_is_no_reset(bench: Bench) -> None:
    """The kernel has a way, and it fails: the device is not handed over dirty."""
    before = bench.traces()
    bench.kernel.refuse["reset"] = errno.ETIMEDOUT
    assert bench.failed(pci(NIC)).reason == f"the reset of {NIC} failed: {os.strerror(errno.ETIMEDOUT)}"
    assert bench.traces() == before


def test_an_order_hears_why_there_is_no_reset(bench: Bench) -> None:
    """An administrator's reset of one of two functions: refused, with what would help; with both it goes."""
    bench.ready(pci(GPU), pci(GPU_SOUND))
    bench.kernel.pci.resets.clear()
    refused = bench.machine.reset(pci(GPU))
    assert isinstance(refused, NotBack)
    assert "would hit others" in refused.reason
    assert not bench.kernel.pci.resets
    assert getattr(bench.machine.reset(pci(GPU), ours=(pci(GPU_SOUND),)), "reset", "") == "bus"
