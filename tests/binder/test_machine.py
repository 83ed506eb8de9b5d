"""PCI functions are handed over as Linux wants it, and come back as they were; nothing is believed that was only
written.
"""

import errno
import threading

import pytest

from leasehold.events.hostdevs import Handover
from leasehold.projections.handover import Back, Busy, NotBack, PreparedDevice, Ready
from tests.binder.bench import Bench
from tests.binder.kernel import GPU, GPU_SOUND, NIC, PORT, SATA, SMBUS, VF0, VF1, pci


def test_a_function_goes_to_the_stub_and_back(bench: Bench) -> None:
    """Override, unbind, probe, reset; then unbind, override, reset, bind: as it was, with nothing left behind."""
    before = bench.traces()
    assert bench.ready(pci(NIC)) == Ready(
        (PreparedDevice(key=pci(NIC), driver="vfio-pci", was_driver="e1000e", reset="flr"),)
    )
    assert bench.kernel.told == ["driver_override vfio-pci", f"unbind {NIC}", f"drivers_probe {NIC}", "reset 1"]
    assert bench.kernel.driver(NIC) == "vfio-pci"
    assert bench.take_back(pci(NIC)) == Back("e1000e", "flr")
    assert bench.kernel.told == [f"unbind {NIC}", "driver_override ", "reset 1", f"bind {NIC}"]
    assert bench.traces() == before


def test_what_has_no_driver_has_none_again(bench: Bench) -> None:
    """A function that was bound to nothing is bound to nothing behind the lease."""
    bench.kernel.pci.unbind("e1000e", NIC)
    before = bench.traces()
    assert bench.ready(pci(NIC)).devices[0].was_driver == ""
    assert bench.take_back(pci(NIC)) == Back("", "flr")
    assert bench.traces() == before


def test_an_override_of_an_administrator_stands_again(bench: Bench) -> None:
    """What `driver_override` said before, it says behind the lease."""
    bench.kernel.pci.write_device(NIC, "driver_override", "e1000e")
    before = bench.traces()
    bench.ready(pci(NIC))
    assert bench.take_back(pci(NIC)) == Back("e1000e", "flr")
    assert bench.traces() == before


def test_what_is_on_the_stub_already_stays_there(bench: Bench) -> None:
    """A function that somebody has bound to the stub is only reset, and stays there behind the lease."""
    bench.ready(pci(NIC))
    bench.notes.clear()
    bench.kernel.pci.resets.clear()
    assert bench.ready(pci(NIC)).devices[0].was_driver == "vfio-pci"
    assert bench.kernel.told == ["reset 1"]
    assert bench.take_back(pci(NIC)) == Back("vfio-pci", "flr")
    assert bench.kernel.pci.override_of(NIC) == "vfio-pci"


def test_unmanaged_functions_are_only_reset(bench: Bench) -> None:
    """Unmanaged, a function must be on a stub, stays on it, and is reset both times."""
    unmanaged = Handover(unmanaged=True)
    refused = bench.failed(pci(NIC), handover=unmanaged)
    assert refused.reason == "it is unmanaged and bound to e1000e: bind it to a stub driver by hand first"
    assert not bench.kernel.told
    bench.ready(pci(NIC))
    bench.notes.clear()
    assert bench.ready(pci(NIC), handover=unmanaged).devices[0].driver == "vfio-pci"
    assert bench.kernel.told == ["reset 1"]
    assert bench.take_back(pci(NIC)) == Back("vfio-pci", "flr")
    assert bench.kernel.told == ["reset 1"]


def test_a_stub_may_be_named(bench: Bench) -> None:
    """The lease's stub counts; a module that is not there is loaded first."""
    assert bench.ready(pci(NIC), handover=Handover(driver="pci-stub")).devices[0].driver == "pci-stub"
    assert "modprobe pci-stub" in bench.kernel.ran
    assert bench.take_back(pci(NIC)) == Back("e1000e", "flr")


def test_a_stub_that_cannot_be_loaded_is_told(bench: Bench) -> None:
    """Without the module nothing is written, and its name is said."""
    del bench.kernel.modules["pci-stub"]
    refused = bench.failed(pci(NIC), handover=Handover(driver="pci-stub"))
    assert refused.reason.startswith("the driver pci-stub is not loaded, and cannot be: modprobe: FATAL")
    assert not bench.kernel.told


def test_several_are_handed_over_together(bench: Bench) -> None:
    """All are bound before any is reset, since a reset may hit neighbours."""
    bench.ready(pci(NIC), pci(VF0), pci(VF1))
    words = [told.partition(" ")[0] for told in bench.kernel.told]
    assert words == ["driver_override", "unbind", "drivers_probe"] * 3 + ["reset"] * 3


# --- what is refused before anything is written -----------------------------------------------------------------------


def test_a_bridge_is_refused(bench: Bench) -> None:
    """Only endpoints can be handed over."""
    assert bench.failed(pci(PORT)).reason == "it is a bridge: only endpoints can be handed over"


def test_a_groups_other_functions_stand_in_the_way(bench: Bench) -> None:
    """vfio gives a group out only as a whole: the sibling that is on a host driver is named."""
    refused = bench.failed(pci(GPU))
    assert refused.key == pci(GPU)
    assert f"{GPU_SOUND} is in its IOMMU group 17 and bound to snd_hda_intel" in refused.reason
    bench.kernel.pci.unbind("snd_hda_intel", GPU_SOUND)
    bench.ready(pci(GPU))


def test_a_whole_group_goes_and_a_bridge_in_it_does_not_matter(bench: Bench) -> None:
    """With its sibling a function can be handed over; bridges of the group stay with their driver."""
    kernel = bench.kernel
    members = kernel.root.sys / "kernel/iommu_groups/17/devices"
    kernel.tree.link(members / "0000:00:1c.2", kernel.pci.folder("0000:00:1c.2"))
    bench.ready(pci(GPU), pci(GPU_SOUND))
    assert kernel.driver("0000:00:1c.2") == "pcieport"


def test_what_is_in_use_is_refused(bench: Bench) -> None:
    """A function whose vfio group a process has open is not touched."""
    bench.ready(pci(NIC))
    bench.notes.clear()
    bench.kernel.pci.hold(NIC, 123)
    assert bench.failed(pci(NIC)).reason == "it is in use (vfio: qemu-system-x86 (pid 123))"
    assert not bench.kernel.told


def test_what_the_host_needs_is_refused_unless_forced(bench: Bench) -> None:
    """What the host itself has begun to need since the grant is not taken away from it; a forced lease may."""
    kernel = bench.kernel
    kernel.tree.net(f"pci0000:00/{PORT}/{NIC}/net/eth0", address="02:00:00:00:01:00")
    targets = bench.targets(pci(NIC))
    kernel.tree.default_route("eth0")
    refused = bench.machine.prepare(targets, note=bench.note)
    assert getattr(refused, "reason", "") == (
        "the host itself needs it (net_eth0_02_00_00_00_01_00 below it: carries the default route)"
    )
    assert isinstance(bench.prepare(pci(NIC), forced=True), Ready)


def test_another_thing_in_its_place_is_refused(bench: Bench) -> None:
    """What was leased is what is handed over, not what sits in its place by now."""
    targets = bench.targets(pci(NIC))
    bench.kernel.pci.unplug(NIC)
    bench.kernel.pci.add(f"pci0000:00/{PORT}/{NIC}", "", "10ec:8168", "flr", 16)
    refused = bench.machine.prepare(targets, note=bench.note)
    assert getattr(refused, "reason", "") == "another thing is in its place now: 10ec:8168, where 8086:10d3 was"


def test_another_thing_than_was_noted_is_refused(bench: Bench) -> None:
    """The log knows the new thing already: it is still not what was handed over for this lease."""
    bench.ready(pci(NIC))
    bench.kernel.pci.unplug(NIC)
    bench.kernel.pci.add(f"pci0000:00/{PORT}/{NIC}", "", "10ec:8168", "flr", 16)
    refused = bench.failed(pci(NIC))
    assert refused.reason == "another thing is in its place now than what was handed over before"
    assert not bench.kernel.told


def test_what_is_not_there_is_refused(bench: Bench) -> None:
    """A function that is gone is not skipped: nothing of the lease is handed over."""
    targets = bench.targets(pci(VF0), pci(NIC))
    bench.kernel.pci.unplug(NIC)
    refused = bench.machine.prepare(targets, note=bench.note)
    assert (getattr(refused, "key", ""), getattr(refused, "reason", "")) == (pci(NIC), "it is not there")
    assert not bench.kernel.told


def test_what_cannot_be_noted_is_not_begun(bench: Bench) -> None:
    """A full disk: nothing is written to the host."""

    def note(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    refused = bench.machine.prepare(bench.targets(pci(NIC)), note=note)
    assert "cannot be noted here" in getattr(refused, "reason", "")
    assert not bench.kernel.told


# --- what goes wrong in the middle ------------------------------------------------------------------------------------


def test_a_probe_that_nobody_takes_is_seen(bench: Bench) -> None:
    """All writes succeed and no driver comes of them: it fails, and all are back where they were."""
    before = bench.traces()
    bench.kernel.pci.silent.add(("vfio-pci", NIC))
    failed = bench.failed(pci(VF0), pci(NIC))
    assert failed.key == pci(NIC)
    assert failed.reason.startswith(f"vfio-pci has not taken {NIC}, which is bound to nothing")
    assert not failed.left
    assert bench.traces() == before


@pytest.mark.parametrize("attribute", ["driver_override", "unbind", "drivers_probe", "reset"])
def test_every_refusal_rolls_all_back(bench: Bench, attribute: str) -> None:
    """Whichever word the kernel refuses for the second device, the first is back on its driver, too."""
    before = bench.traces()
    text = {"driver_override": "vfio-pci", "reset": "1"}.get(attribute, NIC)

    def refuse(said: str, value: str) -> None:
        # The fault ends with the first refusal: the way back is open.
        bench.kernel.refuse.pop(attribute, None)
        is_second = bench.kernel.driver(VF0) == "vfio-pci"
        if said == attribute and value == text and is_second:
            bench.kernel.refuse[attribute] = errno.EIO
            bench.kernel.on_told = lambda *_: bench.kernel.refuse.pop(attribute, None)

    bench.kernel.on_told = refuse
    failed = bench.failed(pci(VF0), pci(NIC))
    assert "Input/output error" in failed.reason
    assert not failed.left
    assert bench.traces() == before


def test_a_driver_that_is_late_is_waited_for(bench: Bench) -> None:
    """The probe's write is over before the driver has the function: the link is what is waited for."""
    late = bench.kernel.pci.late["vfio-pci", NIC] = threading.Event()
    bench.kernel.on_told = lambda attribute, _: (
        threading.Timer(0.1, late.set).start() if attribute == "drivers_probe" else None
    )
    bench.ready(pci(NIC))
    assert bench.kernel.driver(NIC) == "vfio-pci"


def test_one_that_goes_in_the_middle_rolls_the_others_back(bench: Bench) -> None:
    """A function is pulled out between two words: it fails, the other is back, and nothing is left of it."""
    drivers = bench.drivers()

    def pull(attribute: str, text: str) -> None:
        if (attribute, text) == ("drivers_probe", NIC):
            bench.kernel.pci.unplug(NIC)

    bench.kernel.on_told = pull
    failed = bench.failed(pci(VF0), pci(NIC))
    assert failed.key == pci(NIC)
    assert not failed.left
    assert bench.drivers() == {name: driver for name, driver in drivers.items() if name != NIC}


def test_a_kernel_that_does_not_come_back_keeps_a_thread_and_not_the_binder(bench: Bench) -> None:
    """A driver hangs in its end: it fails in time, says what hangs, and nothing more is told of that device until the
    kernel comes back; then it heals.
    """
    before = bench.traces()
    hangs = bench.hang(f"unbind {NIC}")
    failed = bench.failed(pci(VF0), pci(NIC))
    assert "the kernel has not come back from" in failed.reason
    assert [left.key for left in failed.left] == [pci(NIC)]
    assert bench.kernel.driver(VF0) == "igbvf"
    again = bench.take_back(pci(NIC))
    assert isinstance(again, NotBack)
    assert "the kernel has not come back from" in again.reason
    assert not bench.kernel.told
    hangs.set()
    while isinstance(bench.take_back(pci(NIC)), NotBack):
        pass
    assert bench.traces() == before


def test_a_roll_back_that_fails_says_what_is_left(bench: Bench) -> None:
    """The stub does not take it, and its host driver does not take it again: told with its way out."""
    bench.kernel.pci.silent |= {("vfio-pci", NIC), ("e1000e", NIC)}
    failed = bench.failed(pci(NIC))
    assert [left.key for left in failed.left] == [pci(NIC)]
    assert "e1000e" in failed.left[0].reason
    assert f"{pci(NIC)} is not back: {failed.left[0].reason}" in failed.reason
    assert "bind it to e1000e by hand" in failed.left[0].help
    bench.kernel.pci.silent.clear()
    assert bench.take_back(pci(NIC)) == Back("e1000e", "flr")


def test_what_its_domain_has_already_is_not_reset(bench: Bench) -> None:
    """Killed before it could tell, a binder hands over again what is with its domain by then: nothing is written."""
    bench.ready(pci(NIC))
    bench.kernel.pci.hold(NIC, 123)
    assert bench.ready(pci(NIC)) == Ready(
        (PreparedDevice(key=pci(NIC), driver="vfio-pci", was_driver="e1000e", reset=""),)
    )
    assert not bench.kernel.told


def test_a_driver_that_comes_in_between_is_seen_in_the_end(bench: Bench) -> None:
    """Bound and reset it was, but somebody has taken it from the stub since: it is not said to be ready."""
    kernel = bench.kernel

    def take(attribute: str, _: str) -> None:
        if attribute == "reset":
            kernel.on_told = lambda *_: None
            kernel.pci.unbind("vfio-pci", NIC)

    kernel.on_told = take
    assert bench.failed(pci(NIC)).reason == "it is bound to nothing, and not to vfio-pci"
    assert kernel.driver(NIC) == "e1000e"


# --- what happens before it is taken back -----------------------------------------------------------------------------


def test_it_is_not_yanked_from_who_has_it(bench: Bench) -> None:
    """While a process has it open nothing is written; when it lets go, it comes back."""
    bench.ready(pci(NIC))
    bench.kernel.pci.hold(NIC, 123)
    assert bench.take_back(pci(NIC)) == Busy(("vfio: qemu-system-x86 (pid 123)",))
    assert not bench.kernel.told
    bench.kernel.pci.release(123)
    assert bench.take_back(pci(NIC)) == Back("e1000e", "flr")


def test_forced_the_kernel_asks_the_user_and_its_refusal_is_told(bench: Bench) -> None:
    """Forced, it is taken from the driver, which waits for its user; one that does not let go is named."""
    bench.ready(pci(NIC))
    bench.kernel.pci.hold(NIC, 123)
    bench.hang(f"unbind {NIC}").set()
    stuck = bench.take_back(pci(NIC), forced=True)
    assert isinstance(stuck, NotBack)
    assert "in use: vfio: qemu-system-x86 (pid 123)" in stuck.reason
    assert "end what uses it" in stuck.help
    bench.kernel.pci.release(123)
    while isinstance(bench.take_back(pci(NIC)), NotBack):
        pass
    assert bench.kernel.driver(NIC) == "e1000e"


def test_a_driver_changed_by_hand_to_the_old_one_is_given_back(bench: Bench) -> None:
    """Somebody has done the way back by hand: only what was left of ours is taken away, and nothing is reset."""
    before = bench.traces()
    bench.ready(pci(NIC))
    kernel = bench.kernel
    kernel.pci.unbind("vfio-pci", NIC)
    kernel.pci.write_device(NIC, "driver_override", "")
    kernel.pci.probe(NIC)
    assert bench.take_back(pci(NIC)) == Back("e1000e", "")
    assert bench.traces() == before


def test_a_driver_changed_by_hand_to_another_is_not_taken_away(bench: Bench) -> None:
    """Whoever did so may use it: it is told, and stays."""
    bench.ready(pci(NIC))
    kernel = bench.kernel
    kernel.pci.load("uio_pci_generic", "8086:10d3")
    kernel.pci.unbind("vfio-pci", NIC)
    kernel.pci.write_device(NIC, "driver_override", "uio_pci_generic")
    kernel.pci.probe(NIC)
    stuck = bench.take_back(pci(NIC))
    assert isinstance(stuck, NotBack)
    assert stuck.reason == "it is bound to uio_pci_generic, which was done by hand: it was handed over on vfio-pci"
    assert kernel.driver(NIC) == "uio_pci_generic"


def test_what_is_gone_is_given_back(bench: Bench) -> None:
    """Of a function that was pulled out nothing is left; plugged in again it is the host's."""
    bench.ready(pci(NIC))
    bench.kernel.pci.unplug(NIC)
    assert bench.take_back(pci(NIC)) == Back("")
    assert not bench.kernel.told


def test_another_thing_in_its_place_is_left_alone(bench: Bench) -> None:
    """What came instead was never handed over: it keeps its driver, and is not reset."""
    bench.ready(pci(NIC))
    bench.kernel.pci.unplug(NIC)
    bench.kernel.pci.load("r8169", "10ec:8168")
    bench.kernel.pci.add(f"pci0000:00/{PORT}/{NIC}", "r8169", "10ec:8168", "flr", 16)
    assert bench.take_back(pci(NIC)) == Back("r8169")
    assert not bench.kernel.told


def test_a_host_that_booted_has_given_all_back(bench: Bench) -> None:
    """Behind a boot the function is on its host driver: nothing is to be done, and it is not reset under it."""
    bench.ready(pci(NIC))
    kernel = bench.kernel
    kernel.pci.unplug(NIC)
    kernel.pci.add(f"pci0000:00/{PORT}/{NIC}", "e1000e", "8086:10d3", "flr pm", 16)
    kernel.pci.resets.clear()
    assert bench.take_back(pci(NIC)) == Back("e1000e", "")
    assert not kernel.pci.resets


def test_a_driver_that_is_not_loaded_any_more_is_loaded(bench: Bench) -> None:
    """The host driver was unloaded meanwhile: it is loaded again, or its name is told."""
    kernel = bench.kernel
    bench.ready(pci(NIC))
    folder = kernel.root.sys / "bus/pci/drivers/e1000e"
    for name in ("bind", "unbind", "new_id", "remove_id"):
        (folder / name).unlink()
    folder.rmdir()
    del kernel.pci.ids["e1000e"]
    stuck = bench.take_back(pci(NIC))
    assert isinstance(stuck, NotBack)
    assert "the driver e1000e is not loaded" in stuck.reason
    kernel.modules["e1000e"] = ("8086:10d3",)
    assert bench.take_back(pci(NIC)) == Back("e1000e", "flr")


def test_a_failed_reset_keeps_it_from_the_host(bench: Bench) -> None:
    """A device that cannot be reset although there is a way is not given back as if it were clean."""
    bench.ready(pci(NIC))
    bench.kernel.refuse["reset"] = errno.EIO
    stuck = bench.take_back(pci(NIC))
    assert isinstance(stuck, NotBack)
    assert stuck.reason == f"the reset of {NIC} failed: Input/output error"
    assert bench.kernel.driver(NIC) == ""
    bench.kernel.refuse.clear()
    assert bench.take_back(pci(NIC)) == Back("e1000e", "flr")


def test_what_is_neither_pci_nor_usb_is_only_looked_at(bench: Bench) -> None:
    """A network interface is used through its host driver: nothing is written for it."""
    key = next(key for key, device in bench.kernel.picture().items() if device.kind == "net")
    assert bench.ready(key) == Ready((PreparedDevice(key=key, driver="", was_driver="", reset=""),))
    assert isinstance(bench.take_back(key), Back)
    assert not bench.kernel.told


def test_the_chipset_has_no_way_to_be_reset_and_that_is_told(bench: Bench) -> None:
    """Where there is no way to reset it, it is handed over all the same, and the word for how is empty."""
    assert [each.reset for each in bench.ready(pci(SATA), pci(SMBUS)).devices] == ["", ""]
