"""A small fixed scenario, run as a program: prints the hash of each record and of the state in the end."""

import hashlib
import sys

from leasehold.events import inputs
from leasehold.events.identities import DeviceKey, Holder
from leasehold.projections.history import index_rows
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import encode_state
from tests.projections.domains import OTHER, UUID, Polled, described, key, unused, used
from tests.projections.ledger import SECOND, B, Ledger, ledger_with_hosts


def play() -> Ledger:
    """Leases, refusals, an expiry, a replaced device, a gap, domains and what they use, with many names in a record."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", "02:00.0", "02:00.1", "2-1.1")
    for number in range(8):
        holder = Holder(f"vm{number}")
        ledger.sequencer.ask(
            1_000 + number, B, ledger.request("h1/pci/0000:04:00.0", "pci_0000_06_00_0", holder=holder)
        )
    ledger.commit()
    ledger.sequencer.replies.clear()
    lease = ledger.granted("0a:00.0", "03:10.0", "03:10.1", principal=B)
    ledger.change("0a:00.0", product_id="1572")
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:03:10.0")), inputs.DeviceGone(DeviceKey("pci/0000:07:00.0")))
    ledger.release(lease, B)
    _play_domains(ledger)
    ledger.observe(inputs.StillHere(), skip=2)
    ledger.tick(3_600)
    ledger.now_ns += 26 * 3_600 * SECOND
    ledger.lease("01:00.0")
    return ledger


def _play_domains(ledger: Ledger) -> None:
    poller = Polled(ledger)
    for number in range(8):
        ledger.lease("2-2", domain=UUID, gone_ms=1_000, holder=Holder(f"vm{number}"))
    words = [f"pci/0000:{number:02x}:00.0" for number in range(2, 14)]
    poller.say(inputs.DomainSeen(described()), *map(used, words), *(used(word, use="configured") for word in words))
    poller.say(inputs.DomainSeen(described(OTHER, name=UUID)), *(used(word, OTHER) for word in reversed(words)))
    ledger.lease("02:00.0")
    poller.say(*map(unused, words[:6]), inputs.DomainGone(key(OTHER)), inputs.DomainSeen(described(domid=-1)))
    ledger.tick(3_600)


def main() -> int:
    """Print what must not depend on the process."""
    ledger = play()
    replay = Replay()
    for sequence, body in enumerate(ledger.bodies, 1):
        print(sequence, hashlib.sha256(body).hexdigest(), replay.step(sequence, body))
    for number, event in enumerate(ledger.events):
        print([tuple(row) for row in index_rows(ledger.state, number, event)])
    print(hashlib.sha256(encode_state(ledger.state)).hexdigest(), replay.events)
    return 0


if __name__ == "__main__":
    sys.exit(main())
