"""An event of the feed says what its message says, whenever it is asked."""

from leasehold.events.cloudevents import Attributes, header_lines
from leasehold.services.feedevents import FeedEvent, Log

SUBJECT = b"leasehold.test.evt.h1.device_freed.pci/0000:01:00%2E0.L300.team1"
SAID = Attributes(
    cluster="test", ledger_id="0123456789abcdef", era=2, position=301, part=0, parts=1, previous=300,
    tag="device_freed.v1", at_ns=1_795_250_582_000_000_009, tenant="team1", cause="p@team1/ask 1",
)  # fmt: skip


def event(sequence: int, era: int = SAID.era) -> FeedEvent:
    """As the server gives it from a place in its stream."""
    said = Attributes(**{name: getattr(SAID, name) for name in Attributes.__struct_fields__} | {"era": era})
    headers = f"NATS/1.0\r\n{header_lines(said)}Nats-Sequence: {sequence}\r\n\r\n".encode()
    return FeedEvent(SAID.position, SUBJECT, b'{"type":"not_of_this_build.v1"}', headers)


def test_it_says_what_its_message_says() -> None:
    """Names out of the subject, with their own dots; the rest out of the headers, decoded; a body of another build."""
    found = event(1)
    assert (found.host, found.device, found.lease) == ("h1", "h1/pci/0000:01:00.0", "L300")
    assert (found.type, found.tenant, found.cause) == ("device_freed.v1", "team1", "p@team1/ask 1")
    assert (found.at_ns, found.log) == (SAID.at_ns, Log(SAID.ledger_id, 2))
    assert found.event is None
    assert bytes(found.data) == found.body


def test_where_it_was_read_makes_no_difference() -> None:
    """Heard live, or read from another place of a stream that was told anew, it is the same event; of another era it
    is not.
    """
    assert event(1) == event(2)
    assert len({event(1), event(2)}) == 1
    assert event(1) != event(1, era=3)
