"""The machine, as the binder acts on it: hands devices over to holders and takes them back, blocking, on a thread of
the caller's choice.

Nothing is believed that was only written: the kernel takes a name in `driver_override` and a probe in `drivers_probe`
whether a driver comes of it or not, so that each step ends by reading the `driver` link. Each write has a bounded time;
one from which the kernel does not come back keeps a thread, and nothing else is written to that device before it does.
"""

import threading
from collections.abc import Callable, Collection, Sequence

from leasehold.events import limits
from leasehold.events.identities import DeviceKey
from leasehold.services.binder.handover import Back, Before, Busy, Done, Failed, NotBack, Ready, Seen, Target
from leasehold.services.creator.attempt import Write, write_attribute
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot

Note = Callable[[Sequence[Before]], None]
"""Makes durable what devices were before, before the first write. Raises OSError: then nothing is written."""
Run = Callable[[Sequence[str]], str]
"""Runs one of the host's own tools (`ip`, `modprobe`, `xenstore-ls`), and gives what it wrote. Raises OSError."""


def run_tool(words: Sequence[str]) -> str:
    """Run a tool of this machine within `TOOL_S` seconds.

    Raises:
        OSError: it is not there, failed, or took too long; with what it said.
    """
    raise NotImplementedError


def reset_usb(path: str) -> None:
    """Reset the USB device whose node is at `path` (`/dev/bus/usb/001/005`): ioctl `USBDEVFS_RESET`.

    Raises:
        OSError: the kernel refused.
    """
    raise NotImplementedError


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
        """`root`: the machine; `write`: how its kernel is told; `stub`: what PCI functions are bound to unless a lease
        says otherwise, one of `hostdevs.STUBS`; `ends`: set at the agent's end, which ends all waits.
        """

    def prepare(
        self, targets: Sequence[Target], *, note: Note, time_s: float = limits.PREPARE_TIMEOUT_MS / 1000
    ) -> Ready | Failed | None:
        """Hand over all these devices of one lease, or none.

        Everything is checked first, and nothing written meanwhile; then `note` is called once with what all of them
        were before; then they are bound to their stubs, then reset, then looked at. What fails undoes everything.
        To be called again after a kill, with what was noted (`Target.before`).

        Returns:
            `None`: the agent ends before it is known. What was begun stands in the notes.
        """
        raise NotImplementedError

    def take_back(
        self,
        before: Before,
        *,
        ours: Collection[DeviceKey] = (),
        forced: bool = False,
        time_s: float = limits.GIVE_BACK_TIMEOUT_MS / 1000,
    ) -> Back | Busy | NotBack | None:
        """Give a device to the host again: reset, bound to what it was bound to before, and looked at.

        It does no harm where nothing, or a part, or all of it was done already. A device that is not there, or another
        thing in its place, is given back: nothing of what was done to it is left.

        Args:
            before: as it was noted.
            ours: which devices a reset may hit besides: those of the same lease, or of none, that nobody uses.
            forced: although somebody uses it. A kernel asks a vfio user to let go, and waits for that.
            time_s: the time that it may take.

        Returns:
            `None`: the agent ends before it is known.
        """
        raise NotImplementedError

    def detach(
        self, target: Target, *, note: Note, time_s: float = limits.PREPARE_TIMEOUT_MS / 1000
    ) -> Ready | Failed | None:
        """As virsh's nodedev-detach: as `prepare` of this one, but without a reset."""
        raise NotImplementedError

    def reattach(
        self, key: DeviceKey, before: Before | None = None, *, time_s: float = limits.GIVE_BACK_TIMEOUT_MS / 1000
    ) -> Back | Busy | NotBack | None:
        """As virsh's nodedev-reattach: from its stub, to what it was bound to before, or else to what the kernel finds
        for it. One that is on its host driver stays there.
        """
        raise NotImplementedError

    def reset(
        self,
        key: DeviceKey,
        *,
        ours: Collection[DeviceKey] = (),
        time_s: float = limits.GIVE_BACK_TIMEOUT_MS / 1000,
    ) -> Done | Busy | NotBack | None:
        """As virsh's nodedev-reset. `ours` as of `take_back`."""
        raise NotImplementedError

    def look(self, key: DeviceKey) -> Seen:
        """What there is at a key now; nothing is written."""
        raise NotImplementedError
