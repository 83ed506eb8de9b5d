"""xen-pciback: by its toolstack where there is one, by slots where there is none; never from under a domain, and never
back to the host in Xen's quarantine.
"""

import errno

import pytest

from leasehold.projections.handover import Back, Busy, NotBack, Ready
from leasehold.services.binder import steps
from leasehold.services.binder.xen import UNKNOWN
from tests.binder.bench import Bench
from tests.binder.kernel import NIC, PORT, VF0, Kernel, pci


@pytest.fixture
def dom0(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A binder whose stub is pciback."""
    monkeypatch.setattr(steps, "SETTLE_S", 0.5)
    return Bench(kernel, "pciback")


def test_without_a_toolstack_by_slot(dom0: Bench) -> None:
    """The module is loaded, a slot made, and the function bound; behind the lease neither slot nor binding is left."""
    dom0.kernel.run(["modprobe", "xen-pciback"])
    before = dom0.traces()
    assert dom0.ready(pci(NIC)).devices[0].driver == "pciback"
    assert dom0.kernel.told == [f"unbind {NIC}", f"new_slot {NIC}", f"bind {NIC}", "reset 1"]
    assert dom0.take_back(pci(NIC)) == Back("e1000e", "flr")
    assert dom0.kernel.told == [f"unbind {NIC}", f"remove_slot {NIC}", "reset 1", f"bind {NIC}"]
    assert dom0.traces() == before


def test_no_second_slot_is_made(dom0: Bench) -> None:
    """A slot that is there is used: a second entry of one function would stay behind."""
    dom0.kernel.run(["modprobe", "xen-pciback"])
    dom0.kernel.pci.write_driver("pciback", "new_slot", NIC)
    dom0.ready(pci(NIC))
    assert dom0.kernel.pci.slots() == [NIC]


def test_by_the_toolstack(dom0: Bench) -> None:
    """Under Xen `xl` puts it under pciback and into quarantine, and takes it out of both before its driver gets it."""
    xen = dom0.kernel.boot_xen()
    before = dom0.traces()
    dom0.ready(pci(NIC))
    assert xen.quarantine == {NIC}
    assert dom0.kernel.driver(NIC) == "pciback"
    xen.give(NIC, 5)
    assert dom0.take_back(pci(NIC)) == Busy(("xen: domain 5",))
    assert not dom0.kernel.told
    xen.take(NIC)
    assert dom0.take_back(pci(NIC)) == Back("e1000e", "flr")
    assert not xen.quarantine
    assert dom0.traces() == before


def test_forced_it_is_taken_from_its_domain(dom0: Bench) -> None:
    """Where an operator says so, the toolstack takes it from a running domain; then it goes the usual way."""
    xen = dom0.kernel.boot_xen()
    dom0.ready(pci(NIC))
    xen.give(NIC, 5)
    assert dom0.take_back(pci(NIC), forced=True) == Back("e1000e", "flr")
    assert not xen.assigned and not xen.quarantine


def test_a_domain_that_has_it_stands_in_the_way(dom0: Bench) -> None:
    """A function that some domain has by hand is not handed over to another."""
    xen = dom0.kernel.boot_xen()
    dom0.ready(pci(NIC))
    dom0.notes.clear()
    xen.give(NIC, 3)
    assert dom0.failed(pci(NIC)).reason == "it is in use (xen: domain 3)"


def test_what_xenstore_does_not_tell_is_not_taken(dom0: Bench) -> None:
    """While domains are served and xenstore is silent, nobody knows who has it: it stays, until it is forced."""
    xen = dom0.kernel.boot_xen()
    dom0.ready(pci(NIC))
    xen.give(NIC, 3)
    dom0.kernel.broken["xenstore-ls"] = OSError(errno.ETIMEDOUT, "xenstore-ls took longer than 20 s")
    assert dom0.take_back(pci(NIC)) == Busy((UNKNOWN,))


def test_a_toolstack_that_refuses_keeps_it_in_quarantine(dom0: Bench) -> None:
    """Taken from pciback behind Xen's back the host's driver would have a dead card: so it is not, and that is told."""
    dom0.kernel.boot_xen()
    dom0.ready(pci(NIC))
    dom0.kernel.broken["xl pci-assignable-remove"] = OSError(errno.EIO, "xl: failed to de-quarantine")
    stuck = dom0.take_back(pci(NIC))
    assert isinstance(stuck, NotBack)
    assert stuck.reason == f"xl does not take {NIC} from pciback: Xen may keep it in quarantine"
    assert dom0.kernel.driver(NIC) == "pciback"
    dom0.kernel.broken.clear()
    assert dom0.take_back(pci(NIC)) == Back("e1000e", "flr")


def test_a_success_that_is_none_is_seen(dom0: Bench) -> None:
    """What `xl` says is not relied on: it fails and the function is under pciback, or it does not and it is not."""
    dom0.kernel.boot_xen()
    dom0.kernel.broken["xl pci-assignable-add"] = OSError(errno.EIO, "xl: failed to quarantine")
    assert isinstance(dom0.prepare(pci(NIC)), Ready)
    assert dom0.kernel.driver(NIC) == "pciback"


def test_what_is_gone_leaves_no_slot(dom0: Bench) -> None:
    """A slot that stays would take whatever comes to this place next."""
    dom0.kernel.run(["modprobe", "xen-pciback"])
    dom0.ready(pci(NIC))
    dom0.kernel.pci.unplug(NIC)
    assert dom0.kernel.pci.slots() == [NIC]
    assert dom0.take_back(pci(NIC)) == Back("")
    assert not dom0.kernel.pci.slots()


def test_another_thing_that_the_slot_has_taken_is_the_hosts(dom0: Bench) -> None:
    """Plugged in where a slot was left, another card is under pciback at once: it goes to its own driver."""
    kernel = dom0.kernel
    kernel.run(["modprobe", "xen-pciback"])
    kernel.pci.load("r8169", "10ec:8168")
    dom0.ready(pci(NIC))
    kernel.pci.unplug(NIC)
    kernel.pci.add(f"pci0000:00/{PORT}/{NIC}", "pciback", "10ec:8168", "flr", 16)
    assert dom0.take_back(pci(NIC)) == Back("r8169")
    assert not kernel.pci.slots()


def test_an_override_for_another_driver_is_told(dom0: Bench) -> None:
    """pciback may not have what an administrator has kept for another driver."""
    dom0.kernel.run(["modprobe", "xen-pciback"])
    dom0.kernel.pci.write_device(NIC, "driver_override", "e1000e")
    failed = dom0.failed(pci(NIC))
    assert failed.reason == f"driver_override of {NIC} says e1000e, so that pciback may not have it"
    assert dom0.kernel.driver(NIC) == "e1000e"
    assert not dom0.kernel.pci.slots()


def test_a_virtual_function_under_pciback(dom0: Bench) -> None:
    """Its settings are saved and set again, as with vfio."""
    dom0.kernel.run(["modprobe", "xen-pciback"])
    before = dom0.traces()
    dom0.ready(pci(VF0))
    dom0.kernel.vfs[0]["address"] = "00:16:3e:00:00:01"
    assert dom0.take_back(pci(VF0)) == Back("igbvf", "flr")
    assert dom0.traces() == before


def test_reattach_without_a_note(dom0: Bench) -> None:
    """A function under pciback goes to what driver takes it, and its slot goes."""
    dom0.kernel.run(["modprobe", "xen-pciback"])
    before = dom0.traces()
    dom0.ready(pci(NIC))
    dom0.notes.clear()
    assert dom0.machine.reattach(pci(NIC)) == Back("e1000e")
    assert dom0.traces() == before
