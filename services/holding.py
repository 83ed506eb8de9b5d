"""A lease in a program's hands: renewed by itself, released at the end, and kept when the ledger is restored."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from leasehold.events import inputs, limits
from leasehold.events.answers import Answer, NotRenewed
from leasehold.events.errors import (
    InvalidInputError,
    LeaseholdError,
    LeaseLostError,
    RefusedError,
    UnavailableError,
)
from leasehold.events.position import queued_id_text, sequence_of
from leasehold.events.refusals import RefusalCode
from leasehold.services.schedule_asking import withdraw_request

_log: Final = logging.getLogger(__name__)
PREPARED_S_MAX: Final = limits.PREPARE_TIMEOUT_MS / 1_000 + limits.CUT_OFF_MS / 1_000
"""A binder says within the first that it could not, once it has heard; it hears within the second, or is known to be
cut off."""
PREPARED_PAUSE_S: Final = 0.1
"""How often it is asked how far that is."""


WAIT_PAUSE_S: Final = 0.1
"""How often it is asked at first how a waiting request stands; less often the longer it takes."""
WAIT_PAUSE_S_MAX: Final = 2.0
RENEWED_AT: Final = (0.27, 1 / 3)
"""Behind which part of its time a lease is renewed: not all that began together at once."""


class Asker(Protocol):
    """Who asks for it: `client.Client`."""

    async def ask(self, request: inputs.Request) -> Answer:
        """As `Client.ask`."""
        ...

    async def renew(self, lease: int, token: int) -> Answer:
        """As `Client.renew`."""
        ...

    async def release(self, lease: int, token: int) -> Answer:
        """As `Client.release`."""
        ...


async def until_granted(asker: Asker, request: inputs.LeaseRequest, told: Callable[[Answer], None]) -> Answer:
    """Ask, and while the answer is that it waits, ask again; `told` is called with each answer that says something new.

    Asked again it says how it stands, so that is how it is waited for, and nobody has to listen meanwhile. Whoever
    cancels this takes the request back, as far as it can be reached. Raises as `Client.ask` does: RefusedError when it
    has waited in vain.
    """
    answer, before, pause_s = await asker.ask(request), None, WAIT_PAUSE_S
    longest_s = min(WAIT_PAUSE_S_MAX, request.ttl_ms / 1_000 / 4)
    try:
        while answer.outcome == "queued":
            stands = (answer.ahead, answer.kept, answer.refusal)
            if stands != before:
                told(answer)
                before, pause_s = stands, WAIT_PAUSE_S
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(pause_s, longest_s))  # noqa: S311 - no secret
            pause_s *= 1.5
            answer = await _asked_again(asker, request, answer)
    except asyncio.CancelledError:
        await asyncio.shield(_take_back(asker, request, answer.queued))
        raise
    return answer


async def _asked_again(asker: Asker, request: inputs.LeaseRequest, last: Answer) -> Answer:
    """The answer now, or the last one if nobody could be reached: it waits there all the same."""
    try:
        return await asker.ask(request)
    except UnavailableError as error:
        _log.warning("how %s stands could not be asked: %s", queued_id_text(last.queued), error)
        return last


async def _take_back(asker: Asker, request: inputs.LeaseRequest, queued: int) -> None:
    """Nobody waits for it any more: neither is it to wait, nor to be granted."""
    try:
        try:
            await asker.ask(withdraw_request(queued, "who asked for it does not wait any more"))
        except RefusedError:
            # It does not wait any more, perhaps because it was granted just now.
            answer = await asker.ask(request)
            if answer.state == "living":
                await asker.release(answer.lease, answer.token)
    except LeaseholdError as error:
        _log.warning("%s was not taken back: %s", queued_id_text(queued), error)


async def until_prepared(asker: Asker, request: inputs.LeaseRequest | inputs.PrepareRequest, answer: Answer) -> Answer:
    """The answer to a request that was granted, as soon as no device of the lease is still to be prepared.

    Asked again it says how it stands, so that is how it is waited for. Raises as `Client.ask` does, and:

    Raises:
        UnavailableError: that takes too long; the lease is granted, and goes on.
    """
    give_up_s = time.monotonic() + PREPARED_S_MAX
    while answer.state == "living" and answer.prepared == "preparing":
        if time.monotonic() > give_up_s:
            raise UnavailableError(f"L{answer.lease} is granted, but not prepared after {PREPARED_S_MAX:g} s")
        await asyncio.sleep(PREPARED_PAUSE_S)
        answer = await asker.ask(request)
    return answer


def counted_s(ttl_ms: int) -> float:
    """How long a holder may count on a lease from the moment he sent for it: less than its time, because the ledger's
    clock may run a little faster than ours, drawn to its server's, and allocators' clocks agree so far and no more.
    """
    return ttl_ms / 1_000 * (1 - 1 / limits.CLOCK_SLEW_DIVISOR) - limits.CLOCK_TOLERANCE_NS / 10**9


def renewal_pause_s(ttl_ms: int) -> float:
    """How long to wait until a lease is renewed: not always the same part of its time."""
    return ttl_ms / 1_000 * random.uniform(*RENEWED_AT)  # noqa: S311 - no secret


class Lease:
    """A lease that renews itself while it is held, and is released at the end of its `async with`."""

    def __init__(
        self,
        client: Asker,
        request: inputs.LeaseRequest,
        *,
        wait_prepared: bool = False,
        on_wait: Callable[[Answer], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._client = client
        self._request = request
        self._wait_prepared = wait_prepared
        self._on_wait = on_wait
        self._on_lost = on_lost
        self._answer = Answer(outcome="")
        self._renewing: asyncio.Task[None] | None = None
        self._valid_until_s = 0.0
        self._is_forgotten = False
        self.lost = asyncio.Event()
        """Set when the lease can be counted on no more."""
        self.why_lost = ""

    @property
    def id(self) -> int:
        """The lease's id, as people see it: `L` and this number."""
        return self._answer.lease

    @property
    def ttl_ms(self) -> int:
        """For how long it lives without a renewal."""
        return self._request.ttl_ms

    @property
    def token(self) -> int:
        """The fencing token: shown to whoever acts on the devices. A restored ledger gives the lease another one."""
        return self._answer.token

    @property
    def devices(self) -> Sequence[str]:
        """The ids of the devices."""
        return self._answer.devices

    @property
    def is_valid(self) -> bool:
        """Whether it can be counted on now: by our own clock, since the last request that succeeded was sent."""
        return not self.lost.is_set() and not self._is_forgotten and time.monotonic() < self._valid_until_s

    def check(self) -> None:
        """Raises LeaseLostError unless the lease can be counted on now."""
        if not self.is_valid:
            raise LeaseLostError(self.why_lost or "its time is over, and no renewal succeeded")

    async def __aenter__(self) -> Self:
        """Ask for it, and wait for its turn. Raises as `Client.ask` does."""
        await self.acquire()
        self._renewing = asyncio.create_task(self._keep_renewing())
        if self._wait_prepared:
            try:
                await self._until_prepared()
            except BaseException as error:
                # It was not entered, so nobody else lets go of it.
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
        return self

    async def acquire(self) -> None:
        """Ask for it, and wait for its turn; who calls this renews it, and releases it. Raises as `Client.ask` does."""
        sent_s = time.monotonic()
        waited: list[Answer] = []
        answer = await until_granted(self._client, self._request, lambda each: self._waits(each, waited))
        if answer.state != "living":
            raise LeaseLostError(_ended_text(answer))
        self._answer = answer
        if waited or sequence_of(answer.position) != sequence_of(answer.as_of):
            # It was granted a while ago, and nobody has told us when: a renewal says from when on it is ours.
            sent_s = time.monotonic()
            await self._act(self._client.renew)
        self.renewed(sent_s)

    def renewed(self, sent_s: float) -> None:
        """It can be counted on for its time, from when that was asked for (by the monotonic clock)."""
        self._valid_until_s = sent_s + counted_s(self._request.ttl_ms)

    async def let_go(self) -> None:
        """Release it, for whoever has acquired it. Raises as `Client.ask` does."""
        await self._act(self._client.release)

    def forget(self) -> None:
        """It is another's now, transferred or switched: it is neither renewed nor released any more."""
        self._is_forgotten = True
        if self._renewing is not None:
            self._renewing.cancel()

    async def ask_anew(self, why: NotRenewed) -> None:
        """It was not renewed with others, and may be with a new token. Raises as `Client.ask` does."""
        refused = RefusedError(why.message, refusal_code=why.code)
        if why.code != RefusalCode.TOKEN_STALE:
            raise refused
        await self._take_new_token(refused)
        await self._client.renew(self.id, self.token)

    def _waits(self, answer: Answer, waited: list[Answer]) -> None:
        waited[:] = [answer]
        if self._on_wait is not None:
            self._on_wait(answer)

    async def _until_prepared(self) -> None:
        answer = await until_prepared(self._client, self._request, self._answer)
        if answer.state != "living":
            self.lose(_ended_text(answer))
            raise LeaseLostError(self.why_lost)
        self._answer = answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})
        if self._is_forgotten:
            return
        if self.lost.is_set():
            if kind is None:
                raise LeaseLostError(self.why_lost)
            return
        try:
            await self.let_go()
        except LeaseholdError as release_error:
            # It ends by itself; what happened inside matters more than that.
            if kind is None:
                raise
            _log.warning("lease L%d was not released: %s", self.id, release_error)

    async def _keep_renewing(self) -> None:
        """Renew when a third of the time is over, and sooner again after a failure."""
        ttl_s = self._request.ttl_ms / 1_000
        pause_s = renewal_pause_s(self._request.ttl_ms)
        while True:
            left_s = self._valid_until_s - time.monotonic()
            if left_s <= 0:
                self.lose("its time is over, and no renewal succeeded")
                return
            await asyncio.sleep(min(pause_s, left_s))
            sent_s = time.monotonic()
            try:
                async with asyncio.timeout(self._valid_until_s - sent_s):
                    await self._act(self._client.renew)
            except TimeoutError:
                continue
            except (RefusedError, InvalidInputError) as error:
                self.lose(str(error))
                return
            except UnavailableError as error:
                _log.warning("lease L%d could not be renewed: %s", self.id, error)
                pause_s = min(1.0, ttl_s / 10)
            else:
                self.renewed(sent_s)
                pause_s = renewal_pause_s(self._request.ttl_ms)

    async def _act(self, act: Callable[[int, int], Awaitable[Answer]]) -> None:
        """Renew or release with the token that counts now. Raises as `Client.ask` does."""
        try:
            await act(self.id, self.token)
        except RefusedError as error:
            if error.refusal_code != RefusalCode.TOKEN_STALE:
                raise
            await self._take_new_token(error)
            await act(self.id, self.token)

    async def _take_new_token(self, refused: RefusedError) -> None:
        """The ledger was restored: the same request, asked again, is answered with the token that counts now.

        Raises:
            RefusedError: `refused`, if it does not know this lease any more.
        """
        answer = await self._client.ask(self._request)
        if answer.lease == self.id and answer.state == "living" and answer.token not in (0, self.token):
            _log.warning("the ledger was restored: lease L%d has another token now", self.id)
            self._answer = answer
            return
        if answer.state == "living" and answer.lease != self.id:
            # Granted anew: somebody else may have had the devices meanwhile.
            await self._client.release(answer.lease, answer.token)
        raise refused

    def lose(self, why: str) -> None:
        """It can be counted on no more."""
        if self.lost.is_set():
            return
        self.why_lost = why
        self.lost.set()
        if self._on_lost is not None:
            try:
                self._on_lost(why)
            except Exception:  # noqa: BLE001 - it is not ours, and the lease is lost all the same
                _log.exception("what is called when lease L%d is lost has failed", self.id)


def _ended_text(answer: Answer) -> str:
    why = f": {answer.message}" if answer.message else ""
    return f"lease L{answer.lease} of this request was ended ({answer.ended}{why})"
