"""What is read from rtnetlink: messages as the kernel writes them, and blocks of anything. Real ones: `tests/live`."""

import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.services.watcher import links
from leasehold.services.watcher.links import (
    IFF_RUNNING,
    IFLA_IFNAME,
    IFLA_MASTER,
    RTM_DELLINK,
    RTM_NEWLINK,
    LinkEvents,
    links_in,
)


def message(
    name: str,
    *,
    index: int = 7,
    up: bool = False,
    kind: int = RTM_NEWLINK,
    family: int = 0,
    port: int = 0,
    master: int = 0,
) -> bytes:
    """One as the kernel writes it: header, link, attributes that are padded to four bytes."""
    body = struct.pack("=BxHiII", family, 1, index, IFF_RUNNING if up else 0, 0)
    for number, value in ((IFLA_IFNAME, name.encode() + b"\0"), (IFLA_MASTER, struct.pack("=I", master)), (99, b"x")):
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, port) + body


@given(st.binary(max_size=200))
def test_any_block_is_read_to_its_end(block: bytes) -> None:
    """Whatever stands in it, reading ends and raises nothing; what is broken behind a message takes nothing from it."""
    list(links_in(block))
    found = list(links_in(message("eth0", up=True) + block))
    assert (found[0].name, found[0].index, found[0].is_up) == ("eth0", 7, True)


def test_all_messages_of_a_block_are_read() -> None:
    """In order, past those that are no links; one of a bridge about its port is not the port's end."""
    other = struct.pack("=IHHII", 20, 3, 0, 0, 0) + b"done"
    gone = message("a", kind=RTM_DELLINK)
    left = message("b", kind=RTM_DELLINK, family=socket.AF_UNSPEC + 7)
    assert [(link.name, link.is_gone) for link in links_in(other + gone + left)] == [("a", True), ("b", False)]


@pytest.fixture
def events() -> Iterator[LinkEvents]:
    """A real socket, which needs no rights; its answers are taken before anything else is told."""
    events = LinkEvents()
    while events.read().news:
        pass
    yield events
    events.close()


def told(events: LinkEvents, *messages: bytes) -> list[tuple[str, str, bool]]:
    """What is made of these: name, action, whether it came since the start."""
    found = [news for block in messages for link in links_in(block) if (news := events._news(link)) is not None]
    return [(news.name, news.action, news.is_new) for news in found]


def test_only_what_is_new_of_a_link_is_told(events: LinkEvents) -> None:
    """A link that comes, goes or is renamed is the uevents' business, and what repeats itself nobody's."""
    index = 2**30
    down, up = message("v0", index=index), message("v0", index=index, up=True)
    assert told(events, down, down) == []
    assert told(events, up, up, down) == [("v0", "link_up", True), ("v0", "link_down", True)]
    assert told(events, message("v0", index=index, master=3)) == [("v0", "link", True)]
    assert told(events, message("w0", index=index, up=True)) == []
    assert told(events, message("w0", index=index, kind=RTM_DELLINK), up) == []


def test_answers_to_our_own_question_are_no_news(events: LinkEvents) -> None:
    """They say where the memory begins; of such a link it is known that it is not new."""
    index = 2**30
    assert told(events, message("v0", index=index, port=events._port)) == []
    assert told(events, message("v0", index=index, up=True, port=events._port)) == []
    assert told(events, message("v0", index=index)) == [("v0", "link_down", False)]


def test_memory_is_bounded(events: LinkEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more links than can be remembered nothing is told: the next look by the clock sees them."""
    monkeypatch.setattr(links, "LINKS_KNOWN_MAX", len(events._known) + 2)
    assert told(events, *(message(f"v{n}", index=2**30 + n) for n in range(5))) == []
    assert len(events._known) == links.LINKS_KNOWN_MAX
    assert len(events._new) <= links.LINKS_KNOWN_MAX
    assert told(events, *(message(f"v{n}", index=2**30 + n, up=True) for n in range(5))) == [
        ("v0", "link_up", True),
        ("v1", "link_up", True),
    ]
