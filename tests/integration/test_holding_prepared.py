"""A lease in a program's hands that is entered when its devices are handed over, and not before."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.errors import LeaseLostError, RefusedError, UnavailableError
from leasehold.events.identities import split_device_id
from leasehold.events.inputs import ReleaseRequest, RenewRequest, Request
from leasehold.services import holding
from leasehold.services.holding import Lease
from tests.projections.ledger import H1, A, Ledger, device, ledger_with_hosts

CARDS = ("01:00.0", "0a:00.0")
KEYS = tuple(split_device_id(device(card))[1] for card in CARDS)


class _Asker:
    """Asks the real core; before the third time of asking for the lease its host's binder speaks."""

    def __init__(self, speak: Callable[[Ledger, int], None]) -> None:
        self.ledger = ledger_with_hosts()
        self.ledger.start_binder(H1)
        self.asked = 0
        self._speak = speak

    async def ask(self, request: Request) -> Answer:
        await asyncio.sleep(0)
        self.asked += isinstance(request, inputs.LeaseRequest)
        if self.asked == 3 and isinstance(request, inputs.LeaseRequest):
            (lease,) = self.ledger.state.leases
            self._speak(self.ledger, lease)
        self.ledger.now_ns += 1
        answer = self.ledger.ask(msgspec.structs.replace(request, issued_at_ns=self.ledger.now_ns), A)
        if answer.refusal is not None:
            raise RefusedError(answer.refusal.message, refusal_code=answer.refusal.code)
        return answer

    async def renew(self, lease: int, token: int) -> Answer:
        return await self.ask(RenewRequest(request_id=self.ledger.new_id(), issued_at_ns=0, lease=lease, token=token))

    async def release(self, lease: int, token: int) -> Answer:
        return await self.ask(ReleaseRequest(request_id=self.ledger.new_id(), issued_at_ns=0, lease=lease, token=token))


def lease_of(asker: _Asker) -> Lease:
    """Of both cards, not entered yet."""
    return Lease(asker, asker.ledger.request(*map(device, CARDS)), wait_prepared=True)


def hand_over(ledger: Ledger, lease: int) -> None:
    ledger.bind(*(inputs.Prepared(key, lease, "vfio-pci", "igb", "flr") for key in KEYS))


def fail(ledger: Ledger, lease: int) -> None:
    ledger.bind(inputs.Prepared(KEYS[0], lease, "vfio-pci", "igb", "flr"))
    ledger.bind(inputs.NotPrepared(KEYS[1], lease, "the probe failed"))


async def test_it_is_entered_when_all_is_handed_over() -> None:
    """Not at the grant, and not when one of two devices is ready."""
    asker = _Asker(hand_over)
    async with asyncio.timeout(20), lease_of(asker) as lease:
        rows = [asker.ledger.state.devices[device(card)] for card in CARDS]
        assert all(row.binding is not None for row in rows)
        assert (asker.asked, lease.is_valid) == (3, True)
    assert asker.ledger.state.leases[lease.id].ended == "released"


async def test_one_that_fails_is_lost_with_the_reason() -> None:
    """It is not entered; nothing is left to be released."""
    asker = _Asker(fail)
    with pytest.raises(LeaseLostError, match=r"failed: h1/pci/0000:0a:00\.0: the probe failed"):
        async with asyncio.timeout(20), lease_of(asker):
            raise AssertionError("it was entered")
    (row,) = asker.ledger.state.leases.values()
    assert row.ended == "failed"


async def test_one_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not entered, and was released: nobody else would."""
    monkeypatch.setattr(holding, "PREPARED_S_MAX", 0.2)
    asker = _Asker(lambda _ledger, _lease: None)
    with pytest.raises(UnavailableError, match="is granted, but not prepared after"):
        async with asyncio.timeout(20), lease_of(asker):
            raise AssertionError("it was entered")
    (row,) = asker.ledger.state.leases.values()
    assert row.ended == "released"
