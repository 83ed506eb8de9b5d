"""A lease in a program's hands when the ledger is restored: it goes on with its new token, or is known to be lost."""

import asyncio

import msgspec
import pytest

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.errors import LeaseLostError, RefusedError
from leasehold.events.inputs import LeaseRequest, ReleaseRequest, RenewRequest, Request
from leasehold.events.position import token_of
from leasehold.projections.sequencer import Sequencer
from leasehold.services.holding import Lease
from tests.projections.ledger import SECOND, A, B, Ledger, device, ledger_with_hosts

TTL_MS = 1_500
"""Renewed each half second: the shortest that leaves time for a slow machine."""


class _Asker:
    """Asks the real core. Its requests can wait until the ledger is restored."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.renewed = asyncio.Event()
        """Set at the end of each renewal that succeeded."""
        self.asked: list[Request] = []

    async def ask(self, request: Request) -> Answer:
        await asyncio.sleep(0)
        self.asked.append(request)
        self.ledger.now_ns += 1
        answer = self.ledger.ask(msgspec.structs.replace(request, issued_at_ns=self.ledger.now_ns), A)
        if answer.refusal is not None:
            raise RefusedError(answer.refusal.message, refusal_code=answer.refusal.code)
        return answer

    async def renew(self, lease: int, token: int) -> Answer:
        request = RenewRequest(request_id=self.ledger.new_id(), issued_at_ns=0, lease=lease, token=token)
        answer = await self.ask(request)
        self.renewed.set()
        return answer

    async def release(self, lease: int, token: int) -> Answer:
        return await self.ask(ReleaseRequest(request_id=self.ledger.new_id(), issued_at_ns=0, lease=lease, token=token))


def lease_in(asker: _Asker) -> Lease:
    """Not entered yet."""
    ledger = asker.ledger
    return Lease(asker, msgspec.structs.replace(ledger.request(device("01:00.0")), ttl_ms=TTL_MS))


def restore(ledger: Ledger, records: int) -> None:
    """The ledger is put back to its first records, in a new era; its hosts have reported again."""
    again = Ledger("restorer")
    for sequence, body in enumerate(ledger.bodies[:records], 1):
        again.sequencer.apply(sequence, body)
    ledger.bodies = ledger.bodies[:records]
    ledger.sequencer = Sequencer(again.state, cluster="lab", writer="restorer")
    ledger.note(inputs.LedgerRestores(cluster="lab", writer="restorer", era=1, reason="wiped"))
    for host in ledger.counters:
        ledger._observed += 10
        ledger.counters[host] = again.state.hosts[host].sources["watcher"].counter
        ledger.observe(inputs.PictureComplete(since=ledger.counters[host] + 1), host=host)


async def test_it_goes_on_with_the_new_token() -> None:
    """The refused renewal leads to the token of the new era, and to the renewal; the lease is released with it."""
    asker = _Asker(ledger_with_hosts())
    async with lease_in(asker) as lease:
        old = lease.token
        restore(asker.ledger, len(asker.ledger.bodies))
        async with asyncio.timeout(20):
            await asker.renewed.wait()
        assert lease.token == token_of(1, lease.id) > old
        assert lease.is_valid
        held = asker.ledger.state.leases[lease.id]
        assert not held.ended
    assert asker.ledger.state.leases[lease.id].ended == "released"
    grants = [each for each in asker.asked if isinstance(each, LeaseRequest)]
    assert len(grants) == 2


async def test_it_is_released_with_the_new_token() -> None:
    """Also when nothing was renewed between the restore and the end."""
    asker = _Asker(ledger_with_hosts())
    async with lease_in(asker) as lease:
        restore(asker.ledger, len(asker.ledger.bodies))
    assert asker.ledger.state.leases[lease.id].ended == "released"


@pytest.mark.parametrize("is_taken", [False, True], ids=["free meanwhile", "another's meanwhile"])
async def test_a_lost_lease_is_known_to_be_lost(is_taken: bool) -> None:
    """A lease whose grant is not in the restored ledger is lost, even if it would be granted again; nothing is kept."""
    ledger = ledger_with_hosts()
    records = len(ledger.bodies)
    ledger.granted("0a:00.0", principal=B)
    asker = _Asker(ledger)
    with pytest.raises(LeaseLostError):
        async with lease_in(asker) as lease:
            restore(ledger, records)
            if is_taken:
                assert ledger.lease("01:00.0", principal=B).outcome == "granted"
            async with asyncio.timeout(20):
                await lease.lost.wait()
            assert not lease.is_valid
    mine = [row for row in ledger.state.leases.values() if row.principal == A and not row.ended]
    assert mine == []


async def test_a_lease_that_has_ended_is_not_taken_up_again() -> None:
    """One that had expired before the store was lost is lost, and is not asked for a second time."""
    ledger = ledger_with_hosts()
    asker = _Asker(ledger)
    with pytest.raises(LeaseLostError):
        async with lease_in(asker) as lease:
            ledger.tick(3_600)
            restore(ledger, len(ledger.bodies))
            async with asyncio.timeout(20):
                await lease.lost.wait()
    assert ledger.now_ns > SECOND
    assert not [row for row in ledger.state.leases.values() if not row.ended]
