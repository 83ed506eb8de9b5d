"""Domains in sentences, as histories tell of them."""

import pytest

from leasehold.events import event_types, inputs
from leasehold.events.event_types import DomainBond, Event
from leasehold.events.identities import DeviceKey, HostName
from leasehold.projections.telling import tell
from tests.past.domains import UUIDS, DomainLedger, domain, key_of

H1, UUID = HostName("h1"), UUIDS[1]
KEY, ID, CARD = key_of(UUID), f"h1/xen/{UUIDS[1]}", "pci/0000:01:00.0"
STICK = DeviceKey("usb/0000:00:14.0/2-1")


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (event_types.DomainAppeared(H1, "poller", domain()),
         f"web ({ID}) appeared: running, domid 5, hvm, memory 1024 MiB, vcpus 2"),
        (event_types.DomainAppeared(H1, "poller", domain(name="", domid=-1, state="dying", kind="", memory_bytes=0,
                                                         vcpus=0)), f"{ID} appeared: dying"),
        (event_types.DomainChanged(H1, domain(name="shop", memory_bytes=512 * 2**20 + 1), ("memory_bytes", "name"),
                                   {"name": "web"}),
         f"shop ({ID}) changed: memory is now 536870913 bytes, name is now shop, was web"),
        (event_types.DomainChanged(H1, domain(domid=-1, state="halted"), ("domid", "state"), {"state": "running"}),
         f"web ({ID}) changed: domid is now unknown, state is now halted, was running"),
        (event_types.DomainStarted(H1, domain(domid=7), 5, ("domid",)),
         f"web ({ID}) started as domid 7 (running) again; it was domid 5 before"),
        (event_types.DomainStarted(H1, domain(domid=7), -1, ("domid", "state", "vcpus")),
         f"web ({ID}) started as domid 7 (running), vcpus is now 2"),
        (event_types.DomainVanished(H1, KEY, "web", 5), f"web ({ID}) is not there any more (it was domid 5)"),
        (event_types.AttachmentSeen(H1, KEY, CARD, "attached", (DeviceKey(CARD),)), f"{ID} has {CARD}"),
        (event_types.AttachmentSeen(H1, KEY, "usb-port/1-1", "configured", (STICK,)),
         f"{ID} is configured with usb-port/1-1 ({STICK})"),
        (event_types.AttachmentGone(H1, KEY, CARD, "attached"), f"{ID} does not have {CARD} any more"),
        (event_types.AttachmentGone(H1, KEY, CARD, "configured"), f"{ID} is not configured with {CARD} any more"),
        (event_types.SourceWentBlind(H1, "poller", "no answer"),
         "poller on h1 cannot see what is there: no answer; nothing of the host is granted"),
        (event_types.SourceSeesAgain(H1, "poller"), "poller on h1 sees again what is there"),
        (event_types.LeaseOutlived(lease=512, domain=UUID, gone_since_ns=1),
         f"L512 ended: its domain {UUID} was there, and has been gone for too long"),
    ],
)  # fmt: skip
def test_sentences(event: Event, sentence: str) -> None:
    """Each says what is so now, and what was before where that is known."""
    assert tell(event, 256) == sentence


def test_names_and_bonds() -> None:
    """A state adds the name of a domain that is still there; a grant says for which domain it is, and until when."""
    ledger = DomainLedger()
    ledger.tell(H1, inputs.DomainSeen(domain()))
    seen = event_types.AttachmentSeen(H1, KEY, CARD, "attached")
    assert tell(seen, 256, ledger.state) == f"web ({ID}) has {CARD}"
    ledger.ask(ledger.request(f"h1/{CARD}", domain=UUID, gone_ms=90_000))
    (granted,) = (event for event in ledger.events if isinstance(event, event_types.LeaseGranted))
    assert isinstance(granted.bond, DomainBond)
    assert f", for 1 min, for domain {UUID} until 90 s after it is gone (" in tell(granted, 256)
    ledger.ask(ledger.request("h1/pci/0000:02:00.0", "h1/pci/0000:02:00.1", domain=UUID, keep=True))
    (granted,) = (event for event in ledger.events if isinstance(event, event_types.LeaseGranted))
    assert f", for domain {UUID} by name only (" in tell(granted, 256)
