"""The machine, as the binder acts on it: hands devices over to holders and takes them back, blocking, on a thread of
the caller's choice.

Nothing is believed that was only written: the kernel takes a name in `driver_override` and a probe in `drivers_probe`
whether a driver comes of it or not, so that each step ends by reading the `driver` link. Each write has a bounded time;
one from which the kernel does not come back keeps a thread, and nothing else is written to that device before it does.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import UnavailableError
from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import (
    Back,
    Before,
    Busy,
    Done,
    Failed,
    NotBack,
    PreparedDevice,
    Ready,
    Seen,
    Target,
)
from leasehold.services.binder import pci, usb
from leasehold.services.binder.checks import check_target
from leasehold.services.binder.resets import NO_WAY, reset_function
from leasehold.services.binder.spots import Spot, find_spot, interfaces_of, is_other, is_stub, seen, users_of
from leasehold.services.binder.sriov import restore_functions, restore_network
from leasehold.services.binder.steps import Hanging, Run, Steps, reset_usb, run_tool
from leasehold.services.binder.xen import take_from_domains
from leasehold.services.creator.attempt import Write, write_attribute
from leasehold.services.watcher.picture import take_picture
from leasehold.services.watcher.places import find_places
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot
from leasehold.services.watcher.usage import USBFS

Note = Callable[[Sequence[Before]], None]
"""Makes durable what devices were before, before the first write. Raises OSError: then nothing is written."""

UNDO_S: Final = 30.0
"""So long what was begun may take to be undone."""
AGAIN: Final = "`leasehold nodedev reattach` tries it at once"
_USB_KINDS: Final = ("usb_device", "usb_interface")


class Machine:
    """One host's devices. Calls may be made on several threads at a time, but not for the same devices."""

    def __init__(
        self,
        root: HostRoot = THIS_MACHINE,
        *,
        write: Write = write_attribute,
        run: Run = run_tool,
        reset_port: Callable[[str], None] = reset_usb,
        stub: str = "vfio-pci",
        ends: threading.Event | None = None,
    ) -> None:
        """`root`: the machine; `write`: how its kernel is told; `run`: how its tools are run; `reset_port`: how the USB
        device of a node is reset; `stub`: what PCI functions are bound to unless a lease says otherwise, one of
        `hostdevs.STUBS`; `ends`: set at the agent's end, which ends all waits.
        """
        self._root = root
        self._write = write
        self._run = run
        self._reset_port = reset_port
        self._stub = stub
        self._ends = ends or threading.Event()
        self._hanging = Hanging()

    def _steps(self, time_s: float) -> Steps:
        return Steps(
            self._root, time_s, write=self._write, run=self._run, reset_port=self._reset_port,
            hanging=self._hanging, ends=self._ends,
        )  # fmt: skip

    # --- handing over -------------------------------------------------------------------------------------------------

    def prepare(
        self, targets: Sequence[Target], *, note: Note, time_s: float = limits.PREPARE_TIMEOUT_MS / 1000
    ) -> Ready | Failed | None:
        """Hand over all these devices of one lease, or none.

        Everything is checked first, and nothing written meanwhile; then `note` is called once with what all of them
        were before; then they are bound to their stubs, then reset, then looked at. What fails undoes everything.
        To be called again after a kill, with what was noted (`Target.before`); what somebody uses by then is not reset.

        Returns:
            `None`: the agent ends before it is known. What was begun stands in the notes.
        """
        return self._hand_over(targets, note, time_s, is_leased=True)

    def detach(
        self, target: Target, *, note: Note, time_s: float = limits.PREPARE_TIMEOUT_MS / 1000
    ) -> Ready | Failed | None:
        """As virsh's nodedev-detach: as `prepare` of this one, but for nobody yet. It is not reset, and what it shares
        an IOMMU group or a switch with may be its host's still.
        """
        return self._hand_over([target], note, time_s, is_leased=False)

    def _hand_over(
        self, targets: Sequence[Target], note: Note, time_s: float, *, is_leased: bool
    ) -> Ready | Failed | None:
        if not targets:
            return Ready(())
        steps = self._steps(time_s)
        befores = self._check(steps, targets, is_leased=is_leased)
        if not isinstance(befores, list):
            return befores
        try:
            note(befores)
        except OSError as error:
            return Failed(befores[0].key, f"it was not begun, since that cannot be noted here ({error})")
        for before in befores:
            if refused := self._take(steps, before):
                return self._undo(steps, befores, before.key, refused)
        resets: dict[DeviceKey, str] = {}
        ready = []
        for before in befores:
            way, refused = self._reset_taken(steps, before, befores, resets) if is_leased else ("", "")
            if refused:
                return self._undo(steps, befores, before.key, refused)
            resets[before.key] = way
            ready.append(PreparedDevice(key=before.key, driver=before.stub, was_driver=before.driver, reset=way))
        for before in befores:
            if refused := self._not_taken(before):
                return self._undo(steps, befores, before.key, refused)
        return Ready(tuple(ready))

    def _check(self, steps: Steps, targets: Sequence[Target], *, is_leased: bool) -> list[Before] | Failed | None:
        """What the devices are before anything is written."""
        try:
            picture = take_picture(self._root)
            places = {place.key: place for place in find_places(self._root).values()}
        except UnavailableError as error:
            return Failed(targets[0].key, str(error))
        ours = {target.key for target in targets}
        befores = []
        for target in targets:
            if target.before is not None and target.before.carried:
                # It has gone with what carries it.
                befores.append(target.before)
                continue
            place = places.get(target.key)
            before = check_target(steps, target, place, picture, ours, self._stub, is_leased=is_leased)
            if steps.has_ended():
                return None
            if isinstance(before, str):
                return Failed(target.key, before)
            befores.append(before)
        return _with_carried(befores, {key: place.path for key, place in places.items()})

    def _take(self, steps: Steps, before: Before) -> str:
        """Take a device from its host drivers, and bind it to its stub; why not, or empty."""
        if before.carried:
            return ""
        spot = find_spot(self._root, before.key)
        if spot is None:
            return "it went away"
        if before.kind == "pci" and before.way:
            return pci.bind_to_stub(steps, spot.path, before)
        if before.kind in _USB_KINDS and not before.unmanaged:
            return usb.let_go(steps, spot.path, is_reset=False)
        return ""

    def _reset_taken(
        self, steps: Steps, before: Before, befores: Sequence[Before], resets: Mapping[DeviceKey, str]
    ) -> tuple[str, str]:
        """How it was reset, and why it could not be. `resets`: how those before it in `befores` were."""
        if before.carried:
            return "", ""
        spot = find_spot(self._root, before.key)
        if spot is None:
            return "", "it went away"
        # Noted by an earlier run, it may be with its domain already.
        if users_of(steps, spot):
            return "", ""
        if before.kind == "pci":
            bus = before.sysname.rpartition(":")[0]
            if any(resets.get(each.key) == "bus" and each.sysname.rpartition(":")[0] == bus for each in befores):
                # It was hit by the reset of another on its bus.
                return "bus", ""
            return reset_function(steps, spot.path, {each.key for each in befores})
        if before.kind == "usb_device" and not before.unmanaged:
            refused = usb.let_go(steps, spot.path, is_reset=True)
            return ("", refused) if refused else ("usb", "")
        return "", ""

    def _not_taken(self, before: Before) -> str:
        """Why it is not as it should be for its holder; empty: it is."""
        if before.carried:
            return ""
        spot = find_spot(self._root, before.key)
        if spot is None:
            return "it went away"
        if is_other(before, spot):
            return "another thing is in its place now"
        if before.kind == "pci" and spot.driver != before.stub:
            return f"it is bound to {spot.driver or 'nothing'}, and not to {before.stub}"
        if before.kind in _USB_KINDS and not before.unmanaged:
            bound = usb.drivers_of(interfaces_of(spot.path))
            return f"{bound} has taken it again" if bound not in ("", USBFS) else ""
        return ""

    def _undo(self, steps: Steps, befores: Sequence[Before], key: DeviceKey, reason: str) -> Failed | None:
        """Bring everything back that was begun. If the agent ends, the notes know what is left."""
        if steps.has_ended():
            return None
        left = []
        for before in reversed(befores):
            # What an earlier run had handed over may be with its domain already.
            outcome = self.take_back(before, is_reset=False, time_s=UNDO_S)
            if outcome is None:
                return None
            if isinstance(outcome, Busy):
                left.append(NotBack(before.key, f"it is in use ({', '.join(outcome.who)})", _help_in_use(outcome.who)))
            elif isinstance(outcome, NotBack):
                left.append(outcome)
        told = [f"{each.key} is not back: {each.reason}" for each in left]
        return Failed(key, "; ".join((reason, *told)), tuple(left))

    # --- taking back --------------------------------------------------------------------------------------------------

    def take_back(
        self,
        before: Before,
        *,
        ours: Collection[DeviceKey] = (),
        forced: bool = False,
        is_reset: bool = True,
        time_s: float = limits.GIVE_BACK_TIMEOUT_MS / 1000,
    ) -> Back | Busy | NotBack | None:
        """Give a device to the host again: reset, bound to what it was bound to before, and looked at.

        It does no harm where nothing, or a part, or all of it was done already. A device that is not there, or another
        thing in its place, is given back: nothing of what was done to it is left.

        Args:
            before: as it was noted.
            ours: which devices a reset may hit besides: those of the same lease, or of none, that nobody uses.
            forced: although somebody uses it. A kernel asks a vfio user to let go, and waits for that; Xen's toolstack
                takes it from its domain.
            is_reset: whether somebody may have used it, so that it is reset.
            time_s: the time that it may take.

        Returns:
            `None`: the agent ends before it is known.
        """
        steps = self._steps(time_s)
        spot = find_spot(self._root, before.key)
        users: tuple[str, ...] = ()
        if spot is not None and (spot.driver == before.stub or not is_other(before, spot)):
            users = users_of(steps, spot)
            if users and not forced:
                return Busy(users)
            if users and spot.driver == pci.PCIBACK:
                take_from_domains(steps, spot.sysname)
        outcome = self._bring_back(steps, before, spot, ours=ours, is_reset=is_reset)
        if steps.has_ended():
            return None
        if isinstance(outcome, NotBack) and users:
            return NotBack(outcome.key, f"{outcome.reason} (in use: {', '.join(users)})", _help_in_use(users))
        return outcome

    def _bring_back(
        self, steps: Steps, before: Before, spot: Spot | None, *, ours: Collection[DeviceKey], is_reset: bool
    ) -> Back | NotBack:
        if spot is None or is_other(before, spot):
            refused = pci.clear_way(steps, "", before) if before.kind == "pci" else ""
            if not refused and spot is not None and before.way == "slot" and spot.driver == before.stub:
                # The slot that was there for the old one has taken it.
                refused = self._reattach_pci(steps, spot)
            return NotBack(before.key, refused, AGAIN) if refused else Back(self._driver_of(before.key))
        if before.kind == "pci":
            return self._bring_back_pci(steps, before, spot, ours, is_reset=is_reset)
        if before.kind in _USB_KINDS and not (before.unmanaged or before.carried):
            return self._bring_back_usb(steps, before, spot, is_reset=is_reset)
        return Back(self._driver_of(before.key))

    def _bring_back_pci(
        self, steps: Steps, before: Before, spot: Spot, ours: Collection[DeviceKey], *, is_reset: bool
    ) -> Back | NotBack:
        path, driver, way = spot.path, spot.driver, ""
        by_hand = driver not in ("", before.driver, before.stub) and not is_stub(driver)
        if before.unmanaged and not is_stub(driver):
            return Back(driver)
        if by_hand:
            refused = pci.clear_way(steps, path, before)
            reason = f"it is bound to {driver}, which was done by hand: it was handed over on {before.stub}"
            return NotBack(before.key, refused or reason, f"bind it to {before.driver or 'nothing'} by hand; {AGAIN}")
        if before.way and driver != before.driver:
            if refused := pci.give_up_stub(steps, path, before):
                return NotBack(before.key, refused, AGAIN)
        elif refused := pci.clear_way(steps, path, before):
            return NotBack(before.key, refused, AGAIN)
        # What its host driver has again is the host's: a kill came between that and telling it.
        if is_reset and (not before.way or driver != before.driver or not driver):
            way, refused = reset_function(steps, path, ours)
            if refused:
                return NotBack(before.key, refused, f"reset it by hand, or switch the host off and on; {AGAIN}")
        if before.network is not None and (refused := restore_network(steps, path, before.network)):
            return NotBack(before.key, refused, f"set it by hand (`ip link set … vf`); {AGAIN}")
        if not before.unmanaged and (refused := pci.bind_to_host(steps, path, before.sysname, before.driver)):
            return NotBack(before.key, refused, f"bind it to {before.driver} by hand; {AGAIN}")
        if refused := restore_functions(steps, path, before.virtual_functions):
            return NotBack(before.key, refused, f"write {before.virtual_functions} to its sriov_numvfs; {AGAIN}")
        spot = find_spot(self._root, before.key) or spot
        if not before.unmanaged and spot.driver != before.driver:
            reason = f"it is bound to {spot.driver or 'nothing'}, and not to {before.driver or 'nothing'} as before"
            return NotBack(before.key, reason, f"bind it by hand; {AGAIN}")
        return Back(spot.driver, way)

    def _bring_back_usb(self, steps: Steps, before: Before, spot: Spot, *, is_reset: bool) -> Back | NotBack:
        way = ""
        if (
            is_reset
            and before.kind == "usb_device"
            and not usb.is_back(spot.path, before)
            and not users_of(steps, spot)
        ):
            if refused := usb.let_go(steps, spot.path, is_reset=True):
                return NotBack(before.key, refused, f"pull it out and plug it in again; {AGAIN}")
            way = "usb"
        # A reset may have made it come anew.
        spot = find_spot(self._root, before.key) or spot
        if refused := usb.give_back(steps, spot.path, before):
            return NotBack(before.key, refused, f"pull it out and plug it in again; {AGAIN}")
        return Back(usb.drivers_of(interfaces_of(spot.path)), way)

    def _driver_of(self, key: DeviceKey) -> str:
        spot = find_spot(self._root, key)
        if spot is None:
            return ""
        return usb.drivers_of(interfaces_of(spot.path)) if spot.place.kind in _USB_KINDS else spot.driver

    # --- for administrators -------------------------------------------------------------------------------------------

    def reattach(
        self, key: DeviceKey, before: Before | None = None, *, time_s: float = limits.GIVE_BACK_TIMEOUT_MS / 1000
    ) -> Back | Busy | NotBack | None:
        """As virsh's nodedev-reattach: from its stub, to what it was bound to before, or else to what the kernel finds
        for it. One that is on its host driver stays there.
        """
        if before is not None:
            return self.take_back(before, time_s=time_s)
        steps = self._steps(time_s)
        spot = find_spot(self._root, key)
        if spot is None:
            return NotBack(key, "it is not there", "plug it in")
        if users := users_of(steps, spot):
            return Busy(users)
        refused = ""
        if spot.place.kind == "pci":
            refused = self._reattach_pci(steps, spot)
        elif spot.place.kind == "usb_device" and "" in interfaces_of(spot.path).values():
            refused = usb.configure_anew(steps, spot.path)
        if steps.has_ended():
            return None
        return NotBack(key, refused, "see the kernel's log") if refused else Back(self._driver_of(key))

    def _reattach_pci(self, steps: Steps, spot: Spot) -> str:
        driver = spot.driver
        if driver and not is_stub(driver):
            return ""
        way = {"pciback": "slot"}.get(driver, "override")
        at_stub = Before(key=spot.place.key, kind="pci", sysname=spot.sysname, stub=driver, way=way)
        return pci.give_up_stub(steps, spot.path, at_stub) or pci.probe(steps, spot.path, spot.sysname)

    def reset(
        self,
        key: DeviceKey,
        *,
        ours: Collection[DeviceKey] = (),
        time_s: float = limits.GIVE_BACK_TIMEOUT_MS / 1000,
    ) -> Done | Busy | NotBack | None:
        """As virsh's nodedev-reset. `ours` as of `take_back`."""
        steps = self._steps(time_s)
        spot = find_spot(self._root, key)
        if spot is None:
            return NotBack(key, "it is not there", "plug it in")
        if users := users_of(steps, spot):
            return Busy(users)
        way, refused = "", ""
        if spot.place.kind == "pci":
            way, refused = reset_function(steps, spot.path, ours)
        elif spot.place.kind == "usb_device":
            refused = steps.reset_port(spot.sysname, usb.node_of(steps, spot.path))
            way = "" if refused else "usb"
        if steps.has_ended():
            return None
        if refused or way in ("", "stub"):
            return NotBack(key, refused or NO_WAY, "detach what shares its bus, too, or switch the host off and on")
        return Done(self._driver_of(key), way)

    def look(self, key: DeviceKey) -> Seen:
        """What there is at a key now; nothing is written."""
        return seen(self._steps(UNDO_S), key)


def _with_carried(befores: Sequence[Before], paths: Mapping[DeviceKey, str]) -> list[Before]:
    """With those marked that sit below a PCI function which is handed over with them."""
    above = [paths[before.key] for before in befores if before.kind == "pci" and before.way and before.key in paths]
    return [
        msgspec.structs.replace(before, carried=True)
        if any(paths.get(before.key, "").startswith(f"{path}/") for path in above)
        else before
        for before in befores
    ]


def _help_in_use(users: Sequence[str]) -> str:
    return f"end what uses it ({', '.join(users)}); the kernel goes on then by itself, and {AGAIN}"
