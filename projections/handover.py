"""What is said between the binder and its machine: what to hand over, what was there before, and what came of it.

Words without deeds, so that the pure core (`handing`) speaks them, too.
"""

import msgspec

from leasehold.events.devices import DeviceDescription
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import DeviceKey


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A device that is to be handed over."""

    description: DeviceDescription
    """As the log has it: what sits there must be the same thing."""
    handover: Handover | None = None
    forced: bool = False
    """It may be handed over although the host itself needs it."""
    before: "Before | None" = None
    """What an earlier run noted of it for the same lease: it may have done a part, or all of it."""

    @property
    def key(self) -> DeviceKey:
        """Of the device."""
        return self.description.key


class VfNetwork(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a physical function has set for a virtual function of a network card, as `ip -j link` tells it."""

    function: DeviceKey
    """The physical function."""
    number: int
    """Of the virtual function, from 0."""
    mac: str = ""
    vlan: int = 0
    qos: int = 0
    protocol: str = ""
    """Of the VLAN tag, where it is said; empty: 802.1Q."""
    spoof_check: bool | None = None
    trust: bool | None = None
    """`None`: the card does not tell it."""
    link_state: str = ""
    rate_min: int = 0
    rate_max: int = 0
    """Mbit/s; 0: no limit."""


class Before(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a device was before the binder wrote anything to it: all that is needed to bring it back, whatever had been
    written when the binder was killed. It goes into the notes, durably, before the first write.
    """

    key: DeviceKey
    kind: str
    sysname: str
    """Of then: `0000:03:00.0`, `1-1.4`."""
    vendor_id: str = ""
    product_id: str = ""
    serial: str = ""
    driver: str = ""
    """What it was bound to; empty: to nothing."""
    override: str = ""
    """What its `driver_override` said; empty: nothing."""
    stub: str = ""
    """What it is bound to for the holder; empty: to nothing, as USB devices are."""
    way: str = ""
    """How the stub is made to take it: `override`, `new_id`, `slot`; empty: nothing need be written."""
    unmanaged: bool = False
    """It was on the stub already, and stays there."""
    carried: bool = False
    """It goes with a function that is handed over with it, and comes back with that: a stick behind its controller."""
    interfaces: dict[str, str] = {}
    """Of a USB device: the drivers of its interfaces (`1.0`: `usb-storage`); those that had none are left out."""
    network: VfNetwork | None = None
    virtual_functions: int = 0
    """So many it had: they go when its host driver does."""


class PreparedDevice(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A device that is ready for its holder, as the word `Prepared` tells it."""

    key: DeviceKey
    driver: str = ""
    was_driver: str = ""
    reset: str = ""


class Ready(msgspec.Struct, frozen=True):
    """All of them are ready. It was looked whether they are."""

    devices: tuple[PreparedDevice, ...]


class NotBack(msgspec.Struct, frozen=True):
    """A device cannot be brought back into the state that it should have."""

    key: DeviceKey
    reason: str
    help: str
    """The way out, for an administrator."""


class Failed(msgspec.Struct, frozen=True):
    """None of them is handed over. What had been done was undone, but for what `left` names."""

    key: DeviceKey
    """Because of which device."""
    reason: str
    left: tuple[NotBack, ...] = ()


class Back(msgspec.Struct, frozen=True):
    """The device is the host's again. It was looked whether it is."""

    driver: str = ""
    """What it is bound to now; empty: to nothing, or it is not there."""
    reset: str = ""


class Busy(msgspec.Struct, frozen=True):
    """Somebody still uses the device, so nothing was done: ask again later."""

    who: tuple[str, ...]


class Done(msgspec.Struct, frozen=True):
    """An administrator's order was carried out."""

    driver: str = ""
    reset: str = ""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What there is at a key now."""

    key: DeviceKey
    path: str = ""
    """In sysfs; empty: nothing is there."""
    driver: str = ""
    override: str = ""
    vendor_id: str = ""
    product_id: str = ""
    serial: str = ""
    users: tuple[str, ...] = ()
    """Who is seen using it, as in `DeviceDescription.in_use_by`."""
