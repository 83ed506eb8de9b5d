"""Say an event as udevd says it, to all that listen to udevd in this network namespace: `ACTION DEVPATH KEY=VALUE…`.

The message is a header and the properties, each ended by a zero byte, to group 2 of the netlink family of kernel events
(systemd 252, `src/libsystemd/sd-device/device-monitor.c`); listeners take it from root only.
"""

import socket
import struct
import sys
from typing import Final

NETLINK_KOBJECT_UEVENT: Final = 15
GROUP_OF_UDEVD: Final = 2
_HEADER: Final = struct.Struct("=8sIIIIIIII")
_MAGIC: Final = 0xFEEDCAFE


def message(properties: list[str]) -> bytes:
    """The event as bytes. Its hashes are for filters of listeners, and nobody here has one."""
    body = b"".join(each.encode() + b"\0" for each in properties)
    magic = int.from_bytes(_MAGIC.to_bytes(4, "big"), sys.byteorder)
    return _HEADER.pack(b"libudev", magic, _HEADER.size, _HEADER.size, len(body), 0, 0, 0, 0) + body


def main(words: list[str]) -> int:
    """Say it."""
    action, path, *properties = words
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as said:
        said.bind((0, 0))
        told = [f"ACTION={action}", f"DEVPATH={path}", "SEQNUM=1000000", *properties]
        said.sendto(message(told), (0, GROUP_OF_UDEVD))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
