"""What the kernel says of network links: a link that goes up or down makes no uevent, but a message of rtnetlink.

Of a message only the interface's name is taken, and whether its link is up; what is so is read from sysfs by the next
look. What says nothing new of a link (a Wi-Fi scan sends some such) is passed over, so the last of each is remembered.
After the start, and after an overrun, the kernel is asked for all links: the answers are where the memory begins, and
no news.

Sources: rtnetlink(7), netlink(7), Linux' `include/uapi/linux/{netlink,rtnetlink,if_link}.h`.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from leasehold.events import limits

RTMGRP_LINK: Final = 1
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
NLM_F_REQUEST: Final = 0x001
NLM_F_DUMP: Final = 0x300
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_MASTER: Final = 10
IFLA_OPERSTATE: Final = 16
IFF_RUNNING: Final = 0x40
"""The link can carry something: its state (RFC 2863) is up or unknown."""
_KEPT: Final = (IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_OPERSTATE)
_KEPT_FLAGS: Final = 0x1 | IFF_RUNNING
"""IFF_UP: somebody wants it up."""
_HEADER: Final = struct.Struct("=IHHII")
"""Length, type, flags, number, port."""
_LINK: Final = struct.Struct("=BxHiII")
"""Family, type, index, flags, what changed of these."""
_ATTRIBUTE: Final = struct.Struct("=HH")
MESSAGE_BYTES_MAX: Final = 1 << 18
"""Of one block: the kernel puts several answers into 32 KiB, and one link with many virtual functions takes more."""
BLOCKS_PER_WAKE_MAX: Final = 64
BUFFER_BYTES: Final = 16 * 1024 * 1024
"""Room for some 7,000 messages, each of which counts with 2.3 KiB; only root gets all of it."""
LINKS_KNOWN_MAX: Final = limits.DEVICES_PER_HOST_MAX
SO_RCVBUFFORCE: Final = 33
"""socket(7); Python has no name for it."""


class Link(msgspec.Struct, frozen=True):
    """What one message says of one link."""

    index: int
    name: str
    is_up: bool
    is_gone: bool
    said: tuple[bytes, ...]
    """All that is kept of it; equal words are no news."""
    asked_by: int
    """The port of whoever's question is answered, or who caused it; 0: nobody."""


class LinkNews(msgspec.Struct, frozen=True):
    """What is new of a link. `action`: `link_up`, `link_down`, or `link` for anything else."""

    name: str
    action: str
    index: int
    is_new: bool
    """It came since we listen."""


class Heard(msgspec.Struct, frozen=True):
    """What was read at once."""

    news: list[LinkNews]
    lost: bool = False
    """Messages were lost."""


def links_in(block: bytes) -> Iterator[Link]:
    """The links that a block of messages is about."""
    at = 0
    while at + _HEADER.size <= len(block):
        length, kind, _flags, _sequence, port = _HEADER.unpack_from(block, at)
        if length < _HEADER.size:
            return
        body = block[at + _HEADER.size : at + length]
        if kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= _LINK.size:
            yield _link(body, kind, port)
        at += (length + 3) & ~3


def _link(body: bytes, kind: int, port: int) -> Link:
    family, _type, index, flags, _change = _LINK.unpack_from(body)
    told: dict[int, bytes] = {}
    at = _LINK.size
    while at + _ATTRIBUTE.size <= len(body):
        length, attribute = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if attribute in _KEPT:
            told[attribute] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return Link(
        index=index,
        name=told.get(IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
        is_up=bool(flags & IFF_RUNNING),
        # With a message of another family a bridge tells that a port leaves it; the link stays.
        is_gone=kind == RTM_DELLINK and family == socket.AF_UNSPEC,
        said=(b"%d" % (flags & _KEPT_FLAGS), *(told.get(attribute, b"") for attribute in _KEPT)),
        asked_by=port,
    )


class LinkEvents:
    """A socket that hears of links. Not for two threads at once."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._known: dict[int, Link] = {}
        self._new: set[int] = set()
        """Of those that are known."""
        try:
            self._make_room()
            self._socket.bind((0, RTMGRP_LINK))
            self._port = self._socket.getsockname()[0]
            self.begin_anew()
        except OSError:
            self._socket.close()
            raise

    def _make_room(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)

    def begin_anew(self) -> None:
        """Have the kernel tell of all links, into this same socket; none of them counts as new. Raises OSError."""
        self._known.clear()
        self._new.clear()
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        self._socket.sendto(header + body, (0, 0))

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def read(self) -> Heard:
        """The news that wait, of some messages at most; what waits longer keeps the socket readable.

        Raises OSError: the socket is of no use any more.
        """
        news: list[LinkNews] = []
        for _ in range(BLOCKS_PER_WAKE_MAX):
            try:
                block = self._socket.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # The kernel tells an overrun once and goes on; what is remembered may be wrong now.
                self.begin_anew()
                return Heard(news, lost=True)
            news += [each for link in links_in(block) if (each := self._news(link)) is not None]
        return Heard(news)

    def _news(self, link: Link) -> LinkNews | None:
        before = self._known.pop(link.index, None)
        is_answer = link.asked_by == self._port
        if link.is_gone:
            self._new.discard(link.index)
        elif len(self._known) < LINKS_KNOWN_MAX:
            self._known[link.index] = link
            if before is None and not is_answer:
                self._new.add(link.index)
        if before is None or link.is_gone or is_answer or link.name != before.name or link.said == before.said:
            # Links that come, go or get another name make uevents, which udevd may still have to deal with.
            return None
        action = "link" if link.is_up == before.is_up else "link_up" if link.is_up else "link_down"
        return LinkNews(link.name, action, link.index, link.index in self._new)

    def close(self) -> None:
        """Hear nothing more."""
        self._socket.close()
