"""Of what kind network interfaces are (`veth`, `vlan`, `macvlan`), and what makes a VLAN: sysfs does not say it.

The kernel is asked for all links at once, which anybody may. Of an imitated machine only its VLANs are known.

Sources: rtnetlink(7), Linux' `include/uapi/linux/{netlink,rtnetlink,if_link}.h`, 8021q's `vlanproc.c`.
"""

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from leasehold.events.errors import UnavailableError
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot, clean, read_table, to_int

RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
NLMSG_DONE: Final = 3
NLMSG_ERROR: Final = 2
NLM_F_REQUEST: Final = 0x001
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_DUMP: Final = 0x300
IFLA_IFNAME: Final = 3
IFLA_LINK: Final = 5
IFLA_LINKINFO: Final = 18
IFLA_EXT_MASK: Final = 29
IFLA_LINK_NETNSID: Final = 37
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_VLAN_ID: Final = 1
IFLA_VLAN_PROTOCOL: Final = 5
RTEXT_FILTER_SKIP_STATS: Final = 8
BLOCK_BYTES_MAX: Final = 1 << 18
BLOCKS_MAX: Final = 16_384
DUMPS_MAX: Final = 3
TIMEOUT_S: Final = 2.0
_NOT_FOR_US: Final = frozenset({errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
VLAN_PROTOCOLS: Final = {0x8100: "802.1Q", 0x88A8: "802.1ad"}

_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_WANTED: Final = frozenset({IFLA_IFNAME, IFLA_LINK, IFLA_LINKINFO, IFLA_LINK_NETNSID})
_TYPE_BITS: Final = 0x3FFF
"""The two bits above say how an attribute is packed."""


class LinkKind(msgspec.Struct, frozen=True, kw_only=True):
    """One interface. `lower`: the name of the one that it lies on, where that is of the same network namespace."""

    kind: str = ""
    lower: str = ""
    vlan_id: int = -1
    vlan_protocol: str = ""


_ORDINARY: Final = LinkKind()
LinkKinds = dict[str, LinkKind]
"""By the interface's name."""


def link_kinds(root: HostRoot) -> LinkKinds:
    """Of a machine's interfaces; empty where the kernel may not be asked.

    Raises UnavailableError: it does not answer now.
    """
    if root.sys != THIS_MACHINE.sys:
        return listed_vlans(root)
    try:
        return _asked_kinds()
    except OSError as error:
        if error.errno in _NOT_FOR_US:
            return {}
        raise UnavailableError(f"the kernel does not tell its links now: {error}") from error


def _asked_kinds() -> LinkKinds:
    found: LinkKinds = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.settimeout(TIMEOUT_S)
        for number in range(DUMPS_MAX):
            block = _all_links(asking, number)
            found |= kinds_in(block)
            if not is_interrupted(block):
                break
    return found


def listed_vlans(root: HostRoot) -> LinkKinds:
    """The VLANs of /proc/net/vlan/config: `eth0.10 | 10 | eth0`, behind two lines of heading."""
    found: LinkKinds = {}
    for line in read_table(root.proc / "net/vlan/config")[2:]:
        name, _, rest = line.partition("|")
        number, _, lower = rest.partition("|")
        if lower:
            vlan_id = to_int(number)
            found[name.strip()] = LinkKind(
                kind="vlan", lower=lower.strip(), vlan_id=vlan_id if 0 <= vlan_id < 4_096 else -1
            )
    return found


def _all_links(asking: socket.socket, number: int) -> bytes:
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + struct.pack("=HHI", 8, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    header = _HEADER.pack(_HEADER.size + len(body), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, number, 0)
    blocks: list[bytes] = []
    asking.sendto(header + body, (0, 0))
    while len(blocks) < BLOCKS_MAX:
        block = asking.recv(BLOCK_BYTES_MAX)
        blocks.append(block)
        if not block or any(kind in (NLMSG_DONE, NLMSG_ERROR) for kind, _, _, _ in _messages(block)):
            break
    return b"".join(blocks)


def is_interrupted(block: bytes) -> bool:
    """Whether links came or went while the kernel told them: it may have passed over some that were there all the time
    (before Linux 6.8), so it is asked again.
    """
    return any(flags & NLM_F_DUMP_INTR for _, flags, _, _ in _messages(block))


def kinds_in(block: bytes) -> LinkKinds:
    """The interfaces of a block of messages."""
    found: LinkKinds = {}
    names: dict[int, str] = {}
    lower: dict[str, int] = {}
    for kind, _, start, end in _messages(block):
        if kind != RTM_NEWLINK or end - start < _LINK.size:
            continue
        told = _attributes(block, start + _LINK.size, end, _WANTED)
        name = told.get(IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")
        names[_LINK.unpack_from(block, start)[2]] = name
        if IFLA_LINK in told and IFLA_LINK_NETNSID not in told:
            lower[name] = int.from_bytes(told[IFLA_LINK], "little")
        found[name] = _kind(told.get(IFLA_LINKINFO, b""))
    for name, index in lower.items():
        found[name] = msgspec.structs.replace(found[name], lower=names.get(index, ""))
    return found


def _kind(info: bytes) -> LinkKind:
    told = _attributes(info, 0, len(info), (IFLA_INFO_KIND, IFLA_INFO_DATA))
    kind = clean(told.get(IFLA_INFO_KIND, b"").rstrip(b"\0"), 32)
    if kind != "vlan":
        return _ORDINARY if not kind else LinkKind(kind=kind)
    data = told.get(IFLA_INFO_DATA, b"")
    vlan = _attributes(data, 0, len(data), (IFLA_VLAN_ID, IFLA_VLAN_PROTOCOL))
    number, protocol = vlan.get(IFLA_VLAN_ID, b""), vlan.get(IFLA_VLAN_PROTOCOL, b"")
    return LinkKind(
        kind=kind,
        vlan_id=int.from_bytes(number, "little") & 0xFFF if number else -1,
        vlan_protocol=VLAN_PROTOCOLS.get(int.from_bytes(protocol, "big"), ""),
    )


def _messages(block: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Of each message its type and flags, and where its body begins and ends."""
    at = 0
    while at + _HEADER.size <= len(block):
        length, kind, flags, _sequence, _port = _HEADER.unpack_from(block, at)
        if length < _HEADER.size:
            return
        yield kind, flags, at + _HEADER.size, min(at + length, len(block))
        at += (length + 3) & ~3


def _attributes(block: bytes, at: int, end: int, wanted: Collection[int]) -> dict[int, bytes]:
    """Those that are wanted; the others are stepped over, as a link has dozens."""
    found: dict[int, bytes] = {}
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(block, at)
        if length < _ATTRIBUTE.size:
            break
        if kind & _TYPE_BITS in wanted:
            found[kind & _TYPE_BITS] = block[at + _ATTRIBUTE.size : min(at + length, end)]
        at += (length + 3) & ~3
    return found
