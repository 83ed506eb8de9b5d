"""What a network interface does by itself for the processor (checksums, segmentation, …), in libvirt's words.

The kernel has it for ethtool only, and since Linux 5.15 it wakes the hardware below an interface for whatever ethtool
asks (`dev_ethtool`, `net/ethtool/ioctl.c`). So what sleeps is not asked, and keeps what was known of it. Bits are found
by their names, as they move between kernels: libvirt 9.0 takes bit 25 for `txudptnl`, which is bit 26 in Linux 6.18.

Sources: `include/uapi/linux/ethtool.h`, `net/ethtool/common.c` for the names; libvirt 9.0 `src/util/virnetdev.c`.
"""

import array
import fcntl
import functools
import socket
import struct
from functools import partial
from typing import Final

from leasehold.services.watcher.describing.kept import Kept
from leasehold.services.watcher.sysfs import check_means, read_int

SIOCETHTOOL: Final = 0x8946
ETHTOOL_GSTRINGS: Final = 0x1B
ETHTOOL_GSSET_INFO: Final = 0x37
ETHTOOL_GFEATURES: Final = 0x3A
ETH_SS_FEATURES: Final = 4
"""The set of the features' names."""
NAME_BYTES: Final = 32
FEATURES_MAX: Final = 512
INTERFACE_BYTES_MAX: Final = 15
_WORDS: Final = {
    "gro": ("rx-gro",),
    "gso": ("tx-generic-segmentation",),
    "lro": ("rx-lro",),
    "ntuple": ("rx-ntuple-filter",),
    "rx": ("rx-checksum",),
    "rxhash": ("rx-hashing",),
    "rxvlan": ("rx-vlan-hw-parse",),
    "sg": ("tx-scatter-gather", "tx-scatter-gather-fraglist"),
    "tso": (
        "tx-tcp-segmentation",
        "tx-tcp-ecn-segmentation",
        "tx-tcp-mangleid-segmentation",
        "tx-tcp6-segmentation",
    ),
    "tx": (
        "tx-checksum-ipv4",
        "tx-checksum-ip-generic",
        "tx-checksum-ipv6",
        "tx-checksum-fcoe-crc",
        "tx-checksum-sctp",
    ),
    "txudptnl": ("tx-udp_tnl-segmentation",),
    "txvlan": ("tx-vlan-hw-insert",),
}
"""libvirt's words, sorted, each with the kernel's, of which one is enough."""
_REQUEST: Final = struct.Struct("16sP16x")
"""`struct ifreq`: the interface's name, and where the rest is."""

_known: Final[Kept[tuple[str, ...]]] = Kept()


def features_of(path: str, unknown: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The features that are on, sorted, of the interface of this process's network that is at `path` in /sys.

    `unknown`: what is said of one that sleeps and was not asked yet.
    """
    interface = (path, read_int(f"{path}/ifindex"))
    # It can be told to do otherwise at any time, so what is awake is asked at each look.
    return _known.of(interface, f"{path}/device", partial(_ask, path.rpartition("/")[2]), unknown, mark=object())


def _ask(interface: str) -> tuple[str, ...]:
    if len(interface.encode()) > INTERFACE_BYTES_MAX:
        return ()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
            names = _names(asked.fileno(), interface)
            blocks = -(-len(names) // 32)
            told = _tell(asked.fileno(), interface, struct.pack("=II", ETHTOOL_GFEATURES, blocks), 16 * blocks)
    except OSError as error:
        check_means(error)
        return ()
    active = [struct.unpack_from("=I", told, 8 + 16 * block + 8)[0] for block in range(blocks)]
    on = {name for number, name in enumerate(names) if active[number // 32] >> number % 32 & 1}
    return tuple(word for word, kernels in _WORDS.items() if not on.isdisjoint(kernels))


@functools.cache
def _feature_names() -> list[str]:
    """Of the running kernel, by bit; empty until an interface was asked for them."""
    return []


def _names(descriptor: int, interface: str) -> list[str]:
    """The names of all features, by bit: the same for every interface."""
    names = _feature_names()
    if not names:
        ask = struct.pack("=IIQ", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES)
        (count,) = struct.unpack_from("=I", _tell(descriptor, interface, ask, 4), len(ask))
        count = min(count, FEATURES_MAX)
        ask = struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count)
        told = _tell(descriptor, interface, ask, NAME_BYTES * count)[len(ask) :]
        texts = (told[at : at + NAME_BYTES] for at in range(0, NAME_BYTES * count, NAME_BYTES))
        names[:] = [text.split(b"\0", 1)[0].decode("ascii", "replace") for text in texts]
    return names


def _tell(descriptor: int, interface: str, asked: bytes, more: int) -> bytes:
    """The answer to a request that has room for `more` bytes behind it."""
    buffer = array.array("B", asked + bytes(more))
    fcntl.ioctl(descriptor, SIOCETHTOOL, _REQUEST.pack(interface.encode(), buffer.buffer_info()[0]))
    return buffer.tobytes()
