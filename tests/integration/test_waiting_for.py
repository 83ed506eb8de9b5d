"""A program that waits for its turn, and what it is told of its lease."""

import asyncio
from collections.abc import Callable

import pytest

from leasehold.events.answers import Answer
from leasehold.events.errors import LeaseholdError, LeaseLostError, RefusedError, UnavailableError
from leasehold.events.inputs import LeaseRequest, Request
from leasehold.events.position import end_of_record, position_of
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.schedule_inputs import WithdrawRequest
from leasehold.services.asking import lease_request, needs_of
from leasehold.services.holding import Lease

TTL_MS = 1_000
GRANTED = position_of(7, 0)
QUEUED = position_of(5, 0)
REQUEST = lease_request((), holder="job:1", ttl_ms=TTL_MS, needs=needs_of('device.kind == "pci"'), wait_ms=60_000)


def queued(ahead: int) -> Answer:
    why = Refusal(code=RefusalCode.NOT_ENOUGH, message="all are leased")
    return Answer(outcome="queued", queued=QUEUED, ahead=ahead, refusal=why)


def granted(*, as_of: int = 7) -> Answer:
    return Answer(
        outcome="granted", position=GRANTED, as_of=end_of_record(as_of), lease=GRANTED, token=GRANTED, state="living",
        devices=("h1/pci/0000:00:01.0",), ttl_ms=TTL_MS,
    )  # fmt: skip


class _Scripted:
    """Answers what it is told to; the last answer of a request again and again."""

    def __init__(self, *answers: Answer | LeaseholdError, withdraw: LeaseholdError | None = None) -> None:
        self._answers = list(answers)
        self._withdraw = withdraw
        self.asked: list[Request] = []
        self.renewals = 0
        self.released: list[int] = []
        self.on_renew: Callable[[], None] = lambda: None

    async def ask(self, request: Request) -> Answer:
        await asyncio.sleep(0)
        self.asked.append(request)
        if isinstance(request, WithdrawRequest):
            if self._withdraw is not None:
                self._answers = [granted()]
                raise self._withdraw
            return Answer(outcome="withdrawn")
        given = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(given, LeaseholdError):
            raise given
        return given

    async def renew(self, lease: int, token: int) -> Answer:
        assert (lease, token) == (GRANTED, GRANTED)
        self.renewals += 1
        self.on_renew()
        return Answer(outcome="renewed", lease=lease)

    async def release(self, lease: int, token: int) -> Answer:
        assert token == GRANTED
        self.released.append(lease)
        return Answer(outcome="released", lease=lease)


async def test_each_news_is_told_once() -> None:
    """While it waits, the same request is asked again; what is new of it is told, and what is not, is not."""
    asker = _Scripted(queued(2), queued(2), queued(1), granted())
    told: list[int] = []
    async with Lease(asker, REQUEST, on_wait=lambda answer: told.append(answer.ahead)) as lease:
        assert lease.devices == ("h1/pci/0000:00:01.0",)
        assert lease.is_valid
    assert told == [2, 1]
    assert all(each == REQUEST for each in asker.asked)
    assert asker.released == [GRANTED]


async def test_silence_is_waited_out() -> None:
    """That nobody can be reached for a moment ends no waiting."""
    asker = _Scripted(queued(1), UnavailableError("nobody listens"), queued(1), granted())
    async with Lease(asker, REQUEST) as lease:
        assert lease.id == GRANTED


async def test_a_turn_that_came_long_ago_is_renewed_first() -> None:
    """Since when a lease runs that was waited for, or granted in an older record, nobody knows: so it is renewed before
    it is counted on; one that was granted just now is not.
    """
    for asker, renewals in (
        (_Scripted(queued(1), granted()), 1),
        (_Scripted(granted(as_of=9)), 1),
        (_Scripted(granted()), 0),
    ):
        async with Lease(asker, REQUEST):
            assert asker.renewals == renewals


async def test_waited_in_vain() -> None:
    """That its time is over is a refusal like any other."""
    asker = _Scripted(queued(1), RefusedError("an hour is over", refusal_code=RefusalCode.WAITED_IN_VAIN))
    with pytest.raises(RefusedError) as caught:
        await Lease(asker, REQUEST).__aenter__()
    assert caught.value.refusal_code == RefusalCode.WAITED_IN_VAIN


async def _cancelled_while_waiting(asker: _Scripted) -> None:
    waits = asyncio.Event()
    lease = Lease(asker, REQUEST, on_wait=lambda _answer: waits.set())
    waiting = asyncio.create_task(lease.__aenter__())
    await waits.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_who_does_not_wait_any_more_takes_it_back() -> None:
    """Otherwise it were granted to nobody later."""
    asker = _Scripted(queued(1))
    await _cancelled_while_waiting(asker)
    last = asker.asked[-1]
    assert isinstance(last, WithdrawRequest)
    assert last.queued == QUEUED


async def test_granted_while_it_was_taken_back() -> None:
    """What was granted just before is released."""
    asker = _Scripted(queued(1), withdraw=RefusedError("it waits no more", refusal_code=RefusalCode.QUEUED_UNKNOWN))
    await _cancelled_while_waiting(asker)
    assert asker.released == [GRANTED]


async def test_told_once_that_it_is_lost() -> None:
    """With the reason; that what is called fails, changes nothing."""
    asker = _Scripted(granted())
    told: list[str] = []

    def lost(why: str) -> None:
        told.append(why)
        raise ValueError("not ours")

    def refuse() -> None:
        raise RefusedError("lease L1792 was ended (revoked)", refusal_code=RefusalCode.LEASE_ENDED)

    asker.on_renew = refuse
    lease = Lease(asker, REQUEST, on_lost=lost)
    with pytest.raises(LeaseLostError):
        async with lease:
            await lease.lost.wait()
            lease.lose("again")
    assert told == ["lease L1792 was ended (revoked)"]
    assert asker.released == []


async def test_what_was_given_away_is_left_alone() -> None:
    """It is not released, and cannot be counted on."""
    asker = _Scripted(granted())
    async with Lease(asker, REQUEST) as lease:
        lease.forget()
        assert not lease.is_valid
    assert asker.released == []


def test_requests_say_what_is_needed() -> None:
    """Several ways to say it lead to the same needs."""
    by_class = lease_request((), holder="x", ttl_ms=TTL_MS, needs=needs_of(device_class="gpu", count=2, every=True))
    assert isinstance(by_class, LeaseRequest)
    (need,) = by_class.needs
    assert (need.device_class, need.count, need.every) == ("gpu", 2, True)
    (need,) = needs_of(first_of=("a", "b"), count=3)
    assert [(option.select, option.count) for option in need.first_of] == [("a", 3), ("b", 3)]
    assert need.count == 1
