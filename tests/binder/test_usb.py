"""USB devices are found by their port, taken from the host's drivers interface by interface, and given back whole."""

import errno

from leasehold.events.hostdevs import Handover
from leasehold.projections.handover import Back, Busy, NotBack, PreparedDevice, Ready, Target
from tests.binder.bench import Bench
from tests.binder.kernel import SERIAL, STICK, TWIN_A, TWIN_B, XHCI, pci, usb

CONTROLLER = "pci0000:00/0000:00:1c.3/0000:04:00.0/usb1"


def test_a_stick_is_taken_and_given_back(bench: Bench) -> None:
    """Its interfaces are unbound, it is reset, and stays with `usb`; then it is configured anew and probed."""
    before = bench.traces()
    assert bench.ready(usb(STICK)) == Ready(
        (PreparedDevice(key=usb(STICK), driver="", was_driver="usb-storage", reset="usb"),)
    )
    assert bench.kernel.driver(f"{STICK}:1.0") == ""
    assert bench.kernel.driver(STICK) == "usb"
    assert bench.kernel.usb.resets == [STICK]
    assert bench.take_back(usb(STICK)) == Back("usb-storage", "usb")
    assert bench.kernel.told[-2:] == [f"unbind {STICK}", f"bind {STICK}"]
    assert bench.traces() == before


def test_twins_are_told_apart_by_their_port(bench: Bench) -> None:
    """Of two devices with one model and one serial number only the leased one is touched, whatever their numbers."""
    bench.ready(usb(TWIN_B))
    assert bench.kernel.driver(f"{TWIN_A}:1.0") == "ftdi_sio"
    assert bench.kernel.driver(f"{TWIN_B}:1.0") == ""
    assert bench.kernel.usb.resets == [TWIN_B]


def test_a_new_number_does_not_matter(bench: Bench) -> None:
    """Plugged in again, the same stick has another number and its host driver: it is given back already, and what has
    taken its old number is not touched.
    """
    bench.ready(usb(STICK))
    kernel = bench.kernel
    old = (kernel.usb.folder(STICK) / "devnum").read_text()
    kernel.usb.unplug(STICK)
    kernel.usb.plug(f"{CONTROLLER}/{STICK}", "0781:5581", "4C530001")
    assert (kernel.usb.folder(STICK) / "devnum").read_text() != old
    kernel.tree.write(f"{CONTROLLER}/1-1/{TWIN_A}", "devnum", old)
    assert bench.take_back(usb(STICK)) == Back("usb-storage")
    assert not kernel.told


def test_prepared_again_by_its_new_number(bench: Bench) -> None:
    """A stick that came back during its lease is taken from the host's drivers once more, at its new number."""
    bench.ready(usb(STICK))
    kernel = bench.kernel
    kernel.usb.unplug(STICK)
    kernel.usb.plug(f"{CONTROLLER}/{STICK}", "0781:5581", "4C530001")
    bench.ready(usb(STICK))
    number = int((kernel.usb.folder(STICK) / "devnum").read_text())
    assert kernel.told == [f"unbind {STICK}:1.0", f"usb_reset {kernel.root.dev}/bus/usb/001/{number:03}"]
    assert bench.take_back(usb(STICK)) == Back("usb-storage", "usb")


def test_another_stick_in_its_place_is_not_touched(bench: Bench) -> None:
    """Model the same, serial number another: it is another thing."""
    bench.ready(usb(STICK))
    kernel = bench.kernel
    targets = bench.targets(usb(STICK))
    kernel.usb.unplug(STICK)
    kernel.usb.plug(f"{CONTROLLER}/{STICK}", "0781:5581", "OTHER")
    kernel.told.clear()
    refused = bench.machine.prepare(targets, note=lambda _: None)
    assert getattr(refused, "reason", "") == (
        "another thing is in its place now: 0781:5581 OTHER, where 0781:5581 4C530001 was"
    )
    assert bench.take_back(usb(STICK)) == Back("usb-storage")
    assert not kernel.told


def test_a_process_that_has_claimed_it_is_left_alone(bench: Bench) -> None:
    """What a process has claimed through usbfs is in use: neither handed over nor taken back, unless forced."""
    bench.ready(usb(STICK))
    bench.kernel.usb.claim(f"{STICK}:1.0")
    assert bench.take_back(usb(STICK)) == Busy(("usbfs",))
    assert not bench.kernel.told
    bench.notes.clear()
    assert bench.failed(usb(STICK)).reason == "it is in use (usbfs)"


def test_what_its_domain_has_claimed_already_is_left_to_it(bench: Bench) -> None:
    """Killed before it could tell, a binder hands over again what is with its domain by then: nothing is written."""
    bench.ready(usb(STICK))
    bench.kernel.usb.claim(f"{STICK}:1.0")
    assert bench.ready(usb(STICK)).devices[0].reset == ""
    assert not bench.kernel.told


def test_forced_a_claim_ends(bench: Bench) -> None:
    """Forced, the device is taken from `usb` under the process, and the host's drivers get it."""
    before = bench.traces()
    bench.ready(usb(STICK))
    bench.kernel.usb.claim(f"{STICK}:1.0")
    assert bench.take_back(usb(STICK), forced=True) == Back("usb-storage")
    assert bench.traces() == before


def test_what_its_user_has_given_back_itself_is_not_touched(bench: Bench) -> None:
    """Some users let the host's drivers in again themselves, as QEMU does: then nothing is reset under them."""
    bench.ready(usb(STICK))
    bench.kernel.usb.probe(f"{STICK}:1.0")
    assert bench.take_back(usb(STICK)) == Back("usb-storage")
    assert not bench.kernel.told


def test_a_hub_is_refused(bench: Bench) -> None:
    """Hubs stay: what is plugged in below is what can be handed over."""
    assert bench.failed(usb("1-1")).reason == "it is a hub: lease what is plugged in below it"


def test_unmanaged_nothing_is_written(bench: Bench) -> None:
    """Unmanaged, a USB device stays with its host drivers, both times."""
    before = bench.traces()
    bench.ready(usb(STICK), handover=Handover(unmanaged=True))
    assert not bench.kernel.told
    assert bench.take_back(usb(STICK)) == Back("usb-storage")
    assert not bench.kernel.told
    assert bench.traces() == before


def test_a_driver_that_does_not_come_back_is_told(bench: Bench) -> None:
    """The kernel probes in silence: it is seen, and told with the interface and the driver."""
    bench.ready(usb(STICK))
    bench.kernel.usb.silent.add(("usb-storage", f"{STICK}:1.0"))
    stuck = bench.take_back(usb(STICK))
    assert isinstance(stuck, NotBack)
    assert stuck.reason == f"the host's drivers have not taken 1.0 (usb-storage) of {STICK} again"
    assert stuck.help.startswith("pull it out and plug it in again")
    bench.kernel.usb.silent.clear()
    assert bench.take_back(usb(STICK)) == Back("usb-storage", "usb")


def test_a_failed_one_rolls_its_twin_back(bench: Bench) -> None:
    """The second interface cannot be taken: the first is the host's again."""
    before = bench.traces()
    bench.kernel.refuse[f"unbind {TWIN_B}:1.0"] = errno.EIO
    failed = bench.failed(usb(TWIN_A), usb(TWIN_B))
    assert failed.key == usb(TWIN_B)
    assert not failed.left
    assert bench.traces() == before


def test_one_that_goes_with_its_reset_fails(bench: Bench) -> None:
    """A device that does not come back from its reset is not handed over, and nothing is left to bring back."""

    def pull(attribute: str, _: str) -> None:
        if attribute == "usb_reset":
            bench.kernel.usb.unplug(STICK)

    bench.kernel.on_told = pull
    failed = bench.failed(usb(TWIN_A), usb(STICK))
    assert (failed.key, failed.reason) == (usb(STICK), "it went away")
    assert not failed.left
    assert bench.kernel.driver(f"{TWIN_A}:1.0") == "ftdi_sio"


def test_a_reset_that_makes_it_come_anew_is_looked_at_again(bench: Bench) -> None:
    """Behind its reset a device was enumerated and probed again: its interfaces are taken once more."""
    kernel = bench.kernel

    def renumber(attribute: str, _: str) -> None:
        if attribute == "usb_reset" and not kernel.usb.resets:
            kernel.usb.probe(f"{STICK}:1.0")

    kernel.on_told = renumber
    assert bench.ready(usb(STICK)).devices[0].reset == "usb"
    assert kernel.driver(f"{STICK}:1.0") == ""
    assert kernel.told.count(f"unbind {STICK}:1.0") == 2


def test_one_interface_can_be_leased(bench: Bench) -> None:
    """An interface by itself goes from its driver and comes back, and its device is not reset."""
    before = bench.traces()
    key = next(key for key, device in bench.kernel.picture().items() if device.name == "usb_1_2_1_0")
    assert bench.ready(key).devices[0].was_driver == "usb-storage"
    assert bench.kernel.driver(f"{STICK}:1.0") == ""
    assert bench.take_back(key) == Back("usb-storage")
    assert not bench.kernel.usb.resets
    assert bench.traces() == before


def test_reattach_without_a_note(bench: Bench) -> None:
    """What somebody has unbound by hand is probed again."""
    before = bench.traces()
    bench.kernel.usb.write_driver("usb-storage", "unbind", f"{STICK}:1.0")
    assert bench.machine.reattach(usb(STICK)) == Back("usb-storage")
    assert bench.traces() == before
    assert getattr(bench.machine.reset(usb(STICK)), "reset", "") == "usb"


def test_a_stick_goes_with_its_controller(bench: Bench) -> None:
    """Leased with the controller that it is plugged into, a stick needs nothing done to it: it goes, and comes back.
    Killed in the middle, the next run knows that it has gone.
    """
    kernel = bench.kernel

    def go(attribute: str, text: str) -> None:
        if (attribute, text) == ("unbind", XHCI) and (kernel.root.sys / "bus/usb/devices/usb1").exists():
            kernel.usb.unplug("usb1")

    kernel.on_told = go
    keys = (usb(STICK), pci(XHCI))
    targets = bench.targets(*keys)
    for _ in range(2):
        outcome = bench.machine.prepare(targets, note=lambda befores: bench.notes.update({b.key: b for b in befores}))
        assert isinstance(outcome, Ready), outcome
        assert [each.driver for each in outcome.devices] == ["", "vfio-pci"]
        assert not kernel.usb.resets
        targets = [Target(description=each.description, before=bench.notes[each.key]) for each in targets]
    assert bench.take_back(usb(STICK)) == Back("")
    assert not kernel.told
    assert bench.take_back(pci(XHCI)) == Back("xhci_hcd", "flr")


def test_serials_are_noted(bench: Bench) -> None:
    """What is noted tells a device from another in its place."""
    bench.ready(usb(TWIN_A))
    note = bench.notes[usb(TWIN_A)]
    assert (note.vendor_id, note.product_id, note.serial, note.interfaces) == (
        "0403", "6001", SERIAL, {"1.0": "ftdi_sio"},
    )  # fmt: skip
