"""Many leases of one program, renewed together."""

import asyncio
from collections.abc import Iterable

import pytest

from leasehold.events import limits
from leasehold.events.answers import Answer, NotRenewed
from leasehold.events.errors import RefusedError, UnavailableError
from leasehold.events.inputs import LeaseRequest, Request
from leasehold.events.position import end_of_record, position_of
from leasehold.events.refusals import RefusalCode
from leasehold.services.asking import lease_request
from leasehold.services.holding import Lease
from leasehold.services.keeping import Keeper

TTL_MS = 1_000


class _Ledger:
    """Grants everything, renews what it has, and counts the requests for that."""

    def __init__(self) -> None:
        self.leases: dict[int, int] = {}
        """Id and token."""
        self.renewed: list[list[int]] = []
        self.silent = False
        self.news = asyncio.Event()
        self._ids: dict[str, int] = {}

    def request(self) -> LeaseRequest:
        return lease_request(("pci_0000_00_01_0",), holder="job:1", ttl_ms=TTL_MS)

    def lease(self) -> Lease:
        return Lease(self, self.request())

    async def ask(self, request: Request) -> Answer:
        assert isinstance(request, LeaseRequest)
        if request.request_id not in self._ids:
            self._ids[request.request_id] = position_of(len(self._ids) + 2, 0)
            self.leases[self._ids[request.request_id]] = self._ids[request.request_id]
        lease = self._ids[request.request_id]
        if lease not in self.leases:
            raise RefusedError("it was ended", refusal_code=RefusalCode.LEASE_ENDED)
        return Answer(
            outcome="granted", position=lease, as_of=end_of_record(lease // 256), lease=lease,
            token=self.leases[lease], state="living",
        )  # fmt: skip

    async def renew(self, lease: int, token: int) -> Answer:
        if self.leases.get(lease) != token:
            raise RefusedError("stale", refusal_code=RefusalCode.TOKEN_STALE)
        return Answer(outcome="renewed", lease=lease)

    async def renew_many(self, leases: Iterable[tuple[int, int]]) -> Answer:
        named = list(leases)
        self.renewed.append([lease for lease, _ in named])
        self.news.set()
        if self.silent:
            raise UnavailableError("nobody listens")
        failed = tuple(
            NotRenewed(
                lease=lease,
                code=RefusalCode.TOKEN_STALE if lease in self.leases else RefusalCode.LEASE_ENDED,
                message=f"L{lease} is not yours any more",
            )
            for lease, token in named
            if self.leases.get(lease) != token
        )
        return Answer(outcome="renewed", not_renewed=failed)

    async def release(self, lease: int, token: int) -> Answer:
        assert self.leases[lease] == token
        del self.leases[lease]
        return Answer(outcome="released", lease=lease)

    async def next_renewal(self) -> list[int]:
        """The leases of the next request that renews some."""
        self.news.clear()
        async with asyncio.timeout(30):
            await self.news.wait()
        return self.renewed[-1]


async def test_one_request_for_all() -> None:
    """Leases that began together are renewed by one request, and all are released in the end."""
    ledger = _Ledger()
    async with Keeper(ledger) as keeper:
        kept = [await keeper.take(ledger.lease()) for _ in range(5)]
        assert sorted(await ledger.next_renewal()) == sorted(lease.id for lease in kept)
        assert all(lease.is_valid for lease in kept)
    assert ledger.leases == {}


async def test_no_request_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into one request comes with the next, and nothing is forgotten."""
    monkeypatch.setattr(limits, "RENEWALS_PER_REQUEST_MAX", 3)
    ledger = _Ledger()
    async with Keeper(ledger) as keeper:
        for _ in range(7):
            await keeper.take(ledger.lease())
        async with asyncio.timeout(30):
            while len({lease for some in ledger.renewed for lease in some}) < 7:
                await ledger.next_renewal()
        assert max(map(len, ledger.renewed)) == 3
        assert all(lease.is_valid for lease in keeper.leases)


async def test_one_that_has_ended() -> None:
    """It is lost with its reason, and the others live on."""
    ledger = _Ledger()
    async with Keeper(ledger) as keeper:
        lost, other = [await keeper.take(ledger.lease()) for _ in range(2)]
        del ledger.leases[lost.id]
        async with asyncio.timeout(30):
            await lost.lost.wait()
        assert lost.why_lost == f"L{lost.id} is not yours any more"
        assert keeper.leases == (other,)


async def test_another_token() -> None:
    """A restored ledger gives it another token: it is taken up, and the lease lives on."""
    ledger = _Ledger()
    async with Keeper(ledger) as keeper:
        lease = await keeper.take(ledger.lease())
        ledger.leases[lease.id] = lease.token + 2**47
        async with asyncio.timeout(30):
            while lease.token != ledger.leases[lease.id]:
                await ledger.next_renewal()
        assert lease.is_valid


async def test_silence() -> None:
    """While nobody answers it is asked again; when the time is over, all are lost, and it is told."""
    ledger = _Ledger()
    ledger.silent = True
    told: list[str] = []
    async with Keeper(ledger) as keeper:
        lease = await keeper.take(Lease(ledger, ledger.request(), on_lost=told.append))
        async with asyncio.timeout(30):
            await lease.lost.wait()
        assert len(ledger.renewed) > 1
        assert keeper.leases == ()
    assert told == ["its time is over, and no renewal succeeded"]


async def test_let_go_is_not_renewed() -> None:
    """What was let go is released, and is in no request any more."""
    ledger = _Ledger()
    async with Keeper(ledger) as keeper:
        first, other = [await keeper.take(ledger.lease()) for _ in range(2)]
        await keeper.let_go(first)
        assert ledger.leases == {other.id: other.token}
        assert await ledger.next_renewal() == [other.id]
