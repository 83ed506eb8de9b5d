"""How fast a ledger grows by renewals alone, by the ways in which they come: `python -m tests.scheduling.growth`."""

import argparse
import random
from collections.abc import Iterator
from typing import Final

import msgspec

from leasehold.events import inputs, limits
from leasehold.events.identities import RequestId
from leasehold.events.inputs import Request
from leasehold.events.schedule_inputs import RenewManyRequest
from leasehold.projections.sequencer import Sequencer
from tests.projections.ledger import H1, SECOND, A, Ledger, pci

WAYS: Final = {
    "each by itself, all written": "as before these rules",
    "each by itself": "what changes nothing is not written",
    "many at once": f"up to {limits.RENEWALS_PER_REQUEST_MAX} leases of one client by one request",
}
RENEWED_AT: Final = (0.25, 0.4)
"""At which parts of a lease's time clients renew it."""


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """What renewals made of a ledger within an hour, reckoned for so many leases."""

    way: str
    leases: int
    requests: int
    records: int
    bytes: int


def measure(way: str, *, leases: int = 1_000, as_if: int = 10_000, ttl_s: int = 60, minutes: int = 10) -> Growth:
    """Renew `leases` for so many minutes, and reckon what an hour of `as_if` of them would be; whoever has renewed them
    one by one is taken for many clients, whose requests of a tenth of a second share a record.
    """
    ledger = _leased(leases, ttl_s)
    records, asked = len(ledger.bodies), 0
    begun_ns = ledger.now_ns
    if way == "each by itself, all written":
        ledger.state.rules_version = 4
    for now_ns, requests in _due(way, sorted(ledger.state.leases), begun_ns, ttl_s, minutes * 60):
        ledger.now_ns = now_ns
        asked += len(requests)
        _decided(ledger, requests)
    scale = as_if / leases * 60 / minutes
    written = ledger.bodies[records:]
    size = sum(map(len, written))
    # However many leases there are, a record takes in what is asked within its time.
    grown = round(len(written) * (scale if way == "many at once" else 60 / minutes))
    return Growth(way=way, leases=as_if, requests=round(asked * scale), records=grown, bytes=round(size * scale))


def _leased(leases: int, ttl_s: int) -> Ledger:
    ledger = Ledger()
    ledger.note(inputs.DeciderStarts("alloc", "start"))
    cards = [pci(f"{number >> 8:02x}:{number >> 3 & 31:02x}.{number & 7}") for number in range(leases)]
    ledger.start_host(H1)
    for at in range(0, leases, limits.OBSERVATIONS_PER_MESSAGE_MAX):
        ledger.see(*cards[at : at + limits.OBSERVATIONS_PER_MESSAGE_MAX])
    ledger.now_ns += 31 * SECOND
    for device in sorted(ledger.state.devices):
        assert ledger.ask(ledger.request(device, ttl_ms=ttl_s * 1_000)).outcome == "granted"
    return ledger


def _due(way: str, leases: list[int], now_ns: int, ttl_s: int, seconds: int) -> Iterator[tuple[int, list[Request]]]:
    """What is asked in each tenth of a second."""
    rng = random.Random(7)
    is_many = way == "many at once"
    size = limits.RENEWALS_PER_REQUEST_MAX if is_many else 1
    parts = [leases[at : at + size] for at in range(0, len(leases), size)]
    ticks, number = seconds * 10, 0
    due: dict[int, list[list[int]]] = {}
    for part in parts:
        due.setdefault(int(rng.uniform(0, RENEWED_AT[1]) * ttl_s * 10), []).append(part)
    for tick in range(ticks):
        requests: list[Request] = []
        at_ns = now_ns + tick * SECOND // 10
        for part in due.pop(tick, []):
            number += 1
            requests.append(_request(f"renewal-{number:08}-of-a-client", at_ns, part, is_many=is_many))
            due.setdefault(tick + max(1, int(rng.uniform(*RENEWED_AT) * ttl_s * 10)), []).append(part)
        if requests:
            yield at_ns, requests


def _request(request_id: str, at_ns: int, leases: list[int], *, is_many: bool) -> Request:
    name = RequestId(request_id)
    if is_many:
        pairs = tuple((lease, lease) for lease in leases)
        return RenewManyRequest(request_id=name, issued_at_ns=at_ns, leases=pairs)
    return inputs.RenewRequest(request_id=name, issued_at_ns=at_ns, lease=leases[0], token=leases[0])


def _decided(ledger: Ledger, requests: list[Request]) -> None:
    sequencer: Sequencer = ledger.sequencer
    for ticket, request in enumerate(requests):
        assert sequencer.ask(ticket, A, request)
    while sequencer.waiting:
        ledger.commit()
    assert all(reply.answer.outcome == "renewed" for reply in sequencer.replies)
    sequencer.replies.clear()


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leases", type=int, default=1_000, help="how many are really renewed")
    parser.add_argument("--ttl", type=int, default=60, help="their time, in s")
    parser.add_argument("--minutes", type=int, default=10, help="for how long")
    said = parser.parse_args()
    print(f"renewals of 10,000 leases of {said.ttl} s, in an hour")
    for way, what in WAYS.items():
        found = measure(way, leases=said.leases, ttl_s=said.ttl, minutes=said.minutes)
        print(f"{way:<28} {found.requests:>10,} requests {found.bytes / 1e6:>9,.1f} MB   {what}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
