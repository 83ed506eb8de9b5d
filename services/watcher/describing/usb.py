"""USB devices and their interfaces. All of it is what the kernel has read when the device was plugged in."""

import os
import re
from typing import Final

from leasehold.events.capabilities import UsbDevice, UsbInterface
from leasehold.events.devices import DeviceDescription
from leasehold.services.watcher.describing.look import (
    Look,
    described,
    devnodes,
    hex_id,
    kernel_says,
    node_of,
    small_int,
)
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import link_target, read_int, read_text

HUB_CLASS: Final = 0x09
SPEED_KBPS_MAX: Final = 10**9
_PORT: Final = re.compile(r".*-port([1-9][0-9]{0,2})")


def describe_usb_device(look: Look, place: Place) -> DeviceDescription:
    """A USB device."""
    path = place.path
    vendor_id, product_id = hex_id(f"{path}/idVendor"), hex_id(f"{path}/idProduct")
    properties = look.properties(place)
    vendor_name, product_name = look.names.of("usb", vendor_id, product_id, properties)
    device_class = small_int(f"{path}/bDeviceClass", 16)
    return described(
        look,
        place,
        vendor_id=vendor_id,
        product_id=product_id,
        vendor_name=vendor_name,
        product_name=product_name,
        serial=read_text(f"{path}/serial"),
        hub=device_class == HUB_CLASS,
        devnodes=devnodes(node_of(kernel_says(path)), properties),
        capability=UsbDevice(
            bus=small_int(f"{path}/busnum"),
            device=small_int(f"{path}/devnum"),
            device_class=device_class,
            speed_kbps=_speed_kbps(read_text(f"{path}/speed", 16)),
            usb_version=read_text(f"{path}/version"),
            device_version=read_text(f"{path}/bcdDevice"),
            manufacturer=read_text(f"{path}/manufacturer"),
            product=read_text(f"{path}/product"),
            authorized=read_int(f"{path}/authorized", absent=1) != 0,
            peer=_peer(look, place),
        ),
    )


def _peer(look: Look, place: Place) -> str:
    """The key of the port at the other half of its socket: USB 2 and USB 3 have a bus each, and a hub of both is on
    both. Ports are shown by the kernel (3.16 on) below their hub, and lead to their peers (`drivers/usb/core/port.c`).
    """
    port = link_target(f"{link_target(f'{place.path}/port')}/peer")
    matched = _PORT.fullmatch(os.path.basename(port))
    hub = look.places.get(os.path.dirname(os.path.dirname(port)))
    if matched is None or hub is None or hub.kind != "usb_device":
        return ""
    above, number = hub.key, matched[1]
    return f"{above[:-1]}{number}" if above.endswith("-0") else f"{above}.{number}"


def _speed_kbps(text: str) -> int:
    """Of `1.5`, `480`, `5000` Mbit/s; -1 of `unknown`."""
    whole, _, part = text.partition(".")
    if not (whole.isdecimal() and whole.isascii() and (not part or (part.isdecimal() and part.isascii()))):
        return -1
    speed_kbps = int(whole) * 1_000 + int(part[:3].ljust(3, "0"))
    return speed_kbps if speed_kbps <= SPEED_KBPS_MAX else -1


def describe_usb_interface(look: Look, place: Place) -> DeviceDescription:
    """An interface has the ids of its device, so that another device in the same port makes other interfaces."""
    path = place.path
    device = os.path.dirname(path)
    return described(
        look,
        place,
        vendor_id=hex_id(f"{device}/idVendor"),
        product_id=hex_id(f"{device}/idProduct"),
        capability=UsbInterface(
            number=small_int(f"{path}/bInterfaceNumber", 16),
            interface_class=small_int(f"{path}/bInterfaceClass", 16),
            subclass=small_int(f"{path}/bInterfaceSubClass", 16),
            protocol=small_int(f"{path}/bInterfaceProtocol", 16),
            description=read_text(f"{path}/interface"),
        ),
    )
