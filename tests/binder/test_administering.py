"""What administrators have a machine do: detach, reattach, reset, look."""


import pytest

from leasehold.projections.handover import Back, Busy, NotBack, Ready
from tests.binder.bench import Bench
from tests.binder.kernel import GPU, GPU_SOUND, NIC, SATA, VF0, VF1, Kernel, pci


def test_detach_reattach_and_reset(bench: Bench) -> None:
    """As virsh's nodedev verbs: to the stub without a reset, back to what was there, and a reset alone."""
    before = bench.traces()
    (target,) = bench.targets(pci(NIC))
    outcome = bench.machine.detach(target, note=bench.note)
    assert isinstance(outcome, Ready)
    assert not bench.kernel.pci.resets
    assert bench.machine.reattach(pci(NIC), bench.notes[pci(NIC)]) == Back("e1000e", "flr")
    assert bench.traces() == before
    assert getattr(bench.machine.reset(pci(NIC)), "reset", "") == "flr"


def test_a_group_is_detached_one_by_one(bench: Bench) -> None:
    """An administrator takes the members of an IOMMU group from their host drivers one after the other; a lease of one
    of them alone must wait for the last.
    """
    before = bench.traces()
    (target,) = bench.targets(pci(GPU))
    assert isinstance(bench.machine.detach(target, note=bench.note), Ready)
    assert f"{GPU_SOUND} is in its IOMMU group 17" in bench.failed(pci(GPU)).reason
    (target,) = bench.targets(pci(GPU_SOUND))
    assert isinstance(bench.machine.detach(target, note=bench.note), Ready)
    for key in (pci(GPU), pci(GPU_SOUND)):
        assert isinstance(bench.machine.reattach(key, bench.notes[key]), Back)
    assert bench.traces() == before


def test_reattach_without_a_note_lets_the_kernel_choose(bench: Bench) -> None:
    """A function that somebody put on a stub long ago goes to whatever driver takes it."""
    before = bench.traces()
    bench.ready(pci(NIC))
    bench.notes.clear()
    assert bench.machine.reattach(pci(NIC)) == Back("e1000e")
    assert bench.traces() == before
    assert bench.machine.reattach(pci(NIC)) == Back("e1000e")


def test_a_function_without_a_way_is_not_reset(bench: Bench) -> None:
    """An administrator hears that there is no way, and what would help."""
    outcome = bench.machine.reset(pci(SATA))
    assert isinstance(outcome, NotBack)
    assert "no way to reset it alone" in outcome.reason


def test_nothing_is_done_to_what_is_in_use(bench: Bench) -> None:
    """Neither reattach nor reset touch what a process has open."""
    bench.ready(pci(NIC))
    bench.kernel.pci.hold(NIC, 7)
    bench.kernel.told.clear()
    assert isinstance(bench.machine.reattach(pci(NIC)), Busy)
    assert isinstance(bench.machine.reset(pci(NIC)), Busy)
    assert not bench.kernel.told


def test_a_look_says_what_is_there(bench: Bench) -> None:
    """Driver, override, identity and users; of what is not there, that it is not."""
    bench.ready(pci(NIC))
    bench.kernel.pci.hold(NIC, 7)
    seen = bench.machine.look(pci(NIC))
    assert (seen.driver, seen.override, seen.vendor_id, seen.product_id) == ("vfio-pci", "vfio-pci", "8086", "10d3")
    assert seen.users == ("vfio: qemu-system-x86 (pid 7)",)
    bench.kernel.pci.unplug(NIC)
    assert not bench.machine.look(pci(NIC)).path


def test_old_kernels_bind_by_ids_which_do_not_stay(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without `driver_override` the stub is given the ids, which are taken out again as soon as it has the function."""
    kernel = Kernel(tmp_path_factory.mktemp("old") / "machine", overrides=False)
    bench = Bench(kernel)
    before = bench.traces()
    bench.ready(pci(NIC))
    assert kernel.told == [f"unbind {NIC}", "new_id 8086 10d3", "remove_id 8086 10d3", "reset 1"]
    assert not kernel.pci.added_ids["vfio-pci"]
    assert bench.take_back(pci(NIC)) == Back("e1000e", "flr")
    assert bench.traces() == before
    kernel.close()


def test_old_kernels_do_not_take_an_unbound_twin(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ids mean every function of that model: where another one has no driver, it would be taken, too, so none is."""
    kernel = Kernel(tmp_path_factory.mktemp("old") / "machine", overrides=False)
    bench = Bench(kernel)
    kernel.pci.unbind("igbvf", VF1)
    refused = bench.failed(pci(VF0))
    assert refused.reason == f"{VF1} has the same ids and no driver, so that vfio-pci would take it, too"
    assert kernel.driver(VF1) == ""
    kernel.close()
